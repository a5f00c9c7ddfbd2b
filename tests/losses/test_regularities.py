"""The energies of displacements whose derivatives are known."""

import numpy as np
import pytest
import torch
from monai.losses import BendingEnergyLoss, DiffusionLoss
from scipy.spatial.transform import Rotation

from stepwarp.geometry import DisplacementField, Grid
from stepwarp.kernels import jacobian
from stepwarp.losses.regularity import REGULARITIES, bending, diffusion, folding

SHAPES = [(9,), (8, 11), (7, 9, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def indices(shape: tuple[int, ...]) -> torch.Tensor:
    return Grid.isotropic(shape).indices(dtype=torch.float64)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def symmetric(dimensions: int) -> torch.Tensor:
    """The second derivatives H[c, a, b] of a quadratic displacement."""
    half = random(dimensions, dimensions, dimensions)
    return half + half.transpose(1, 2)


def quadratic(shape: tuple[int, ...]) -> torch.Tensor:
    x = indices(shape)[0]
    return torch.einsum("cab,a...,b...->c...", symmetric(len(shape)), x, x)[None] / 2


@each_shape
def test_a_translation_costs_nothing(shape: tuple[int, ...]):
    translation = torch.ones(1, len(shape), *shape) * 3
    assert float(diffusion(translation)) == float(bending(translation)) == 0


@each_shape
def test_an_affine_costs_its_squared_slopes_and_no_bending(shape: tuple[int, ...]):
    matrix = random(len(shape), len(shape))
    affine = torch.einsum("ab,nb...->na...", matrix, indices(shape))
    assert float(diffusion(affine)) == pytest.approx(float(matrix.square().sum()))
    assert float(bending(affine)) == pytest.approx(0, abs=1e-20)


@each_shape
def test_a_quadratic_costs_its_squared_second_derivatives(shape: tuple[int, ...]):
    assert float(bending(quadratic(shape))) == pytest.approx(float(symmetric(len(shape)).square().sum()))


@pytest.mark.parametrize("shape", [(8, 11), (7, 9, 6)], ids=str)
def test_against_monai(shape: tuple[int, ...]):
    """MONAI averages over the components, where ours are summed, and differentiates over two voxels, not one.

    Of an affine, and of a quadratic for bending, both know the derivatives exactly."""
    affine = torch.einsum("ab,nb...->na...", random(len(shape), len(shape)), indices(shape))
    assert float(diffusion(affine)) == pytest.approx(len(shape) * float(DiffusionLoss()(affine)))
    assert float(bending(quadratic(shape))) == pytest.approx(len(shape) * float(BendingEnergyLoss()(quadratic(shape))))


@pytest.mark.parametrize(("name", "finer"), [("diffusion", 1), ("bending", 1 / 4)])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_same_deformation_on_a_finer_grid(name: str, finer: float, dimensions: int):
    """Twice as many voxels, each displaced by twice as many voxels."""

    def wave(n: int) -> torch.Tensor:
        x = (indices((n,) * dimensions) + 0.5) / n
        return n * 0.1 * torch.sin(5 * x + 2 * x.flip(1))

    coarse, fine = (float(REGULARITIES[name](wave(n))) for n in (32, 64))
    assert fine / coarse == pytest.approx(finer, rel=0.03)


@pytest.mark.parametrize("name", REGULARITIES)
def test_axes_of_one_voxel_cost_nothing(name: str):
    flat = random(1, 2, 7, 9)
    thick = torch.cat([flat, torch.zeros(1, 1, 7, 9)], 1)[..., None]
    assert float(REGULARITIES[name](thick)) == pytest.approx(float(REGULARITIES[name](flat)))
    assert float(REGULARITIES[name](torch.ones(1, 3, 1, 1, 1))) == 0


def placed(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Grid:
    """An anisotropic grid, oblique in three dimensions, in a plane turned by half a radian."""
    d = len(shape)
    turn = np.eye(3)
    if d > 1:
        turn = Rotation.from_rotvec([0.4, -0.3, 0.9] if d == 3 else [0, 0, 0.5]).as_matrix()
    affine = np.eye(d + 1)
    affine[:d, :d] = turn[:d, :d] * spacing[:d]
    return Grid(shape, affine)


@pytest.mark.parametrize("shape", [(9,), (5, 21), (21, 5), (5, 9, 17), (17, 6, 5)], ids=str)
def test_a_stretch_costs_the_same_on_any_grid(shape: tuple[int, ...]):
    """phi = 1.1 x: .01 per axis, in voxels as in the world (icon_registration: .006 on 16 x 64, .096 on 64 x 16)."""
    stretch = 0.1 * indices(shape)
    for given in (None, placed(shape, (1.5, 0.8, 4.0))):
        assert float(diffusion(stretch, given)) == pytest.approx(0.01 * len(shape))
        assert float(bending(stretch, given)) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1.5, 0.8, 4.0), (0.3, 2, 1)], ids=str)
@each_shape
def test_energies_are_those_of_the_world(shape: tuple[int, ...], spacing: tuple[float, ...]):
    """A linear and a quadratic displacement of world points in mm, on grids of any spacing and orientation."""
    d, grid = len(shape), placed(shape, spacing)
    world = torch.einsum("ab,nb...->na...", torch.tensor(grid.linear), indices(shape))
    matrix, curvature = random(d, d), symmetric(d)
    for energy, field, expected in (
        (diffusion, torch.einsum("ab,nb...->n...a", matrix, world)[0], matrix.square().sum()),
        (bending, torch.einsum("cab,a...,b...->...c", curvature, world[0], world[0]) / 2, curvature.square().sum()),
    ):
        displacement = torch.einsum("ab,...b->a...", torch.tensor(np.linalg.inv(grid.linear)), field)[None]
        assert float(energy(displacement, grid)) == pytest.approx(float(expected))
        assert float(energy(displacement.expand(2, *displacement.shape[1:]), grid)) == pytest.approx(float(expected))
        stored = DisplacementField.from_millimetres(field, grid).displacement
        assert float(energy(stored, grid)) == pytest.approx(float(expected), rel=1e-2)


@pytest.mark.parametrize("name", ["diffusion", "bending"])
def test_against_icon_registration(name: str):
    """On the unit cube, where the definitions coincide: quadratic maps, one step of all grids the same.

    Theirs are means over the components; bending is divided by D^2; diffusion is multiplied by n^2 in place of
    (n - 1)^2."""
    pytest.importorskip("icon_registration")
    from icon_registration import losses, network_wrappers

    n = 9
    field = quadratic((n, n, n)).float() / 100
    theirs = {"diffusion": losses.DiffusionRegularizedNet, "bending": losses.BendingEnergyNet}[name]
    net = theirs(network_wrappers.FunctionFromVectorField(torch.nn.Identity()), losses.ssd, 1.0)
    net.assign_identity_map((1, 1, n, n, n))
    value = float(net.compute_bending_energy_loss(net.identity_map + field / (n - 1)))
    grid = Grid((n, n, n), np.diag([*[1 / (n - 1)] * 3, 1.0]))
    factor = {"diffusion": 3 * ((n - 1) / n) ** 2, "bending": 27}[name]
    assert float(REGULARITIES[name](field, grid)) == pytest.approx(factor * value, rel=1e-5)


@each_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folding_is_the_volume_that_is_turned_inside_out(shape: tuple[int, ...], dtype: torch.dtype):
    d = len(shape)
    flipped = -3 * indices(shape).to(dtype)
    flipped[:, 1:] = 0
    assert float(folding(flipped)) == pytest.approx(2)
    assert float(folding(0.5 * indices(shape).to(dtype))) == 0
    rough = random(2, d, *shape).to(dtype)
    assert float(folding(rough)) == pytest.approx(float((-jacobian.determinant(rough)).clamp_min(0).mean()), rel=1e-4)


@each_shape
def test_folding_is_differentiable(shape: tuple[int, ...]):
    rough = random(2, len(shape), *shape).requires_grad_()
    (expected,) = torch.autograd.grad((-jacobian.determinant(rough)).clamp_min(0).mean(), rough)
    (found,) = torch.autograd.grad(folding(rough), rough)
    torch.testing.assert_close(found, expected)
    smooth = torch.zeros(1, len(shape), *shape, requires_grad=True)
    folding(smooth).backward()
    assert (smooth.grad == 0).all()
