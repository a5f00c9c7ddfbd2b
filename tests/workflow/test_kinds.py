"""Images and label maps told apart by their values."""

import numpy as np
import pytest

from stepwarp.files import read_either
from stepwarp.workflow.kinds import kind_of

RNG = np.random.default_rng(0)
PATCHES = np.kron(RNG.integers(0, 40, (6, 6, 6)), np.ones((5, 5, 5), np.int64))
SMOOTH = np.add.outer(np.add.outer(np.arange(30) ** 2, np.arange(30) ** 2), np.arange(30) ** 2)
POINTS = np.zeros((30, 30, 30), np.int64)
POINTS[3::6, 3::6, 3::6] = np.arange(1, 126).reshape(5, 5, 5)
LINE = np.zeros((30, 30, 30), np.int64)
LINE[3:13, 4, 5] = np.arange(1, 11)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (PATCHES, "labels"),
        (np.where(PATCHES == 7, -1, PATCHES), "labels"),
        (np.where(np.arange(30) < 15, -PATCHES, PATCHES), "labels"),
        (PATCHES * 10**9, "labels"),
        (POINTS, "labels"),
        (RNG.integers(0, 2, (30, 30, 30)), "labels"),
        (SMOOTH + RNG.integers(0, 30, SMOOTH.shape), "image"),
        (SMOOTH // 10 + RNG.integers(0, 30, SMOOTH.shape) - 1000, "image"),
        (LINE, "unsure"),
        (RNG.permutation(27000).reshape(30, 30, 30), "unsure"),
    ],
    ids=["patches", "-1", "sides", "large", "points", "mask", "image", "CT", "contacts in a row", "an id per voxel"],
)
def test_what_whole_numbers_are(values, kind):
    assert kind_of(values) == kind


@pytest.mark.slow
def test_every_development_volume_is_known(data_folder):
    for path in sorted(data_folder.rglob("*.nii.gz")):
        voxels, _ = read_either(path)
        found = kind_of(voxels.labels().numpy()) if voxels.are_whole else "image"
        expected = "labels" if any(word in path.name for word in ("glm", "label", "seg", "mask")) else "image"
        assert found == expected, path.name
