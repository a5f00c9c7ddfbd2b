"""The energies of displacements whose derivatives are known."""

import pytest
import torch
from monai.losses import BendingEnergyLoss, DiffusionLoss

from stepwarp.geometry import Grid
from stepwarp.losses.regularity import REGULARITIES, bending, diffusion, gradient

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


@each_shape
@pytest.mark.parametrize("name", REGULARITIES)
def test_gradient_against_finite_differences(name: str, shape: tuple[int, ...]):
    displacement, direction = random(1, len(shape), *shape), random(2, len(shape), *shape)[1:]
    energy, step = REGULARITIES[name], 1e-5
    slope = (energy(displacement + step * direction) - energy(displacement - step * direction)) / (2 * step)
    found = gradient(name, displacement)
    assert found.shape == displacement.shape
    assert float((found * direction).sum()) == pytest.approx(float(slope), rel=1e-7)


@pytest.mark.parametrize("name", REGULARITIES)
def test_axes_of_one_voxel_cost_nothing(name: str):
    flat = random(1, 2, 7, 9)
    thick = torch.cat([flat, torch.zeros(1, 1, 7, 9)], 1)[..., None]
    assert float(REGULARITIES[name](thick)) == pytest.approx(float(REGULARITIES[name](flat)))
    assert float(REGULARITIES[name](torch.ones(1, 3, 1, 1, 1))) == 0


@pytest.mark.parametrize("name", REGULARITIES)
def test_a_gradient_is_found_where_none_are_kept(name: str):
    with torch.no_grad():
        found = gradient(name, random(1, 3, 5, 6, 7))
    assert not found.requires_grad
    assert 0 < found.abs().max() < 100
