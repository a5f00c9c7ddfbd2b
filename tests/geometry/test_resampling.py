"""Images that are read from more than their nearest voxels."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from stepwarp.geometry import Affine, Composition, CubicImage, DisplacementField, Grid, SincImage, resampling


@pytest.fixture(params=[(11, 12, 13), (14, 15)], ids=["3D", "2D"])
def grid(request):
    return Grid(request.param, np.diag([*(1.5, 2.0, 0.8)[: len(request.param)], 1.0]))


@pytest.fixture
def shear(grid):
    """An affine after a field, which reads beyond the image as well."""
    field = torch.randn(1, grid.ndim, *grid.shape, generator=torch.Generator().manual_seed(1))
    return Composition([Affine(np.eye(grid.ndim + 1)[:-1] + 0.02), DisplacementField(field, grid)])


def test_cubic_is_the_spline_of_scipy_at_the_exact_place(grid, shear, noise):
    data = noise(grid.shape).double()
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    at = np.moveaxis(grid.index(shear(grid.world(index.reshape(-1, grid.ndim)))).reshape(index.shape), -1, 0)
    ends = np.reshape(grid.shape, (-1, *[1] * grid.ndim))
    expected = map_coordinates(data.numpy(), at, order=3, mode="mirror")
    expected[((at < -0.5) | (at >= ends - 0.5)).any(0)] = -7
    assert (expected == -7).any()
    moved = CubicImage(data, grid, outside=-7.0).warp(shear)
    assert moved.data.dtype == torch.float64
    np.testing.assert_allclose(moved.data, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [CubicImage, SincImage])
def test_parts_make_the_same_whole(grid, shear, noise, monkeypatch, kind):
    image = kind(noise(grid.shape), grid)
    whole = image.warp(shear)
    monkeypatch.setattr(resampling, "_AT_ONCE", 2 * grid.shape[-1])
    torch.testing.assert_close(image.warp(shear).data, whole.data, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [CubicImage, SincImage])
def test_its_own_voxels_are_what_they_were(grid, noise, kind):
    image = kind(noise(grid.shape), grid)
    torch.testing.assert_close(image.warp(Affine.identity(grid.ndim)).data, image.data, atol=1e-5, rtol=0)
