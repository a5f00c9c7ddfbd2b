"""Maps are what `geometry` says a transform is, batched and differentiable."""

import numpy as np
import pytest
import torch

from stepwarp.geometry import Affine, Composition, Grid, Image
from stepwarp.registrar.steps import ComposedMap, FieldMap, Images, MatrixMap


def other_grid(grid: Grid) -> Grid:
    """Another lattice over most of the same box."""
    d = grid.ndim
    affine = grid.affine @ np.diag([*([0.7] * d), 1.0])
    affine[:-1, -1] += grid.linear @ np.full(d, 1.1)
    return Grid((8, 9, 6)[:d], affine)


@pytest.mark.parametrize("kind", ["field", "matrix", "field after matrix", "matrix after field", "three"])
def test_a_map_is_its_transform(kind, grid, smooth, matrices, inside):
    phi, psi, matrix = smooth(grid), smooth(other_grid(grid), seed=1), matrices(grid)
    each = {
        "field": phi,
        "matrix": matrix,
        "field after matrix": phi @ matrix,
        "matrix after field": matrix @ phi,
        "three": phi @ matrix @ psi,
    }[kind]
    points = inside(grid)
    moved = each.at(points)
    elsewhere = other_grid(grid)
    for number in (0, 1):
        transform = each.transform(number)
        np.testing.assert_allclose(moved[number], transform(points[0].numpy()), atol=2e-5)
        np.testing.assert_allclose(each.on(elsewhere)[number], transform.on(elsewhere).displacement[0], atol=3e-5)


def test_matrices_stay_a_matrix_and_the_rest_its_parts(grid, smooth, matrices):
    a, b, c = matrices(grid), matrices(grid, 1), smooth(grid)
    assert isinstance(a @ b, MatrixMap)
    product = (a @ b).transform(1)
    np.testing.assert_allclose(product.matrix, Composition.of(a.transform(1), b.transform(1)).matrix, atol=1e-12)
    assert isinstance(product, Affine)
    chain = (c @ a) @ (b @ c)
    assert isinstance(chain, ComposedMap)
    assert [type(part) for part in chain.parts] == [FieldMap, MatrixMap, FieldMap]


def test_collapsed_is_exact_at_the_voxels_for_two_fields_and_close_for_more(grid, smooth):
    two = smooth(grid, 0.6) @ smooth(grid, 0.6, 1)
    torch.testing.assert_close(two.collapsed(grid).on(grid), two.on(grid), atol=1e-5, rtol=0)
    many = smooth(grid, 0.3) @ smooth(grid, 0.3, 1) @ smooth(grid, 0.3, 2) @ smooth(grid, 0.3, 3)
    torch.testing.assert_close(many.collapsed(grid).on(grid), many.on(grid), atol=0.05, rtol=0)
    assert isinstance(many.collapsed(grid), FieldMap)


def test_collapsing_affine_parts_loses_nothing(grid, smooth, matrices):
    affine, field = matrices(grid), smooth(grid)
    chain = affine @ field
    torch.testing.assert_close(chain.collapsed(grid).on(grid), chain.on(grid), atol=2e-5, rtol=0)
    assert affine.collapsed(grid) is affine
    assert field.collapsed(grid) is field


@pytest.mark.parametrize("kind", ["field", "matrix"])
def test_images_warp_as_geometry_does(kind, grid, smooth, matrices, noise):
    through = smooth(grid, 1.7) if kind == "field" else matrices(grid)
    images = noise(grid)
    warped = images.warp(through)
    for number in (0, 1):
        alone = Image(images.data[number, 0], grid).warp(through.transform(number))
        torch.testing.assert_close(warped.data[number, 0], alone.data, atol=2e-5, rtol=0)


def test_beyond_the_image_is_0_or_its_border(grid, noise):
    images = noise(grid, batch=1)
    far = FieldMap(torch.full((1, grid.ndim, *grid.shape), 1000.0), grid)
    assert images.warp(far).data.abs().max() == 0
    corner = images.data[(0, 0, *[-1] * grid.ndim)]
    torch.testing.assert_close(images.warp(far, "border").data, corner.expand(1, 1, *grid.shape))


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("corner_aligned", [False, True])
def test_what_pooling_moves(factor: int, corner_aligned: bool, grid):
    """A ramp in world mm keeps its values where they are; with aligned corners it is off by up to half a voxel."""
    ramp = (grid.indices() * torch.from_numpy(grid.linear.copy()).float().sum(0).view(1, -1, *[1] * grid.ndim)).sum(1)
    images = Images(ramp[None], grid)
    pooled = images.pooled(factor, corner_aligned)
    own = pooled.grid.indices(dtype=torch.float64)
    world = np.einsum("ab,b...->a...", pooled.grid.linear, own[0].numpy())
    expected = (world + (pooled.grid.affine - grid.affine)[:-1, -1].reshape(-1, *[1] * grid.ndim)).sum(0)
    whole = tuple(slice(n // factor) for n in grid.shape)
    error = np.abs(pooled.data[0, 0].numpy() - expected)[whole].max()
    assert (error < 1e-3) == (not corner_aligned)
    if corner_aligned:
        assert np.allclose(pooled.grid.corners(), grid.corners())


def test_a_batch_of_images_has_one_grid(grid):
    image = Image(torch.ones(grid.shape), grid)
    assert Images.stack([image, image]).data.shape == (2, 1, *grid.shape)
    with pytest.raises(ValueError, match="one grid"):
        Images.stack([image, Image(torch.ones(grid.shape), Grid(grid.shape, 2 * grid.affine - np.eye(grid.ndim + 1)))])


def test_half_precision_is_widened(grid):
    assert (
        FieldMap(torch.zeros(1, grid.ndim, *grid.shape, dtype=torch.bfloat16), grid).displacement.dtype == torch.float32
    )


def test_mixed_precision_does_not_reach_positions(grid, smooth, matrices, noise):
    through = matrices(grid) @ smooth(other_grid(grid)) @ smooth(grid, 0.5, 1)
    points = torch.rand(1, 9, grid.ndim)
    exact = noise(grid).warp(through).data, through.at(points), through.on(grid), through.collapsed(grid).on(grid)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = noise(grid).warp(through).data, through.at(points), through.on(grid), through.collapsed(grid).on(grid)
    torch.testing.assert_close(mixed, exact)


def test_gradients_are_right(dims, matrices):
    """By finite differences in double precision, of the points, the fields, the matrix and the image."""
    shape = (4, 3, 3)[:dims]
    grid, other = Grid.isotropic(shape, 1.3), Grid.isotropic((3, 4, 2)[:dims], 1.7)
    random = torch.Generator().manual_seed(4)

    def doubles(*size: int) -> torch.Tensor:
        return (torch.rand(*size, generator=random, dtype=torch.float64) * 0.3 + 0.05).requires_grad_()

    def at(points, first, second, change):
        still = torch.eye(dims, dims + 1, dtype=torch.float64)
        chain = FieldMap(first, grid) @ MatrixMap(still + change) @ FieldMap(second, other)
        return chain.at(points)

    def warped(image, first, second):
        chain = FieldMap(first, grid) @ FieldMap(second, grid)
        return Images(image, grid).warp(chain.collapsed(grid)).data

    field, second = doubles(1, dims, *shape), doubles(1, dims, *other.shape)
    assert torch.autograd.gradcheck(at, (doubles(1, 3, dims), field, second, doubles(1, dims, dims + 1)))
    assert torch.autograd.gradcheck(warped, (doubles(1, 1, *shape), field, doubles(1, dims, *shape)))


def test_what_does_not_fit_is_refused(grid, smooth):
    with pytest.raises(ValueError, match="do not fit"):
        FieldMap(torch.zeros(1, grid.ndim, *[n + 1 for n in grid.shape]), grid)
    with pytest.raises(ValueError, match="do not fit"):
        Images(torch.zeros(1, 1, *[n + 1 for n in grid.shape]), grid)
    with pytest.raises(ValueError, match="matrices"):
        MatrixMap(torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match="one dimension"):
        smooth(grid) @ MatrixMap(torch.zeros(1, 4, 5))
