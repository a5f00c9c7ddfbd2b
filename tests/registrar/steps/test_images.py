"""Batches of images warp and pool as single ones do, where they are in the world."""

import numpy as np
import pytest
import torch

from stepwarp.geometry import DisplacementField, Grid, Image
from stepwarp.registrar.steps import Images


@pytest.mark.parametrize("kind", ["field", "matrix"])
def test_images_warp_as_geometry_does(kind, grid, smooth, matrices, noise):
    through = smooth(grid, 1.7) if kind == "field" else matrices(grid)
    images = noise(grid)
    warped = images.warp(through)
    for number in (0, 1):
        alone = Image(images.data[number, 0], grid).warp(through[number])
        torch.testing.assert_close(warped.data[number, 0], alone.data, atol=2e-5, rtol=0)


def test_beyond_the_image_is_0_or_its_border(grid, noise):
    images = noise(grid, batch=1)
    far = DisplacementField(torch.full((1, grid.ndim, *grid.shape), 1000.0), grid)
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


def test_a_batch_of_images_has_one_grid_and_fits_it(grid):
    image = Image(torch.ones(grid.shape), grid)
    assert Images.stack([image, image]).data.shape == (2, 1, *grid.shape)
    with pytest.raises(ValueError, match="one grid"):
        Images.stack([image, Image(torch.ones(grid.shape), Grid(grid.shape, 2 * grid.affine - np.eye(grid.ndim + 1)))])
    with pytest.raises(ValueError, match="do not fit"):
        Images(torch.zeros(1, 1, *[n + 1 for n in grid.shape]), grid)
