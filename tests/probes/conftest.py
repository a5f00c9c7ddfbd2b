"""Steps whose answers are known, and pairs of small smooth images."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import stepwarp
from stepwarp.geometry import DisplacementField, Grid
from stepwarp.kernels import sampling, smoothing
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.probes.objective import PairObjective
from stepwarp.registrar.steps import Images, Repeat, Step

assert stepwarp  # before torch computes


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    return


def smooth_images(batch: int, shape: tuple[int, ...], seed: int, sigma: float = 2.0) -> Tensor:
    """Random images of about 0..1 that fade to 0 at the border, (batch, 1, *shape)."""
    noise = torch.randn(batch, 1, *shape, generator=torch.Generator().manual_seed(seed))
    image = smoothing.gaussian(noise, sigma)
    image = 0.5 + 0.5 * image / image.abs().amax()
    for axis, n in enumerate(shape):
        window = torch.hann_window(n + 2, periodic=False)[1:-1].clamp(0, 0.3) / 0.3
        image = image * window.view(-1, *[1] * (len(shape) - 1 - axis))
    return image


class Descent(Step):
    """One gradient descent step on SSD, taken against the compositional gradient."""

    def __init__(self, rate: float, sigma: float = 0.0) -> None:
        super().__init__()
        self.rate = rate
        self.sigma = sigma

    def forward(self, fixed: Images, moving: Images) -> DisplacementField:
        slope = 2 * (moving.data - fixed.data) / fixed.data[0].numel()
        psi = -self.rate * sampling.scaled_gradient(slope, moving.data)
        return DisplacementField(smoothing.gaussian(psi, self.sigma), fixed.grid)


class Ignorant(Step):
    """The same field whatever it is given."""

    def __init__(self, field: Tensor) -> None:
        super().__init__()
        self.register_buffer("field", field)

    def forward(self, fixed: Images, moving: Images) -> DisplacementField:
        batch = len(moving.data)
        return DisplacementField(self.field.expand(batch, *self.field.shape[1:]).contiguous(), fixed.grid)


class Halving(Step):
    def forward(self, fixed: Images, moving: Images) -> DisplacementField:
        return DisplacementField(0.5 * (fixed.data - moving.data), fixed.grid)


@pytest.fixture
def grid() -> Grid:
    return Grid((20, 24), np.eye(3))


@pytest.fixture
def pairs(grid: Grid) -> tuple[Images, Images]:
    """Six pairs: the moving image a warped fixed one."""
    fixed = smooth_images(6, grid.shape, seed=0)
    noise = torch.randn(6, 2, *grid.shape, generator=torch.Generator().manual_seed(1))
    field = smoothing.gaussian(noise, 3)
    field = 2.5 * field / field.square().sum(1).amax((1, 2)).sqrt().view(-1, 1, 1, 1)
    images = Images(fixed, grid)
    return images, images.warp(DisplacementField(field, grid))


@pytest.fixture
def objective() -> PairObjective:
    return PairObjective(SSD(), "diffusion", 0.01)


@pytest.fixture
def random_field(grid: Grid) -> Tensor:
    noise = torch.randn(1, grid.ndim, *grid.shape, generator=torch.Generator().manual_seed(5))
    return smoothing.gaussian(noise, 2) * 2


@pytest.fixture
def ignorant(random_field: Tensor) -> Step:
    """A registrar of five steps that ignores its images."""
    return Repeat(Ignorant(random_field), 5)


@pytest.fixture
def descent() -> Callable[..., Step]:
    """A registrar of five steps of gradient descent on SSD: (rate, sigma of the gradient)."""

    def make(rate: float = 3000.0, sigma: float = 0.0, n: int = 5) -> Step:
        return Repeat(Descent(rate, sigma), n)

    return make


@pytest.fixture
def contraction() -> Step:
    """Of two-channel images that are coordinate ramps, a step that halves the distance to the fixed ones."""
    return Repeat(Halving(), 6)


@pytest.fixture
def ramps(grid: Grid) -> Images:
    return Images(grid.indices().expand(3, -1, -1, -1).contiguous().float(), grid)
