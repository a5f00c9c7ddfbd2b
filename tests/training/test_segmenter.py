"""Training a network that finds the structures of one image, on images painted from label maps."""

import pytest
import torch

from stepwarp.data.manifest import read_manifest
from stepwarp.data.structures import as_classes
from stepwarp.errors import InputError
from stepwarp.files import read_labels
from stepwarp.segment import load_segmenter, segment
from stepwarp.segment.segmenters import SHIPPED_SEGMENTER
from stepwarp.training.config import check_config, read_config
from stepwarp.training.loop import CHECKPOINT, train
from stepwarp.training.plan import make_plan
from stepwarp.training.segmenter import described_structures, measured_classes
from stepwarp.training.start import read_start
from stepwarp.training.trainees import trainee_of

from .conftest import MM, STRUCTURES, head


@pytest.fixture
def segmenter(heads):
    """A recipe for a segmenter of painted heads that trains in a second; segmenter(**changes) merges them."""

    def make(**changes):
        augment = {"both": {"degrees": 10}, "elastic": 1, "elastic_mm": 60, "elastic_sd_mm": 4}
        values = {
            "name": "heads-any",
            "data": {**heads, "spacing_mm": 2 * MM, "detail": 2, "augment": augment, "synthesis": {"keep": [1, 2, 3]}},
            "segmenter": {"channels": [8, 8], "structures": STRUCTURES},
            "optimiser": {"lr": 0.01, "warm_up": 0, "ema": 0.5},
            "curriculum": [{"iterations": 2}],
            "validation": {"every": 2, "pairs": 1},
        }
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
        return check_config(values, "the recipe")

    return make


def test_what_is_written_is_what_segment_reads(segmenter, manifest, tmp_path):
    done = train(segmenter(), tmp_path / "run")
    found = load_segmenter(done.weights)
    header = found.header
    assert (header.mm, header.box, header.channels) == (2 * MM, segmenter().data.grid().shape, (8, 8))
    assert header.card.labels_used
    assert header.card.metrics["segmentation_dice"] == pytest.approx(done.best.score)
    assert "images synthesised" in header.card.data
    image, _ = head(0)
    probabilities = segment(image, found).probabilities
    assert torch.allclose(probabilities.sum(0), torch.ones(()), atol=1e-4)

    # Volumes and places are those of the label maps of the three that were trained on, in their files.
    config = segmenter().segmenter
    maps = [read_labels(manifest.parent / f"labels{n}.nii.gz") for n in range(3)]
    exact = described_structures(
        config.structures, [measured_classes(as_classes(m.data, config.classes), 3, m.grid.affine) for m in maps]
    )
    for known, wanted in zip(found.structures, exact, strict=True):
        assert (known.id, known.name, known.brain) == (wanted.id, wanted.name, True)
        assert known.millilitres == pytest.approx(wanted.millilitres, rel=0.02)
        assert known.centre == pytest.approx(wanted.centre, abs=0.3)


def test_a_training_that_was_ended_goes_on_with_the_same_images_to_the_same_weights(segmenter, tmp_path):
    train(segmenter(), tmp_path / "whole")
    assert not train(segmenter(), tmp_path / "parts", max_minutes=1e-6).finished
    assert train(segmenter(), tmp_path / "parts", resume=True).finished
    states = [torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ("whole", "parts")]
    for part in ("module", "mean"):
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())


def test_its_own_weights_and_the_shipped_ones_are_a_start(segmenter, tmp_path):
    first = train(segmenter(curriculum=[{"iterations": 1}]), tmp_path / "first").weights
    begun = segmenter(start=str(first))
    state = trainee_of(begun, read_start(begun, 3)).module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in load_segmenter(first).network.state_dict().items())
    shipped = read_config("brain_any", [f"start={SHIPPED_SEGMENTER}"])
    assert read_start(shipped, 3).state.keys() == trainee_of(shipped).module.state_dict().keys()
    for change, message in (
        ({"segmenter": {"channels": [4, 8]}}, r"has channels \[8, 8\]"),
        ({"segmenter": {"structures": STRUCTURES[:2]}}, r"knows the structures \[1, 2, 3\]"),
        ({"start": "brain-t1"}, "holds no segmenter"),
    ):
        with pytest.raises(InputError, match=message):
            read_start(segmenter(**{"start": str(first)} | change), 3)


def test_the_recipe_that_comes_along_is_for_the_labels_of_its_manifest():
    config, shipped = read_config("brain_any"), load_segmenter()
    assert [(each.id, each.name, each.brain) for each in config.segmenter.structures] == [
        (each.id, each.name, each.brain) for each in shipped.structures
    ]
    assert (config.segmenter.channels, config.data.grid().shape) == (shipped.header.channels, shipped.header.box)
    splits = [entry.split for entry in read_manifest(config.data.manifest).images.values()]
    assert splits.count(config.data.split) == 18
    assert splits.count(config.data.validation_split) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "none"}, "unknown key 'steps'"),
        ({"segmenter": {"structures": [*STRUCTURES, {"id": 3, "name": "again"}]}}, "the id 3 is of two of them"),
        ({"segmenter": {"structures": [*STRUCTURES, {"id": 4, "name": "x", "labels": [2]}]}}, "the label 2 is of two"),
        ({"data": {"teacher": "x", "synthesis": None}}, "a segmenter learns from label maps"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(segmenter, changes, message):
    with pytest.raises(InputError, match=message):
        segmenter(**changes)


def test_a_structure_that_is_nowhere_is_named(segmenter, tmp_path):
    config = segmenter(segmenter={"structures": [*STRUCTURES, {"id": 99, "name": "unicorn"}]})
    with pytest.raises(InputError, match="structure 'unicorn': is in no label map"):
        train(config, tmp_path / "run")


def test_a_plan_says_what_is_trained_and_by_what(segmenter, manifest):
    plan = make_plan(segmenter(), manifest.parent)
    assert plan.tree.startswith("Segmenter of 3 structures")
    assert plan.losses.startswith("labels")
    assert (plan.scans, plan.validation_pairs) == (3, 1)
    assert plan.stages[0].parameters == sum(weights.numel() for weights in trainee_of(segmenter()).module.parameters())
