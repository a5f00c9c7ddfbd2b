"""Small pairs of images in the world, and small networks with weights that are not zero."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from stepwarp.geometry import Affine, Grid, Image, Transform
from stepwarp.kernels.smoothing import gaussian
from stepwarp.registrar.steps.config import StepConfig, build, read_step


def blobs(grid: Grid, seed: int, name: str = "image", unit: float = 300.0) -> Image:
    """Smooth structure of any size, 0 to about `unit`."""
    data = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(seed))
    smooth = gaussian(data, 1.5)[0, 0]
    return Image((smooth - smooth.min()) / (smooth.max() - smooth.min()) * unit, grid, name)


@pytest.fixture
def pair() -> tuple[Image, Image]:
    """Two volumes of other sizes, spacings and obliquities, their axes nearest to right, anterior, superior."""
    found = []
    for seed, (shape, spacing, angles) in enumerate(
        (((21, 26, 17), (1.1, 0.9, 1.8), (8, -5, 12)), ((18, 22, 24), (1.4, 1.2, 1.0), (-4, 9, -15)))
    ):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
        affine[:3, 3] = np.array([-20, 35, 60.0]) * (seed + 1)
        found.append(blobs(Grid(shape, affine), seed, f"volume {seed}"))
    return found[0], found[1]


@pytest.fixture
def restored() -> Callable[[Image, tuple[int, ...], tuple[bool, ...]], Image]:
    """image, order, flips -> the same image, stored with its axes in another order and direction."""

    def make(image: Image, order: tuple[int, ...], flips: tuple[bool, ...]) -> Image:
        data = image.data.permute(order)
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for axis, (source, flipped) in enumerate(zip(order, flips, strict=True)):
            matrix[source, axis] = -1 if flipped else 1
            matrix[source, 3] = image.grid.shape[source] - 1 if flipped else 0
        data = data.flip([axis for axis, flipped in enumerate(flips) if flipped])
        return Image(data, Grid(tuple(data.shape), image.grid.affine @ matrix), image.name)

    return make


@pytest.fixture
def points() -> Callable[[Image], np.ndarray]:
    """image -> world points (60, 3) all over it."""

    def make(image: Image) -> np.ndarray:
        share = np.random.default_rng(0).random((60, 3))
        return Affine(image.grid.affine)(share * (np.array(image.grid.shape) - 1))

    return make


@pytest.fixture
def furthest() -> Callable[[Transform, Transform, np.ndarray], float]:
    """The largest distance in mm between where two transforms send points."""

    def distance(one: Transform, other: Transform, at: np.ndarray) -> float:
        return float(np.linalg.norm(one(at) - other(at), axis=1).max())

    return distance


@pytest.fixture
def config() -> StepConfig:
    net = {"kind": "unet", "channels": [4, 6]}
    return read_step(
        {"step": "two_step", "steps": [{"step": "matrix", "net": {"channels": [4]}}, {"step": "velocity", "net": net}]}
    )


@pytest.fixture
def state(config: StepConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        name: weights + 0.05 * torch.randn(weights.shape) for name, weights in build(config, 3).state_dict().items()
    }
