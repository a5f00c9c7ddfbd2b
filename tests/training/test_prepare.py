import json

import numpy as np
import pytest
import torch

from stepwarp.config import AffineSettings, Preset, preset
from stepwarp.data.manifest import Scan
from stepwarp.data.mni152 import mni152
from stepwarp.errors import OutputError
from stepwarp.files import write_volume
from stepwarp.geometry import Affine, Image, LabelMap
from stepwarp.training import prepare
from stepwarp.training.prepare import align, in_own_size

TURN = np.array([[0.98, -0.17, 0.0, 12.0], [0.18, 1.02, 0.05, -7.0], [0.0, -0.04, 0.95, 4.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def brain():
    """MNI152 at 4 mm."""
    return mni152().brain.coarser(4)


@pytest.fixture
def quick(monkeypatch, brain):
    """Aligns to the brain at 4 mm, and not finely, so that it is quick."""
    affine = AffineSettings(across=10, refine_across=(20,), candidates=1)
    monkeypatch.setattr(prepare, "_reference", lambda: brain)
    monkeypatch.setattr(prepare, "preset", lambda name: Preset(affine=affine, deformable=preset(name).deformable))


def shifted(brain, folder, name):
    """The brain, moved by TURN, as a file."""
    moved = Image(brain.data * 900, brain.grid).warp(Affine(np.linalg.inv(TURN)), brain.grid)
    write_volume(folder / f"{name}.nii.gz", moved)
    return Scan(name, folder / f"{name}.nii.gz")


def off_mm(found, brain):
    """The largest error inside the brain."""
    points = (brain.data > 0.2).nonzero()[::20].numpy() @ brain.grid.linear.T + brain.grid.affine[:3, 3]
    return np.linalg.norm(Affine(found)(points) - Affine(TURN)(points), axis=1).max()


def test_a_scan_is_found_once_and_kept(brain, quick, tmp_path, monkeypatch):
    scan = shifted(brain, tmp_path, "a")
    reports = []
    found = align([scan], tmp_path / "kept", progress=reports.append)
    assert off_mm(found["a"], brain) < 2.5
    assert [(report.stage, report.done, report.total) for report in reports] == [("align", 0, 1), ("align", 1, 1)]

    def never(*arguments):
        raise AssertionError("it was there already")

    monkeypatch.setattr(prepare, "_align", never)
    renamed = Scan("b", scan.image.rename(tmp_path / "elsewhere.nii.gz"))
    assert np.array_equal(align([renamed], tmp_path / "kept")["b"], found["a"])

    (place,) = (tmp_path / "kept").iterdir()
    place.write_text(place.read_text()[:40])
    monkeypatch.setattr(prepare, "_align", lambda scan, device: (TURN, 0.5))
    assert np.array_equal(align([renamed], tmp_path / "kept")["b"], TURN), "a damaged entry is made anew"
    assert json.loads(place.read_text())["loss"] == 0.5


def test_a_label_map_without_an_image_is_painted(brain, tmp_path):
    labels = LabelMap(torch.where(brain.data > 0.3, 2, 0) + torch.where(brain.data > 0.8, 39, 0), brain.grid)
    write_volume(tmp_path / "labels.nii.gz", labels)
    image = prepare._image(Scan("a", tmp_path / "labels.nii.gz", labels=tmp_path / "labels.nii.gz"))
    assert image.data.max() == 1
    bright = prepare._image(Scan("a", tmp_path / "labels.nii.gz"))
    assert not torch.equal(image.data, bright.data)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Choose another cache"):
        align([], tmp_path / "file" / "kept")


def test_an_alignment_without_its_size_turns_and_shifts_alone():
    centre = np.array([3.0, -18, 8])
    rigid = in_own_size(TURN, centre)
    assert np.allclose(rigid[:3, :3] @ rigid[:3, :3].T, np.eye(3))
    assert np.linalg.det(rigid) == pytest.approx(1)
    assert np.allclose(Affine(rigid)(centre), Affine(TURN)(centre))
    assert np.allclose(in_own_size(np.diag([1.2, 1.2, 1.2, 1]) @ rigid, centre)[:3, :3], rigid[:3, :3])
