"""Grids of every dimension, smooth maps on them, and steps whose answer is known without training."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from stepwarp.geometry import Affine, DisplacementField, Grid
from stepwarp.registrar.steps import Images, Step

SHAPES = {1: (19,), 2: (14, 11), 3: (9, 12, 7)}


@pytest.fixture(params=SHAPES, ids=lambda dims: f"{dims}D")
def dims(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def grid(dims: int) -> Grid:
    """Odd and even sizes, anisotropic, oblique in 3D, away from the world's origin."""
    affine = np.eye(dims + 1)
    affine[:-1, :-1] = np.diag([1.5, 0.8, 2.2][:dims])
    if dims == 3:
        affine[:3, :3] = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix() @ affine[:3, :3]
    affine[:-1, -1] = [40, -30, 25][:dims]
    return Grid(SHAPES[dims], affine)


@pytest.fixture
def smooth() -> Callable[..., DisplacementField]:
    """grid, voxels, seed, batch -> a batch of fields of slow waves of that amplitude."""

    def make(grid: Grid, voxels: float = 0.8, seed: int = 0, batch: int = 2) -> DisplacementField:
        random = torch.Generator().manual_seed(seed)
        share = grid.indices() / (torch.tensor(grid.shape).view(1, -1, *[1] * grid.ndim) - 1)
        waves = torch.rand(batch, grid.ndim, grid.ndim, generator=random) * 4 - 2
        phase = torch.rand(batch, grid.ndim, *[1] * grid.ndim, generator=random) * 6
        return DisplacementField(
            voxels * torch.sin(torch.einsum("nab,nb...->na...", waves, share.expand(batch, -1, *grid.shape)) + phase),
            grid,
        )

    return make


@pytest.fixture
def matrices() -> Callable[..., Affine]:
    """grid, seed, batch -> matrices near the identity, about the grid's centre."""

    def make(grid: Grid, seed: int = 0, batch: int = 2) -> Affine:
        random = torch.Generator().manual_seed(seed)
        linear = torch.eye(grid.ndim).double() + 0.1 * torch.randn(
            batch, grid.ndim, grid.ndim, generator=random, dtype=torch.float64
        )
        centre = torch.from_numpy(grid.centre)[:, None]
        return Affine(torch.cat([linear, centre - linear @ centre + 0.3], -1))

    return make


@pytest.fixture
def noise() -> Callable[..., Images]:
    """grid, seed, batch -> images without any structure."""

    def make(grid: Grid, seed: int = 0, batch: int = 2) -> Images:
        data = torch.rand(batch, 1, *grid.shape, generator=torch.Generator().manual_seed(seed))
        return Images(data, grid)

    return make


@pytest.fixture
def inside() -> Callable[..., Tensor]:
    """grid, margin -> world points (1, 50, D), at least that many voxels away from the border."""

    def make(grid: Grid, margin: float = 2.5) -> Tensor:
        random = np.random.default_rng(3)
        index = margin + random.random((50, grid.ndim)) * (np.array(grid.shape) - 1 - 2 * margin)
        return torch.from_numpy(index @ grid.linear.T + grid.affine[:-1, -1])[None]

    return make


class SmallNet(nn.Module):
    """One convolution of both images: (B, D, *grid), of random weights."""

    def __init__(self, dims: int, scale: float = 1.0) -> None:
        super().__init__()
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.convolution = convolution(2, dims, 3, padding=1)
        self.scale = scale

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.convolution(torch.cat([fixed, moving], 1)))


class SmallMatrixNet(nn.Module):
    """Linear in the images' first voxels: (B, D, D + 1)."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims
        self.linear = nn.Linear(8, dims * (dims + 1))

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        seen = torch.cat([fixed.flatten(1)[:, :4], moving.flatten(1)[:, :4]], 1)
        return 0.1 * self.linear(seen).reshape(-1, self.dims, self.dims + 1)


class Constant(nn.Module):
    """The same output whatever it sees, as a parameter."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        return self.output.expand(len(fixed), *self.output.shape)


class Known(Step):
    """Finds the map that a function of the images' grid gives."""

    def __init__(self, find: Callable[[Grid], DisplacementField | Affine]) -> None:
        super().__init__()
        self.find = find
        self.seen: list[Images] = []

    def forward(self, fixed: Images, moving: Images) -> DisplacementField | Affine:
        self.seen.append(moving)
        return self.find(fixed.grid)


class CentreOfMass(Step):
    """A share of the way between the images' centres of mass, in world mm."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share

    def forward(self, fixed: Images, moving: Images) -> Affine:
        way = self.share * (_centre(moving) - _centre(fixed))
        still = torch.eye(fixed.grid.ndim).double().expand(len(way), -1, -1)
        return Affine(torch.cat([still, way[..., None]], -1))


def _centre(images: Images) -> Tensor:
    d = images.grid.ndim
    weight = images.data.double()
    index = (images.grid.indices(dtype=torch.float64) * weight).flatten(2).sum(2) / weight.flatten(2).sum(2)
    return index @ torch.from_numpy(images.grid.linear.copy()).T + torch.from_numpy(images.grid.affine[:d, d].copy())


@pytest.fixture
def steps() -> type:
    """The steps and networks above, for tests: `steps.SmallNet(2)`."""

    class Namespace:
        pass

    for each in (SmallNet, SmallMatrixNet, Constant, Known, CentreOfMass):
        setattr(Namespace, each.__name__, each)
    return Namespace
