"""Grids of every orientation, and smooth fields and points on them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from stepwarp.geometry import Affine, DisplacementField, Grid

SHAPE = (13, 16, 11)
SPACING = np.array([1.5, 0.8, 2.2])
AXES = {
    "RAS": np.eye(3),
    "LAS": np.diag([-1.0, 1.0, 1.0]),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "oblique": Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix(),
}


def placed(axes: np.ndarray, shape: tuple[int, ...] = SHAPE, spacing: np.ndarray = SPACING) -> Grid:
    """A grid whose centre lies near (5, -7, 11) mm, away from the world's origin."""
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = np.array([5.0, -7.0, 11.0]) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Grid(shape, affine)


@pytest.fixture(params=AXES)
def grid(request: pytest.FixtureRequest) -> Grid:
    """An anisotropic, odd-sized grid in one orientation after the other."""
    return placed(AXES[request.param])


@pytest.fixture
def moving_grid() -> Grid:
    """A grid that overlaps with `grid` in part and shares neither its axes nor its spacing."""
    axes = Rotation.from_euler("zxy", (15, 100, -10), degrees=True).as_matrix()
    return placed(axes, (12, 9, 17), np.array([1.1, 1.9, 1.3]))


@pytest.fixture
def smooth_field() -> Callable[..., DisplacementField]:
    """grid, amplitude in mm, seed -> a field of slow waves, a contraction for amplitudes of about a millimetre."""

    def make(grid: Grid, amplitude: float = 1.0, seed: int = 0) -> DisplacementField:
        rng = np.random.default_rng(seed)
        index = np.stack(np.meshgrid(*[np.linspace(0, 1, n) for n in grid.shape], indexing="ij"), -1)
        waves = [np.sin(index @ rng.uniform(-3, 3, grid.ndim) + rng.uniform(0, 6)) for _ in range(grid.ndim)]
        return DisplacementField.from_millimetres(amplitude * np.stack(waves, -1), grid)

    return make


@pytest.fixture
def affine() -> Affine:
    """A rotation with scales and a shear, and a shift of a few millimetres, about a point near the grids."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec((0.1, -0.15, 0.2)).as_matrix() @ [[1.1, 0.1, 0], [0, 0.9, 0], [0, 0, 1.05]]
    centre = np.array([5.0, -7.0, 11.0])
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + [0.7, -1.1, 0.5]
    return Affine(matrix)


@pytest.fixture
def points_in() -> Callable[..., np.ndarray]:
    """grid, margin -> world points inside the grid, at least that share of it away from its border."""

    def make(grid: Grid, margin: float = 0.25, count: int = 200) -> np.ndarray:
        share = np.random.default_rng(7).uniform(margin, 1 - margin, (count, grid.ndim))
        return share * (np.array(grid.shape) - 1) @ grid.linear.T + grid.affine[:-1, -1]

    return make


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    """shape, seed -> values without any structure in 0..1: the hardest to interpolate."""

    def make(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")
