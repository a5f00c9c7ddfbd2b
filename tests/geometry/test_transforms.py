"""What transforms promise as functions on points."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Image, Transform, inverse_residual
from stepwarp.kernels import jacobian

PLANE, LINE = Grid.isotropic((14, 19), 0.8), Grid.isotropic((25,), 1.3)


@pytest.fixture
def transforms(affine: Affine, grid: Grid, moving_grid: Grid, smooth_field) -> list[Transform]:
    return [affine, smooth_field(grid), smooth_field(moving_grid, seed=2), smooth_field(grid, seed=3) @ affine]


def test_composition_is_one_after_the_other(transforms: list[Transform], grid: Grid, points_in):
    points = points_in(grid)
    for outer, inner in itertools.product(transforms, repeat=2):
        np.testing.assert_allclose((outer @ inner)(points), outer(inner(points)), atol=1e-9)


def test_composition_is_associative(transforms: list[Transform], grid: Grid, points_in):
    points = points_in(grid)
    for a, b, c in itertools.permutations(transforms, 3):
        np.testing.assert_allclose(((a @ b) @ c)(points), (a @ (b @ c))(points), atol=1e-9)


def test_neighbouring_affines_become_one(affine: Affine, grid: Grid, smooth_field):
    field = smooth_field(grid)
    assert isinstance(affine @ affine, Affine)
    chain = (affine @ field) @ (affine @ affine.inverse() @ affine)
    assert isinstance(chain, Composition)
    assert [type(part) for part in chain.parts] == [Affine, DisplacementField, Affine]


def test_collapsed_equals_lazy(transforms: list[Transform], grid: Grid, points_in):
    """At the voxels exactly; between them within what linear interpolation leaves of a field this smooth."""
    voxels = grid.indices(dtype=torch.float64)[0].flatten(1).T.numpy() @ grid.linear.T + grid.affine[:3, 3]
    between = points_in(grid)
    for outer, inner in itertools.product(transforms, repeat=2):
        lazy = outer @ inner
        collapsed = lazy.on(grid)
        assert collapsed.displacement.dtype == torch.float32
        np.testing.assert_allclose(collapsed(voxels), lazy(voxels), atol=1e-4)
        np.testing.assert_allclose(collapsed(between), lazy(between), atol=0.1)


def test_identity(grid: Grid, points_in):
    points = points_in(grid, margin=-0.3)
    for identity in (Affine.identity(3), DisplacementField.identity(grid), Affine.identity(3).on(grid)):
        np.testing.assert_allclose(identity(points), points, atol=1e-5)
        np.testing.assert_allclose(identity.inverse()(points), points, atol=1e-5)
        np.testing.assert_allclose(identity.jacobian_determinant(grid), 1, atol=1e-5)


def test_inverse_of_an_affine(affine: Affine, points_in, grid: Grid):
    points = points_in(grid, margin=-5)
    assert inverse_residual(affine, affine.inverse(), points).max() < 1e-9
    assert inverse_residual(affine.inverse(), affine, points).max() < 1e-9


@pytest.mark.parametrize("amplitude", [0.3, 1.0])
def test_inverse_of_a_field_at_its_voxels(grid: Grid, smooth_field, amplitude: float):
    """The inverse is exact where it is stored: T(inverse(x)) = x at voxels that it keeps inside the grid."""
    field = smooth_field(grid, amplitude)
    inverse = field.inverse()
    voxels = grid.indices(dtype=torch.float64)[0].flatten(1).T.numpy() @ grid.linear.T + grid.affine[:3, 3]
    residual = inverse_residual(inverse, field, voxels)
    assert residual.max() < 2e-3 * grid.spacing.max()


def test_inverse_of_a_composition(grid: Grid, affine: Affine, smooth_field, points_in):
    transform, points = affine @ smooth_field(grid, 0.5), points_in(grid)
    inverse = transform.inverse()
    assert inverse_residual(transform, inverse, points).max() < 0.02
    # And it matters: without it, points are millimetres away.
    assert inverse_residual(transform, Affine.identity(3), points).max() > 1


@pytest.mark.parametrize("grid", [PLANE, LINE], ids=["2D", "1D"])
def test_one_and_two_dimensions(grid: Grid, smooth_field, points_in):
    field, points = smooth_field(grid, 0.6), points_in(grid)
    affine = Affine(np.diag([1.1] * grid.ndim + [1.0]))
    assert inverse_residual(field, field.inverse(), points).max() < 0.02
    both = affine @ field
    np.testing.assert_allclose(both(points), 1.1 * field(points), atol=1e-9)
    np.testing.assert_allclose(both.on(grid)(points), both(points), atol=0.02)
    np.testing.assert_allclose(affine.jacobian_determinant(grid), 1.1**grid.ndim, rtol=1e-5)


@pytest.mark.parametrize("outside", ["border", "zero"])
def test_beyond_its_grid_a_field_has_its_border_value_or_none(outside: str, grid: Grid, smooth_field):
    field = DisplacementField(smooth_field(grid).displacement + 1, grid, outside)
    last = np.array(grid.shape) - 1
    corner, within, beyond = (grid.linear @ (last + by) + grid.affine[:3, 3] for by in (0, 0.49, 4))
    expected = field.millimetres()[-1, -1, -1].numpy()
    np.testing.assert_allclose(field(corner) - corner, expected, atol=1e-5)
    np.testing.assert_allclose(field(within) - within, expected, atol=1e-5)
    np.testing.assert_allclose(field(beyond) - beyond, expected * (outside == "border"), atol=1e-5)
    wide = Grid(tuple(n + 4 for n in grid.shape), grid.affine)
    np.testing.assert_allclose(field.on(wide)(beyond) - beyond, expected * (outside == "border"), atol=1e-5)
    lazily = field @ Affine.identity(3)
    np.testing.assert_allclose(lazily.on(wide)(beyond) - beyond, expected * (outside == "border"), atol=1e-5)
    assert field.on(wide).outside == field.inverse().outside == outside


def test_millimetres_there_and_back(grid: Grid, smooth_field):
    field = smooth_field(grid)
    again = DisplacementField.from_millimetres(field.millimetres(), grid)
    torch.testing.assert_close(again.displacement, field.displacement)
    constant = DisplacementField.from_millimetres(np.tile([1.0, -2.0, 3.0], (*grid.shape, 1)), grid)
    np.testing.assert_allclose(constant(grid.centre) - grid.centre, [1, -2, 3], atol=1e-5)


@pytest.mark.parametrize(
    "change", [lambda a: a.setflags(write=False) or a, lambda a: a[::-1], lambda a: a.astype(">f4"), np.asfortranarray]
)
def test_arrays_of_any_layout_are_taken_without_a_warning(grid: Grid, smooth_field, change):
    field = smooth_field(grid)
    points, vectors = change(np.ones((4, 3))), change(field.millimetres().numpy().copy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(field(points), field(np.ones((4, 3))))
        again = DisplacementField.from_millimetres(vectors, grid)
    np.testing.assert_allclose(again.millimetres(), vectors, atol=1e-6)


def test_points_keep_their_shape_and_kind(affine: Affine, grid: Grid, smooth_field):
    for transform in (affine, smooth_field(grid)):
        assert transform(np.zeros((2, 5, 3))).shape == (2, 5, 3)
        assert transform(np.zeros(3, np.float32)).dtype == np.float64
        assert transform(np.zeros((0, 3))).shape == (0, 3)
        assert isinstance(transform(torch.zeros(4, 3)), torch.Tensor)


def test_a_field_on_another_grid_is_the_same_field(grid: Grid, affine: Affine, points_in):
    """Exactly so for what linear interpolation represents: here an affine, sampled coarsely and finely."""
    coarse, points = affine.on(grid.coarser(2)), points_in(grid)
    fine = coarse.on(grid)
    np.testing.assert_allclose(fine(points), affine(points), atol=1e-4)
    assert fine.on(Grid(grid.shape, grid.affine)) is fine


@pytest.mark.parametrize(
    ("matrix", "complaint"),
    [
        (np.eye(4)[0], "square"),
        (np.eye(4)[:2], "square"),
        (torch.zeros(1, 2, 4), "square"),
        (np.diag([1, 0, 1, 1]), "invertible"),
        (np.diag([1, 1, np.inf, 1]), "finite"),
        (np.eye(4) + np.eye(4, k=-3), "last row"),
    ],
)
def test_bad_affines(matrix: np.ndarray, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        Affine(matrix)


def test_bad_input(grid: Grid, affine: Affine):
    with pytest.raises(ValueError, match="does not fit"):
        DisplacementField(torch.zeros(1, 3, 4, 4, 4), grid)
    with pytest.raises(ValueError, match="2 coordinates"):
        affine(np.zeros((5, 2)))
    with pytest.raises(ValueError, match="one dimension"):
        affine @ DisplacementField.identity(PLANE)
    with pytest.raises(ValueError, match="do not fit"):
        Image(torch.zeros(2, 2, 2), grid, "scan.nii.gz")


@pytest.mark.gpu
def test_cuda_fields_map_the_same_points(grid: Grid, affine: Affine, smooth_field, points_in, cuda: torch.device):
    field, points = smooth_field(grid), points_in(grid)
    on_cuda = DisplacementField(field.displacement.to(cuda), grid)
    np.testing.assert_allclose((affine @ on_cuda)(points), (affine @ field)(points), atol=1e-5)
    there = (affine @ field)(torch.tensor(points, device=cuda))
    assert there.device.type == "cuda"
    np.testing.assert_allclose(there.cpu(), (affine @ field)(points), atol=1e-5)
    vectors = DisplacementField.from_millimetres(field.millimetres().to(cuda), grid).displacement
    torch.testing.assert_close(vectors.cpu(), field.displacement)


def test_an_affine_changes_every_volume_by_its_determinant(grid: Grid, affine: Affine):
    expected = np.linalg.det(affine.matrix[:3, :3])
    np.testing.assert_allclose(affine.jacobian_determinant(grid), expected, rtol=1e-5)
    corner = jacobian.smallest_corner_determinant(affine.on(grid).displacement)
    np.testing.assert_allclose(corner, expected, rtol=1e-4)


def test_an_inverse_undoes_a_stretch(grid: Grid):
    """By more than 2, where the fixed point diverges and Newton's method, in the kernel, does not."""
    linear = np.diag([2.5, 1.0, 1.2])
    stretch = Affine(np.vstack([np.c_[linear, grid.centre - linear @ grid.centre], [0, 0, 0, 1]]))
    near = grid.centre + np.random.default_rng(0).uniform(-1, 1, (50, 3))
    np.testing.assert_allclose(stretch.on(grid).inverse()(stretch(near)), near, atol=1e-2)
