"""Training what is shown to the steps: by label maps, apart from the steps, which may come from other weights."""

import json

import pytest
import torch

from stepwarp.data.manifest import read_manifest
from stepwarp.data.structures import as_classes
from stepwarp.errors import InputError
from stepwarp.losses.segmentation import segmentation_loss
from stepwarp.registrar.steps.config import build
from stepwarp.registrar.weights import load_weights
from stepwarp.training.dataset import open_dataset, structures_of
from stepwarp.training.loop import train
from stepwarp.training.objective import TrainingObjective, first_steps, train_only
from stepwarp.training.validation import validate
from stepwarp.workflow.train import finetuning_config

GUIDED = {"step": "guided", "net": {"kind": "unet", "channels": [4]}}
INNER = {"step": "two_step", "steps": [{"step": "downsampled", "inner": GUIDED}, GUIDED]}
SEGMENTED = {"step": "segmented", "segmenter": {"classes": 4, "channels": [8]}, "inner": INNER}
SEGMENTER, STEPS = {"iterations": 3, "segmenter": True}, {"iterations": 2}
SIDES = ("fixed", "moving")


@pytest.fixture
def segmented(recipe):
    def make(*curriculum, **changes):
        return recipe(steps=SEGMENTED, curriculum=list(curriculum or [SEGMENTER]), **changes)

    return make


def parts(step):
    return {
        head: {name: value.clone() for name, value in step.state_dict().items() if name.startswith(head)}
        for head in ("segmenter.", "step.first.", "step.second.")
    }


def changed(before, after):
    return {head for head in before if any(not torch.equal(before[head][n], after[head][n]) for n in before[head])}


def test_a_stage_trains_the_segmenter_or_the_steps(segmented):
    config = segmented(SEGMENTER, {"iterations": 1, "steps": 1}, {"iterations": 1, "frozen": 1}, STEPS)
    step = build(config.steps, 3)
    found = []
    for stage in config.curriculum:
        train_only(step, config, stage)
        trained = [name for name, weights in step.named_parameters() if weights.requires_grad]
        found.append({head for head in parts(step) if any(name.startswith(head) for name in trained)})
    assert found == [{"segmenter."}, {"step.first."}, {"step.second."}, {"step.first.", "step.second."}]


def test_the_first_of_segmented_steps_are_shown_the_same(segmented):
    config = segmented(SEGMENTER, {"iterations": 1, "steps": 1}, STEPS)
    step = build(config.steps, 3)
    first = first_steps(step, config, config.curriculum[1])
    assert first.segmenter is step.segmenter
    assert first.step is step.step.first
    assert first_steps(step, config, config.curriculum[2]) is step


def test_the_loss_is_that_of_both_segmentations(segmented, tmp_path):
    config = segmented()
    data = open_dataset(config, None, tmp_path)
    assert data.structures == {1: 1, 2: 2, 3: 3}
    data.structures.update({1: 3, 3: 1})  # no class is its label's own number
    sample = data.training[0]
    batch = {name: value[None] for name, value in sample.items() if name != "pair"}
    step = build(config.steps, 3)
    terms = TrainingObjective(step, config, structures=data.structures)(batch, 0)
    assert terms.keys() == {"loss", "segmentation"}
    each = [
        segmentation_loss(
            step.segmenter(batch[side]),
            torch.tensor([0, 3, 2, 1])[batch[f"{side}_labels"].long()],
            batch[side] > 0.02,
        )
        for side in ("fixed", "moving")
    ]
    torch.testing.assert_close(terms["loss"], sum(each) / 2)


def test_a_training_of_the_segmenter_says_that_labels_were_used(segmented, tmp_path):
    ended = train(segmented(validation={"keep_best_by": "segmentation_dice", "every": 1}), tmp_path / "run")
    registrar = load_weights(ended.weights)
    assert registrar.card.labels_used
    assert registrar.card.metrics["segmentation_dice"] == pytest.approx(ended.best.score)
    torch.manual_seed(0)
    assert changed(parts(build(segmented().steps, 3)), parts(registrar.step)) == {"segmenter."}


def test_steps_may_come_from_weights_without_a_segmenter(segmented, recipe, tmp_path):
    plain = train(recipe(steps=INNER, curriculum=[STEPS]), tmp_path / "plain").weights
    config = segmented(start=str(plain))
    before = load_weights(plain).step.state_dict()
    after = load_weights(train(config, tmp_path / "run").weights)
    assert all(torch.equal(value, after.step.step.state_dict()[name]) for name, value in before.items())
    assert after.card.training["settings"]["start"] == plain.name, "no folder of this machine"
    again = segmented(STEPS, start=str(tmp_path / "run" / "weights.safetensors"))
    further = load_weights(train(again, tmp_path / "further").weights)
    assert further.card.labels_used, "they are in what it began with"
    assert changed(parts(after.step), parts(further.step)) == {"step.first.", "step.second."}


def test_weights_of_other_steps_are_no_start(segmented, recipe, tmp_path):
    other = train(recipe(steps=GUIDED, curriculum=[STEPS]), tmp_path / "other").weights
    with pytest.raises(InputError, match="holds other steps than the recipe's"):
        train(segmented(start=str(other)), tmp_path / "run")
    with pytest.raises(InputError, match="no weights of that name"):
        train(segmented(start="brain-t2"), tmp_path / "none")


@pytest.mark.parametrize(
    ("curriculum", "changes", "message"),
    [
        ([{**SEGMENTER, "frozen": 1}], {}, r"curriculum.0.frozen: is for the steps"),
        ([{**SEGMENTER, "spacing_mm": 10}], {}, r"curriculum.0.spacing_mm: is for the steps"),
        ([SEGMENTER, {**STEPS, "spacing_mm": 10}], {}, "a segmenter knows images of the data's spacing alone"),
        ([STEPS], {}, "no stage trains the segmenter"),
        ([SEGMENTER], {"data": {"labels": False}, "validation": {"keep_best_by": "loss"}}, "set data.labels to true"),
        ([STEPS], {"start": "x", "validation": {"keep_best_by": "segmentation_dice"}}, "for stages that train"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(segmented, curriculum, changes, message):
    with pytest.raises(InputError, match=message):
        segmented(*curriculum, **changes)


def test_a_segmentation_among_other_steps_cannot_be_trained(recipe):
    steps = {"step": "two_step", "steps": [{**SEGMENTED, "inner": GUIDED}, GUIDED]}
    with pytest.raises(InputError, match="where they hold all others"):
        recipe(steps=steps, curriculum=[STEPS])


@pytest.mark.slow
def test_segmented_weights_can_be_tuned_without_labels(segmented, manifest, tmp_path):
    begun = train(segmented(validation={"keep_best_by": "segmentation_dice", "every": 1}), tmp_path / "begun").weights
    # Where the heads lie is known there; weights do not say where that was kept.
    changes = ["curriculum.0.iterations=2", f"data.cache={manifest.parent / 'cache'}"]
    config = finetuning_config(load_weights(begun), manifest, begun, changes)
    assert config.validation.keep_best_by == "mean_dice"
    tuned = load_weights(train(config, tmp_path / "tuned", root=manifest.parent).weights)
    assert changed(parts(load_weights(begun).step), parts(tuned.step)) == {"step.first.", "step.second."}
    assert tuned.card.labels_used


def test_labels_that_the_manifest_ignores_are_no_structures(recipe, manifest):
    listed = read_manifest(str(manifest)).model_copy(update={"ignore_labels": (2,)})
    three = SEGMENTED | {"segmenter": {"classes": 3, "channels": [8]}}
    config = recipe(steps=three, curriculum=[SEGMENTER])
    assert set(structures_of(config, listed, manifest.parent)) == {1, 3}


def test_a_manifest_without_names_says_what_is_missing(segmented, manifest, tmp_path):
    listed = json.loads(manifest.read_text())
    del listed["label_names"]
    bare = manifest.parent / "bare.json"
    bare.write_text(json.dumps(listed))
    with pytest.raises(InputError, match="'heads': names no labels to segment"):
        train(segmented(data={"manifest": str(bare)}), tmp_path / "run")


def test_another_number_of_structures_is_refused_with_the_right_one(recipe, tmp_path):
    steps = {**SEGMENTED, "segmenter": {"classes": 70}}
    with pytest.raises(InputError, match=r"'heads': names 3 structures.* Set steps.segmenter.classes to 4,"):
        train(recipe(steps=steps, curriculum=[SEGMENTER]), tmp_path / "run")


def test_validation_counts_how_well_structures_are_found(segmented, tmp_path):
    config = segmented()
    data = open_dataset(config, None, tmp_path)
    step = build(config.steps, 3).eval()
    labels = {float(sample[side].sum()): sample[f"{side}_labels"] for sample in data.validation for side in SIDES}
    step.segmenter.forward = lambda image: torch.nn.functional.one_hot(
        as_classes(labels[float(image.sum())], data.structures), 4
    ).movedim(-1, 1).float()  # fmt: skip

    def score():
        judged = validate(
            step, data.validation, config.data.grid(), config.loss.similarity.build(), structures=data.structures
        )
        return judged.measures["segmentation_dice"]

    assert score() == pytest.approx(1)
    labels = {key: torch.where(value == 3, 2, value) for key, value in labels.items()}
    assert 0.4 < score() < 0.7, "one structure is not found, another one is found too large"
