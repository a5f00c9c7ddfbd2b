import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from stepwarp.evaluation.regularity import inverse_consistency, regularity
from stepwarp.geometry import Affine, DisplacementField, Grid

SHAPE, SPACING = (24, 20, 16), np.array([0.8, 1.5, 2.5])
ROTATION = Rotation.from_euler("xyz", [20, -15, 40], degrees=True).as_matrix()


def oblique_grid():
    affine = np.eye(4)
    affine[:3, :3] = ROTATION * SPACING
    affine[:3, 3] = [-30, 12, 55]
    return Grid(SHAPE, affine)


def smooth_vectors(amplitude, seed=0):
    noise = np.random.default_rng(seed).normal(size=(*SHAPE, 3))
    smooth = np.stack([gaussian_filter(noise[..., a], 2.5) for a in range(3)], -1)
    return amplitude * smooth / np.abs(smooth).max()


def everywhere():
    return torch.ones(SHAPE, dtype=torch.bool)


def itk_determinant(vectors):
    """ITK differentiates along the axes of the grid but takes components along those of the world: here both agree."""
    image = sitk.GetImageFromArray((vectors @ ROTATION).transpose(2, 1, 0, 3), isVector=True)
    image.SetSpacing(SPACING)
    return sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image)).transpose(2, 1, 0)


@pytest.mark.parametrize("amplitude", [1.0, 12.0])
def test_folds_and_log_jacobian_agree_with_itk_on_an_oblique_anisotropic_grid(amplitude):
    vectors = smooth_vectors(amplitude)
    field = DisplacementField.from_millimetres(vectors, oblique_grid())
    inner = torch.zeros(SHAPE, dtype=torch.bool)
    inner[1:-1, 1:-1, 1:-1] = True
    expected = itk_determinant(vectors)[inner.numpy()]
    np.testing.assert_allclose(field.jacobian_determinant(field.grid)[inner], expected, atol=1e-4)
    measured = regularity(field, inner)
    assert measured.folds.count == (expected <= 0).sum()
    assert measured.folds.share == pytest.approx((expected <= 0).mean())
    assert measured.std_log_jacobian == pytest.approx(np.log(expected[expected > 0]).std(), rel=1e-3)
    assert measured.corner_folds.count >= measured.folds.count


def test_identity_is_regular():
    measured = regularity(DisplacementField.identity(oblique_grid()), everywhere())
    assert (measured.folds.count, measured.corner_folds.count, measured.std_log_jacobian) == (0, 0, 0)


def test_a_fold_between_neighbours_is_seen_by_the_corners_only():
    displacement = torch.zeros(1, 3, *SHAPE)
    displacement[0, 0, 10] = 1.5  # voxel 10 passes voxel 11, while 9 and 11 stay in order
    measured = regularity(DisplacementField(displacement, oblique_grid()), everywhere())
    assert measured.folds.count == 0
    assert measured.corner_folds.count == 2 * SHAPE[1] * SHAPE[2]


def test_only_the_mask_counts():
    displacement = torch.zeros(1, 3, *SHAPE)
    displacement[0, 0, 15:17, :, :] = torch.tensor([4.0, -4.0])[:, None, None]
    field = DisplacementField(displacement, oblique_grid())
    mask = everywhere()
    mask[12:] = False
    assert regularity(field, everywhere()).folds.count > 0
    assert regularity(field, mask).folds.count == 0


def test_a_field_that_is_not_a_number_or_folds_everywhere_is_not_called_regular():
    grid = oblique_grid()
    broken = regularity(DisplacementField(torch.full((1, 3, *SHAPE), torch.nan), grid), everywhere())
    assert broken.folds.share == 1
    assert broken.std_log_jacobian is None
    mirrored = regularity(Affine(np.diag([-1.0, 1, 1, 1])).on(grid), everywhere())
    assert mirrored.folds.share == 1
    assert json.loads(json.dumps(mirrored.as_dict()))["std_log_jacobian"] is None


def test_inverse_consistency_is_in_millimetres():
    grid = oblique_grid()
    shift = Affine(np.array([[1, 0, 0, 0], [0, 1, 0, 2.0], [0, 0, 1, 0]]))
    assert inverse_consistency(shift, shift.inverse(), grid, everywhere()).max_mm == pytest.approx(0, abs=1e-9)
    residual = inverse_consistency(shift, shift, grid, everywhere(), every=3)
    assert residual.count == -(-np.prod(SHAPE) // 3)
    assert (residual.mean_mm, residual.p95_mm, residual.max_mm) == pytest.approx((4, 4, 4))


def test_a_field_and_its_inverse_are_consistent():
    field = DisplacementField.from_millimetres(smooth_vectors(1.0), oblique_grid())
    inner = torch.zeros(SHAPE, dtype=torch.bool)
    inner[4:-4, 4:-4, 4:-4] = True
    assert inverse_consistency(field, field.inverse(), field.grid, inner).max_mm < 0.02


@pytest.mark.parametrize("mask", [torch.ones(3, 3, 3, dtype=torch.bool), torch.ones(SHAPE), torch.zeros(SHAPE).bool()])
def test_a_mask_that_cannot_be_measured_in_is_refused(mask):
    with pytest.raises(ValueError, match="mask"):
        regularity(DisplacementField.identity(oblique_grid()), mask)
