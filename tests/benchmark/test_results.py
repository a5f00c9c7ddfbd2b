import numpy as np
import pytest
import torch

from stepwarp.benchmark.results import read_result, write_result
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid

FIXED = Grid((12, 10, 8), np.array([[0, -2.0, 0, 5], [2, 0, 0, -3], [0, 0, 2, 1], [0, 0, 0, 1]]))
MOVING = Grid.isotropic((14, 11, 9), 1.8)
AFFINE = Affine(np.array([[1.1, 0.05, 0, 2], [0, 0.95, 0.1, -1], [0, 0, 1, 3], [0, 0, 0, 1.0]]))


def field(grid, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 3, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, grid.shape, mode="trilinear", align_corners=True)
    return DisplacementField(0.4 * smooth, grid)


def points(grid):
    index = np.random.default_rng(0).uniform(2, np.array(grid.shape) - 3, (50, 3))
    return Affine(grid.affine)(index)


def voxels(grid):
    return Affine(grid.affine)(grid.indices(dtype=torch.float64)[0].flatten(1).T.numpy())


WARP = field(FIXED)
BACK = WARP.inverse()


@pytest.mark.parametrize(
    ("transform", "inverse", "names", "mm"),
    [
        (AFFINE, AFFINE.inverse(), {"0GenericAffine.mat"}, 1e-4),
        (
            Composition.of(AFFINE, WARP),
            Composition.of(BACK, AFFINE.inverse()),
            {"0GenericAffine.mat", "1Warp.nii.gz", "1InverseWarp.nii.gz"},
            1e-3,
        ),
        (WARP, BACK, {"1Warp.nii.gz", "1InverseWarp.nii.gz"}, 1e-3),
        (Composition.of(AFFINE, WARP), None, {"0GenericAffine.mat", "1Warp.nii.gz"}, 1e-3),
    ],
)
def test_what_is_read_is_what_was_found(tmp_path, transform, inverse, names, mm):
    write_result(tmp_path, transform, inverse, FIXED, MOVING)
    assert {path.name for path in tmp_path.iterdir()} == names
    read, back = read_result(tmp_path)
    where = points(FIXED)
    np.testing.assert_allclose(read(where), transform(where), atol=mm)
    if inverse is None:
        assert back is None
    else:
        np.testing.assert_allclose(back(transform(where)), inverse(transform(where)), atol=2 * mm)


@pytest.mark.parametrize(
    ("transform", "inverse"),
    [
        (Composition.of(WARP, AFFINE), Composition.of(AFFINE.inverse(), BACK)),
        (Composition.of(AFFINE, field(MOVING)), Composition.of(field(MOVING, 1), AFFINE.inverse())),
    ],
)
def test_forms_that_ants_does_not_have_are_sampled_on_the_grids(tmp_path, transform, inverse):
    write_result(tmp_path, transform, inverse, FIXED, MOVING)
    assert {path.name for path in tmp_path.iterdir()} == {"1Warp.nii.gz", "1InverseWarp.nii.gz"}
    for read, found, grid in zip(read_result(tmp_path), (transform, inverse), (FIXED, MOVING), strict=True):
        where = voxels(grid)
        np.testing.assert_allclose(read(where), found(where), atol=1e-3)


def test_an_inverse_that_is_not_through_the_affine_is_brought_into_that_form(tmp_path):
    found, way_back = Composition.of(AFFINE, WARP), Composition.of(AFFINE.inverse(), field(MOVING, 2))
    write_result(tmp_path, found, way_back, FIXED, MOVING)
    _, back = read_result(tmp_path)
    there = AFFINE(voxels(FIXED))
    np.testing.assert_allclose(back(there), way_back(there), atol=1e-3)
