"""Small scans as files, and the same scans on a small box."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stepwarp.data.manifest import Scan
from stepwarp.data.scans import About, BoxScan, HeldScans
from stepwarp.data.settings import box_grid
from stepwarp.files import write_volume
from stepwarp.geometry import Grid, Image, LabelMap
from stepwarp.registrar.weights.recipe import Recipe, Spacing, Tissue

#: World points (mm) of two round structures, in the scan.
LANDMARKS = {3: np.array([4.0, -6.0, 5.0]), 7: np.array([-9.0, 3.0, -2.0])}


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test here runs on one thread."""


@pytest.fixture
def box() -> Grid:
    """20 x 24 x 18 voxels of 2 mm around (1, -2, 3)."""
    return box_grid((1, -2, 3), (40, 48, 36), 2)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(intensities=Tissue(), grid=Spacing(mm=2))


def structures(grid: Grid) -> tuple[Image, LabelMap]:
    """A soft ball at each landmark, and both as labels."""
    points = grid.indices(dtype=torch.float64)[0].flatten(1).T.numpy() @ grid.linear.T + grid.affine[:3, 3]
    distances = {label: np.linalg.norm(points - at, axis=1).reshape(grid.shape) for label, at in LANDMARKS.items()}
    image = sum(np.exp(-0.5 * (away / 3.5) ** 2) for away in distances.values())
    labels = sum(label * (away < 5) for label, away in distances.items())
    return Image(torch.from_numpy(image).float() * 900, grid), LabelMap(torch.from_numpy(labels).short(), grid)


@pytest.fixture
def scan_at(tmp_path: Path) -> Callable[..., Scan]:
    """name, grid -> a scan with the structures, in files."""

    def make(name: str, grid: Grid, **more: str) -> Scan:
        image, labels = structures(grid)
        paths = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_labels.nii.gz"
        write_volume(paths[0], image, dtype=torch.int16)
        write_volume(paths[1], labels)
        return Scan(name, *paths, **more)

    return make


@pytest.fixture
def held(box: Grid) -> Callable[..., HeldScans]:
    """count, split of each, person of each -> random blobs on the box, every one of another brightness and place."""

    def make(count: int = 4, splits: str = "", people: str = "") -> HeldScans:
        about, scans = {}, {}
        index = np.stack(np.meshgrid(*map(np.arange, box.shape), indexing="ij"), -1)
        for number in range(count):
            rng = np.random.default_rng(number)
            away = np.linalg.norm(index - np.array(box.shape) / 2 + rng.uniform(-2, 2, 3), axis=-1)
            image = torch.from_numpy(np.exp(-((away / 6) ** 2)) * (away < 9))
            left = index[..., 0] < box.shape[0] / 2
            places = torch.from_numpy(np.where(away < 6, 1 + left, 0)).to(torch.uint8)
            name = f"s{number}"
            about[name] = About(name, f"split_{splits[number]}" if splits else "training", people[number : number + 1])
            scans[name] = BoxScan(
                (image * 255).round().to(torch.uint8),
                (1 + number / 10) / 255,
                torch.eye(4, dtype=torch.float64),
                places,
                torch.tensor([0, 41, 2], dtype=torch.int32),
            )
        return HeldScans(box, about, scans)

    return make
