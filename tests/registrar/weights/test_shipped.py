"""The weights that come with stepwarp."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stepwarp.errors import InputError
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_labels
from stepwarp.registrar.weights import SHIPPED, load_weights, shipped, weights_path

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_says_all_that_must_be_known(name):
    card = load_weights(weights_path(name)).card
    assert card.name == name
    assert all((card.data, card.licence, card.machine, card.notes, card.training, card.metrics, card.expects))
    assert card.seconds > 0
    assert card.seed is not None


def test_they_are_small_together():
    assert sum(weights_path(name).stat().st_size for name in SHIPPED) < 25e6


def test_the_cards_to_read_are_those_in_the_files():
    script = ROOT / "benchmarks" / "model_cards.py"
    checked = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


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
def brought(data_folder):
    """name of weights -> the mean Dice of two people never seen, after the affine and after the network alone."""
    from stepwarp.workflow.register import register

    images = [data_folder / "oasis" / f"{name}_SS.nii.gz" for name in ("1000", "1001")]
    labels = [read_labels(data_folder / "oasis" / f"{name}_glm.nii.gz") for name in ("1000", "1001")]

    def overlaps(name):
        found = register(*images, preset="fast", network=name, refine=False)
        network = found.record["network"]
        assert (network["used"], network["unlike"], network["folds"]["count"]) == (True, [], 0)
        ways = (found.affine, found.transform)
        return [mean_dice(dice(labels[0], labels[1].warp(way, labels[0].grid))) for way in ways]

    return {name: overlaps(name) for name in SHIPPED}


@pytest.mark.data
@pytest.mark.parametrize("name", SHIPPED)
def test_brains_of_people_never_seen_are_brought_together(brought, name):
    affine, network = brought[name]
    assert network > affine + 0.12


@pytest.mark.data
def test_labels_in_the_training_bring_them_closer(brought):
    assert brought["brain-t1-labels"][1] > brought["brain-t1"][1] + 0.005
