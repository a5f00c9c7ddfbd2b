"""Every convention against SimpleITK and nitransforms; RAS becomes LPS here by code of the test's own."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nitransforms.linear import Affine as NitAffine
from nitransforms.manip import TransformChain
from nitransforms.nonlinear import DenseFieldTransform

from stepwarp.geometry import Affine, DisplacementField, Grid, Image, LabelMap, Transform

FLIP = np.diag([-1.0, -1.0, 1.0])
POINTS_MM = 1e-4


def itk_image(values: np.ndarray, grid: Grid, vectors: bool = False) -> sitk.Image:
    """ITK holds the last axis first and places the image in LPS."""
    image = sitk.GetImageFromArray(np.moveaxis(values, (0, 1, 2), (2, 1, 0)), isVector=vectors)
    image.SetSpacing(grid.spacing.tolist())
    image.SetOrigin((FLIP @ grid.affine[:3, 3]).tolist())
    image.SetDirection((FLIP @ grid.linear / grid.spacing).ravel().tolist())
    return image


def from_itk(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def itk_transform(transform: Transform) -> sitk.Transform:
    if isinstance(transform, Affine):
        linear, offset = transform.matrix[:3, :3], transform.matrix[:3, 3]
        return sitk.AffineTransform((FLIP @ linear @ FLIP).ravel().tolist(), (FLIP @ offset).tolist())
    if isinstance(transform, DisplacementField):
        vectors = transform.millimetres().double().numpy() @ FLIP
        return sitk.DisplacementFieldTransform(itk_image(vectors, transform.grid, vectors=True))
    # ITK, too, applies first what was added last.
    return sitk.CompositeTransform([itk_transform(part) for part in transform.parts])


@pytest.fixture(params=["affine", "field", "affine after field", "field after affine", "field after field"])
def transform(request: pytest.FixtureRequest, grid: Grid, moving_grid: Grid, affine: Affine, smooth_field) -> Transform:
    inner = smooth_field(grid, 1.5)
    # The outer field covers all that the inner transform can reach: beyond its grid ITK's fields read 0.
    wide = Grid((30, 31, 33), np.vstack([np.c_[2 * np.eye(3), [-25.0, -37.0, -20.0]], [0, 0, 0, 1]]))
    outer = smooth_field(wide, 2.0, seed=1)
    return {
        "affine": affine,
        "field": inner,
        "affine after field": affine @ inner,
        "field after affine": outer @ affine,
        "field after field": outer @ inner,
    }[request.param]


def test_points(transform: Transform, grid: Grid, points_in):
    points = points_in(grid, margin=0.0)
    theirs = itk_transform(transform)
    expected = np.array([theirs.TransformPoint(p.tolist()) for p in points @ FLIP]) @ FLIP
    np.testing.assert_allclose(transform(points), expected, atol=POINTS_MM)


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_resampling(kind: str, transform: Transform, grid: Grid, moving_grid: Grid, noise):
    """The same values inside the moving image, and the same voxels that lie outside and read 0."""
    values = 1 + noise(moving_grid.shape)  # never 0, so that a 0 in the result means outside
    if kind == "labels":
        values = (values * 1000).int()
    volume = (Image if kind == "image" else LabelMap)(values, moving_grid)
    interpolator = sitk.sitkLinear if kind == "image" else sitk.sitkNearestNeighbor
    reference = itk_image(np.zeros(grid.shape), grid)
    resampled = sitk.Resample(itk_image(values.numpy(), moving_grid), reference, itk_transform(transform), interpolator)
    expected, warped = from_itk(resampled), volume.warp(transform, onto=grid).data.numpy()
    assert 0.2 < (expected > 0).mean() < 0.98
    np.testing.assert_array_equal(warped > 0, expected > 0)
    np.testing.assert_allclose(warped, expected, rtol=0 if kind == "labels" else 1e-4)


def test_affine_inverse(affine: Affine, grid: Grid, points_in):
    points, theirs = points_in(grid), itk_transform(affine).GetInverse()
    expected = np.array([theirs.TransformPoint(p.tolist()) for p in points @ FLIP]) @ FLIP
    np.testing.assert_allclose(affine.inverse()(points), expected, atol=1e-9)


def test_field_inverse(grid: Grid, smooth_field, points_in):
    """Inverting with ours what ITK maps leads back to the start."""
    field, points = smooth_field(grid, 0.8), points_in(grid)
    theirs = itk_transform(field)
    there = np.array([theirs.TransformPoint(p.tolist()) for p in points @ FLIP]) @ FLIP
    # The inverse is sampled on the grid, too: what lies between its voxels is interpolated.
    np.testing.assert_allclose(field.inverse()(there), points, atol=0.02)


def test_jacobian_determinant(grid: Grid, smooth_field):
    """ITK differentiates along the axes of the grid, but does not turn the vectors there: here they are turned."""
    field = smooth_field(grid, 2.0)
    upright = Grid(grid.shape, np.diag([*grid.spacing, 1.0]))
    turned = field.millimetres().double().numpy() @ (grid.linear / grid.spacing)
    image = sitk.GetImageFromArray(turned.transpose(2, 1, 0, 3), isVector=True)
    image.SetSpacing(upright.spacing.tolist())
    expected = from_itk(sitk.DisplacementFieldJacobianDeterminant(image))
    assert np.ptp(expected) > 0.2
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(field.jacobian_determinant(grid)[inner].numpy(), expected[inner], atol=1e-5)


def test_itk_forgets_the_direction_of_an_image_in_its_jacobian(grid: Grid, smooth_field):
    """Given a field as it is, its filter is right on grids along the axes of LPS, ITK's world, and on no others."""
    field = smooth_field(grid, 2.0)
    image = itk_image(field.millimetres().double().numpy() @ FLIP, grid, vectors=True)
    theirs = from_itk(sitk.DisplacementFieldJacobianDeterminant(image))
    inner = (slice(1, -1),) * 3
    away = np.abs(field.jacobian_determinant(grid)[inner].numpy() - theirs[inner]).max()
    along = np.allclose(np.array(image.GetDirection()).reshape(3, 3), np.eye(3))
    assert away < 1e-5 if along else away > 0.05


@pytest.mark.parametrize("order", ["affine after field", "field after affine"])
def test_nitransforms(order: str, grid: Grid, affine: Affine, smooth_field):
    """At voxel centres, since between them nitransforms reads fields by splines."""
    field = smooth_field(grid)
    centres = torch.cartesian_prod(*[torch.arange(n) for n in grid.shape]).numpy()[::7]
    points = centres @ grid.linear.T + grid.affine[:3, 3]
    header = nib.Nifti1Image(np.zeros(grid.shape, np.uint8), grid.affine)
    dense = DenseFieldTransform(nib.Nifti1Image(field.millimetres().numpy(), grid.affine), reference=header)
    linear = NitAffine(affine.matrix, reference=header)
    np.testing.assert_allclose(field(points), dense.map(points), atol=POINTS_MM)
    np.testing.assert_allclose(affine(points), linear.map(points), atol=POINTS_MM)
    if order == "affine after field":
        ours, theirs = affine @ field, TransformChain([dense, linear])  # first things first
    else:
        points = affine.inverse()(points)
        ours, theirs = field @ affine, TransformChain([linear, dense])
    np.testing.assert_allclose(ours(points), theirs.map(points), atol=POINTS_MM)
