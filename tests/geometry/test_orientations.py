"""All 48 ways to store one volume describe the same field and image in world space."""

import itertools

import nibabel.orientations as orientations
import numpy as np
import pytest
import torch

from stepwarp.geometry import Affine, Grid, Image

ALL_48 = [
    np.array([*zip(axes, flips, strict=True)])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def reoriented(grid: Grid, orientation: np.ndarray) -> Grid:
    shape = tuple(np.array(grid.shape)[np.argsort(orientation[:, 0])])
    return Grid(shape, grid.affine @ orientations.inv_ornt_aff(orientation, grid.shape))


@pytest.mark.parametrize("orientation", ALL_48, ids=lambda o: "".join(orientations.ornt2axcodes(o)))
def test_axis_order_and_direction(
    orientation: np.ndarray, moving_grid: Grid, affine: Affine, smooth_field, points_in, noise
):
    grid = moving_grid
    field, points = smooth_field(grid), points_in(grid)
    other = reoriented(grid, orientation)
    np.testing.assert_allclose(np.sort(other.corners(), 0), np.sort(grid.corners(), 0))

    moved = field.on(other)
    expected = orientations.apply_orientation(field.millimetres().numpy(), orientation)
    np.testing.assert_allclose(moved.millimetres(), expected, atol=1e-5)
    np.testing.assert_allclose(moved(points), field(points), atol=1e-5)
    np.testing.assert_allclose((affine @ moved).on(grid)(points), (affine @ field).on(grid)(points), atol=1e-5)
    torch.testing.assert_close(moved.on(grid).displacement, field.displacement, rtol=0, atol=1e-5)

    image = Image(noise(grid.shape), grid)
    stored = Image(torch.tensor(orientations.apply_orientation(image.data.numpy(), orientation).copy()), other)
    plain = image.warp(field).data.numpy()
    np.testing.assert_allclose(stored.warp(field, onto=grid).data, plain, atol=1e-4)
    onto_other = orientations.apply_orientation(plain, orientation)
    np.testing.assert_allclose(image.warp(moved, onto=other).data, onto_other, atol=1e-4)

    folding = orientations.apply_orientation(field.jacobian_determinant(grid).numpy(), orientation)
    np.testing.assert_allclose(moved.jacobian_determinant(other), folding, atol=1e-5)
