import itertools
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from stepwarp.evaluation.regularity import inverse_consistency, non_diffeomorphic_volume, regularity
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


@pytest.mark.parametrize("amplitude", [1.0, 12.0])
def test_the_range_of_the_jacobian_is_that_of_the_determinants(amplitude):
    field = DisplacementField.from_millimetres(smooth_vectors(amplitude), oblique_grid())
    expected = np.percentile(field.jacobian_determinant(field.grid), [0, 1, 50, 99, 100])
    found = regularity(field, everywhere()).jacobian
    assert (found.min, found.p01, found.median, found.p99, found.max) == pytest.approx(tuple(expected), rel=1e-5)


def volume_inside_out(places):
    """Both ways of cutting each cell of eight into five tetrahedra, one by one; each counts half."""
    total = 0.0
    for cell in itertools.product(*(range(n - 1) for n in places.shape[:3])):
        for odd in (0, 1):
            corners = [c for c in itertools.product((0, 1), repeat=3) if sum(c) % 2 == odd]
            others = [c for c in itertools.product((0, 1), repeat=3) if sum(c) % 2 != odd]
            pieces = [corners] + [[c, *(n for n in corners if np.abs(np.subtract(n, c)).sum() == 1)] for c in others]
            for piece in pieces:
                before = np.array(piece)
                after = places[tuple((before + cell).T)]
                turned = np.linalg.det(after[1:] - after[0]) * np.sign(np.linalg.det(before[1:] - before[0]))
                total += max(0.0, -turned) / 6 / 2
    return total


def test_non_diffeomorphic_volume_is_that_of_the_tetrahedra_turned_inside_out():
    shape = (5, 4, 6)
    noise = np.random.default_rng(0).normal(0, 0.5, (3, *shape)).astype(np.float32)
    grid = Grid(shape, np.diag([-1.0, 2.0, 1.5, 1.0]))
    field = DisplacementField(torch.from_numpy(noise)[None], grid)
    expected = volume_inside_out(np.moveaxis(noise + grid.indices()[0].numpy(), 0, -1))
    found = non_diffeomorphic_volume(field, torch.ones(shape, dtype=torch.bool))
    assert expected > 1
    assert found.percent == pytest.approx(100 * expected / np.prod(shape), rel=1e-4)
    assert found.ml == pytest.approx(expected * 3.0 / 1000, rel=1e-4)


def test_non_diffeomorphic_volume_by_the_formula_of_liu_et_al_inside_a_mask():
    """Their ten determinants at each voxel: eight by one-sided differences, two of the tetrahedra amid the cells.

    Checked once against their package, digital-diffeomorphism 1.1.1: equal to seven digits."""
    shape = (21, 9, 8)
    generator = np.random.default_rng(1)
    places = np.moveaxis(np.indices(shape), 0, -1) + generator.normal(0, 0.5, (*shape, 3))
    mask = np.zeros(shape, bool)
    mask[1:-1, 1:-1, 1:-1] = generator.random((19, 7, 6)) < 0.6

    def step(*offset):
        return np.roll(places, tuple(-o for o in offset), (0, 1, 2)) - places

    sides = [[step(*(s * (a == axis) for a in range(3))) * s for s in (1, -1)] for axis in range(3)]
    columns = list(itertools.product(*sides))
    columns.append((step(-1, -1, 0), step(-1, 0, -1), step(0, -1, -1)))
    columns.append((step(1, 1, 0), step(0, 1, 1), step(1, 0, 1)))
    determinants = np.stack([np.linalg.det(np.stack(c, -1)) for c in columns])
    expected = (-np.minimum(determinants, 0) * mask).sum() / 12
    displacement = torch.from_numpy(np.moveaxis(places, -1, 0) - np.indices(shape)).float()[None]
    found = non_diffeomorphic_volume(DisplacementField(displacement, Grid.isotropic(shape)), torch.from_numpy(mask))
    assert found.percent == pytest.approx(100 * expected / mask.sum(), rel=1e-4)


def test_what_folds_nowhere_has_no_non_diffeomorphic_volume_and_a_mirror_has_all():
    grid = oblique_grid()
    smooth = DisplacementField.from_millimetres(smooth_vectors(1.0), grid)
    assert non_diffeomorphic_volume(smooth, everywhere()).percent == 0
    inner = torch.zeros(SHAPE, dtype=torch.bool)
    inner[1:-1, 1:-1, 1:-1] = True
    mirrored = non_diffeomorphic_volume(Affine(np.diag([-1.0, 1, 1, 1])).on(grid), inner)
    assert mirrored.percent == pytest.approx(100, rel=1e-3)
    with pytest.raises(ValueError, match="mask"):
        non_diffeomorphic_volume(smooth, torch.zeros(SHAPE, dtype=torch.bool))


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
