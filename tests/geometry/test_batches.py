"""Batches of transforms, as networks find them: each of a batch is a transform, and gradients flow through all."""

import numpy as np
import pytest
import torch
from tests.geometry.conftest import AXES, placed

from stepwarp.geometry import Affine, DisplacementField, Grid

GRIDS = {"1D": Grid.isotropic((25,), 1.3), "2D": Grid.isotropic((14, 19), 0.8), "3D": placed(AXES["oblique"])}


@pytest.fixture(params=GRIDS)
def grid(request: pytest.FixtureRequest) -> Grid:
    return GRIDS[request.param]


@pytest.fixture
def elsewhere(grid: Grid) -> Grid:
    """Another lattice over most of the same box."""
    affine = grid.affine @ np.diag([*([0.7] * grid.ndim), 1.0])
    affine[:-1, -1] += grid.linear @ np.full(grid.ndim, 1.1)
    return Grid((16, 19, 12)[: grid.ndim], affine)


@pytest.fixture
def fields(smooth_field):
    """grid, seed, amplitude in mm -> two fields in a batch, different ones."""

    def make(grid: Grid, seed: int = 0, amplitude: float = 0.5) -> DisplacementField:
        pair = [smooth_field(grid, amplitude, 2 * seed + number).displacement for number in (0, 1)]
        return DisplacementField(torch.cat(pair), grid)

    return make


@pytest.fixture
def affines():
    """grid, seed -> two affines in a batch, near the identity, about the grid's centre."""

    def make(grid: Grid, seed: int = 0) -> Affine:
        change = 0.05 * torch.randn(2, grid.ndim, grid.ndim, generator=torch.Generator().manual_seed(seed)).double()
        linear, centre = torch.eye(grid.ndim) + change, torch.from_numpy(grid.centre)[:, None]
        return Affine(torch.cat([linear, centre - linear @ centre + 0.3], -1))

    return make


@pytest.mark.parametrize(
    "kind", ["field", "affine", "affine, affine", "field, affine", "affine, field", "three", "one"]
)
def test_a_batch_is_each_of_its_transforms(kind: str, grid: Grid, elsewhere: Grid, fields, affines, points_in):
    phi, psi, affine = fields(grid), fields(elsewhere, 1), affines(grid)
    batch = {
        "field": phi,
        "affine": affine,
        "affine, affine": affine @ affines(grid, 1),
        "field, affine": phi @ affine,
        "affine, field": affine @ phi,
        "three": phi @ affine @ psi,
        "one": phi[1] @ affine,
    }[kind]
    points, inverse = torch.from_numpy(points_in(grid)), batch.inverse()
    there, back = batch(points[None]), inverse(batch(points[None]))
    assert len(batch) == len(inverse) == len(there) == 2
    torch.testing.assert_close(batch(points.expand(2, -1, -1)), there)
    for number in (0, 1):
        single = batch[number]
        assert len(single) == 1
        torch.testing.assert_close(there[number], single(points))
        torch.testing.assert_close(back[number], single.inverse()(there[number]), atol=1e-3, rtol=0)
        sampled = batch.on(elsewhere).displacement[number]
        torch.testing.assert_close(sampled, single.on(elsewhere).displacement[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(back[number], points, atol=0.05, rtol=0)


def test_collapsed_is_exact_at_the_voxels_for_two_and_close_for_more(grid: Grid, fields, affines):
    affine, field = affines(grid), fields(grid)
    assert affine.collapsed(grid) is affine
    assert field.collapsed(grid) is field
    more = fields(grid, 0, 0.2) @ fields(grid, 1, 0.2) @ fields(grid, 2, 0.2)
    for chain, left in ((affine @ field, 2e-5), (field @ fields(grid, 1), 1e-5), (more, 0.03)):
        collapsed = chain.collapsed(grid)
        assert isinstance(collapsed, DisplacementField)
        torch.testing.assert_close(collapsed.displacement, chain.on(grid).displacement, atol=left, rtol=0)


def test_half_precision_is_widened(grid: Grid, fields):
    exact = fields(grid).displacement
    assert DisplacementField(exact.bfloat16(), grid).displacement.dtype == torch.float32
    assert DisplacementField(exact.double(), grid).displacement.dtype == torch.float64


def test_mixed_precision_does_not_reach_positions(grid: Grid, elsewhere: Grid, fields, affines, points_in):
    through, points = affines(grid) @ fields(elsewhere) @ fields(grid, 1), torch.from_numpy(points_in(grid))[None]

    def results() -> list[torch.Tensor]:
        sampled = [each.on(grid).displacement for each in (through, through.collapsed(grid), through.inverse())]
        return [through(points), *sampled]

    exact = results()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = results()
    torch.testing.assert_close(mixed, exact)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_are_right(dims: int):
    """By finite differences in double precision, of the points, the fields and the affine, at points and on grids."""
    shape = (4, 3, 3)[:dims]
    grid, other = Grid.isotropic(shape, 1.3), Grid.isotropic((3, 4, 2)[:dims], 1.7)
    random = torch.Generator().manual_seed(4)

    def doubles(*size: int) -> torch.Tensor:
        return (torch.rand(*size, generator=random, dtype=torch.float64) * 0.3 + 0.05).requires_grad_()

    def chain(first, second, change):
        still = torch.eye(dims, dims + 1, dtype=torch.float64)
        return DisplacementField(first, grid) @ Affine(still + change) @ DisplacementField(second, other)

    def at(points, *parts):
        return chain(*parts)(points)

    def on(*parts):
        return chain(*parts).on(other).displacement

    parts = doubles(1, dims, *shape), doubles(1, dims, *other.shape), doubles(1, dims, dims + 1)
    assert torch.autograd.gradcheck(at, (doubles(1, 3, dims), *parts))
    assert torch.autograd.gradcheck(on, parts)
