"""The weights that come with stepwarp."""

import runpy
import shutil
from pathlib import Path

import pytest

from stepwarp.errors import InputError
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_image, read_labels
from stepwarp.registrar.weights import SHIPPED, SHIPPED_SEGMENTERS, load_weights, shipped, weights_path

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_says_all_that_must_be_known(name):
    card = load_weights(weights_path(name)).card
    assert card.name == name
    assert all((card.data, card.licence, card.machine, card.notes, card.training, card.expects))
    assert card.metrics or not card.training["settings"]["data"]["held_out"], "of those held out, if any"
    assert card.seconds > 0
    assert card.seed is not None


def test_they_are_small_together():
    assert sum(weights_path(name).stat().st_size for name in [*SHIPPED, *SHIPPED_SEGMENTERS]) < 25e6


@pytest.mark.parametrize("name", SHIPPED_SEGMENTERS)
def test_what_registers_nothing_says_what_it_is_for(name):
    with pytest.raises(InputError, match=r"registers nothing\. It is for stepwarp segment"):
        load_weights(weights_path(name))


def test_the_cards_to_read_are_those_in_the_files():
    script = runpy.run_path(str(ROOT / "benchmarks" / "model_cards.py"))
    assert script["cards"]() == script["CARDS"].read_text()


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    released = weights_path("brain-t1")
    folder = tmp_path / "weights"
    folder.mkdir()
    shutil.copy(released, folder)
    monkeypatch.setattr(shipped.resources, "files", lambda package: tmp_path)
    assert weights_path("brain-t1") == folder / released.name
    with (folder / released.name).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(InputError, match="not the file that was released"):
        weights_path("brain-t1")


@pytest.fixture(scope="module")
def two_people(data_folder):
    """What the mean Dice of two people never seen is after a transform, and how their images are registered: of 2 mm,
    finer than which neither networks nor `fast` look."""
    from stepwarp.workflow.register import register

    images = [read_image(data_folder / "oasis" / f"{name}_SS.nii.gz").coarser(2) for name in ("1000", "1001")]
    fixed, moving = (read_labels(data_folder / "oasis" / f"{name}_glm.nii.gz") for name in ("1000", "1001"))
    return (
        lambda way: mean_dice(dice(fixed, moving.warp(way, fixed.grid))),
        lambda **choices: register(*images, preset="fast", **choices),
    )


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", SHIPPED)
def test_brains_of_people_never_seen_are_brought_together(two_people, name):
    overlap, register = two_people
    found = register(weights=name, refine=False)
    network = found.record["network"]
    assert (network["used"], network["unlike"], network["folds"]["count"]) == (True, [], 0)
    assert overlap(found.transform) > overlap(found.affine) + 0.12


@pytest.mark.slow
@pytest.mark.data
def test_after_labels_in_the_training_a_preset_comes_further_than_by_itself(two_people):
    overlap, register = two_people
    alone, after = (overlap(register(weights=name).transform) for name in (None, "brain-t1-labels"))
    assert after > alone + 0.005
