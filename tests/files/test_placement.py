"""What counts as rounding where a header says where its voxels lie: values on either side of each limit."""

import nibabel as nib
import numpy as np
import pytest

from stepwarp.errors import InputError, OutputError
from stepwarp.files import write_displacement
from stepwarp.files.placement import agree, grid_of, straightened
from stepwarp.geometry import DisplacementField, Grid

SHAPE = (8, 9, 10)
TURN = nib.eulerangles.euler2mat(0.3, -0.2, 0.5)
OBLIQUE = nib.affines.from_matvec(TURN * (1.5, 0.9, 2.1), (10, -20, 30))


def sheared(affine, by):
    """With the first axis leaning towards the second."""
    result = affine.copy()
    result[:3, 0] += by * np.linalg.norm(affine[:3, 0]) * affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    return result


def sheared_to(mm, affine=OBLIQUE, shape=SHAPE):
    """With so much shear that its removal moves a corner so far."""
    grid = Grid(shape, sheared(affine, 1e-4))
    return sheared(affine, 1e-4 * mm / grid.distance_to(straightened(grid)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [0.098, 0.102])
def test_statements_agree_to_a_tenth_of_the_smallest_voxel(axis, voxels):
    moved = OBLIQUE.copy()
    moved[axis, 3] -= voxels * 0.9
    assert agree(OBLIQUE, moved, SHAPE) == agree(moved, OBLIQUE, SHAPE) == (voxels < 0.1)


def test_statements_that_agree_at_one_corner_alone_contradict():
    """A turn about the first voxel: the last is what tells."""
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.02) @ OBLIQUE[:3, :3], OBLIQUE[:3, 3])
    assert not agree(OBLIQUE, turned, SHAPE)


@pytest.mark.parametrize(("radians", "noise"), [(0, 1.1e-3), (0, 1.4e-3), (0.5, 3e-4), (0.5, 6e-4), (0.5, 1.1e-3)])
def test_a_quaternion_may_lose_what_single_precision_loses_and_no_more(radians, noise):
    """Near half a turn a thousandth of a radian, elsewhere nothing. At 300 voxels a tenth of one is 3.3e-4 radians."""
    axis, shape = np.array([0, 0, 1.0]), (213, 213, 2)

    def turned(angle):
        return nib.affines.from_matvec(nib.quaternions.angle_axis2mat(angle, axis), (0, 0, 0))

    about_the_axis = agree(turned(np.pi - radians), turned(np.pi - radians - noise), shape)
    assert about_the_axis == (noise < (1.26e-3 if radians == 0 else 3.3e-4))


@pytest.mark.parametrize("voxels", [0.098, 0.102])
def test_shear_is_rounding_to_a_tenth_of_the_smallest_voxel(voxels):
    affine = sheared_to(voxels * 0.9)
    if voxels > 0.1:
        with pytest.raises(InputError, match="perpendicular"):
            grid_of(SHAPE, affine, "a.nii")
        return
    grid = grid_of(SHAPE, affine, "a.nii")
    np.testing.assert_allclose(grid.centre, Grid(SHAPE, affine).centre, atol=1e-9)
    np.testing.assert_allclose(grid.spacing, Grid(SHAPE, affine).spacing)
    # Half of the lean is each axis's own, and the third has none.
    np.testing.assert_allclose(grid.linear.T @ grid.linear, np.diag(grid.spacing**2), atol=1e-9)
    assert grid.distance_to(Grid(SHAPE, affine)) == pytest.approx(voxels * 0.9, rel=0.01)


@pytest.mark.parametrize("cosine", [5.8e-4, 6.2e-4])
def test_shear_of_directions_of_three_decimals_is_rounding_at_any_size(cosine):
    """In a large image it moves a corner by more than a tenth of a voxel."""
    shape, affine = (700, 700, 40), sheared(np.eye(4), 2 * cosine)
    assert Grid(shape, affine).distance_to(straightened(Grid(shape, affine))) > 0.2
    if cosine > 6e-4:
        with pytest.raises(InputError, match="perpendicular"):
            grid_of(shape, affine, "a.nii")
    else:
        grid_of(shape, affine, "a.nii")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("mm", [0.99e6, -0.99e6, 1.01e6, -1.01e6])
def test_nothing_lies_more_than_a_kilometre_away(axis, mm):
    affine = OBLIQUE.copy()
    affine[axis, 3] = mm
    if abs(mm) > 1e6:
        with pytest.raises(InputError, match="a kilometre away"):
            grid_of(SHAPE, affine, "a.nii")
    else:
        assert grid_of(SHAPE, affine, "a.nii").affine[axis, 3] == mm


@pytest.mark.parametrize("mm", [0.0095, 0.0105])
def test_a_field_is_written_with_a_hundredth_of_a_millimetre_of_shear_at_most(tmp_path, mm):
    field = DisplacementField.identity(Grid(SHAPE, sheared_to(mm)))
    if mm > 0.01:
        with pytest.raises(OutputError, match="shear"):
            write_displacement(tmp_path / "a.nii.gz", field)
    else:
        write_displacement(tmp_path / "a.nii.gz", field)


@pytest.mark.parametrize("mm", [0.0009, 0.0011])
def test_equal_grids_are_a_thousandth_of_a_millimetre_apart_at_most(mm):
    moved = OBLIQUE.copy()
    moved[2, 3] += mm
    assert (Grid(SHAPE, OBLIQUE) == Grid(SHAPE, moved)) == (mm < 0.001)
