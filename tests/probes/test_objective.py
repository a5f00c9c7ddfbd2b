import numpy as np
import pytest
import torch

from stepwarp.geometry import DisplacementField, Grid
from stepwarp.kernels import sampling, smoothing
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.losses.similarities.mind import MIND
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.probes.objective import PairObjective, State, gauss_newton, inner, of_moved, of_regularity
from stepwarp.registrar.steps import Images


def state(fixed, moving, u):
    return State(fixed, moving.warp(DisplacementField(u, fixed.grid)), u)


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("similarity", [SSD(), NCC(), LNCC(epsilon=1e-3)])
def test_gradient_is_that_of_a_displacement_composed_inside(pairs, random_field, similarity, weight):
    """Against the change of the objective along a smooth direction near the gradient's own, by a central difference."""
    fixed = pairs[0]
    moving = Images(torch.roll(pairs[1].data, 1, 0), fixed.grid)  # so unlike that interpolation matters little
    objective = PairObjective(similarity, "diffusion", weight)
    u = 0.3 * random_field.expand(6, -1, -1, -1)
    gradient = objective.gradient(state(fixed, moving, u))
    v = smoothing.gaussian(gradient / gradient.abs().amax((1, 2, 3), keepdim=True), 2)
    values = [objective.values(fixed, moving, sampling.compose(u, by * v)).double() for by in (-0.1, 0.1)]
    expected = (values[1] - values[0]) / 0.2
    torch.testing.assert_close(inner(gradient, v).flatten().double(), expected, rtol=0.3, atol=0)


def test_bending_and_diffusion_pull_a_field_flat(pairs, random_field):
    fixed, moving = pairs
    u = random_field.expand(6, -1, -1, -1)
    for name in ("diffusion", "bending"):
        objective = PairObjective(SSD(), name, 1.0)
        gradient = of_regularity(name)(state(fixed, moving, u))
        shorter = sampling.compose(u, -0.02 * gradient / gradient.abs().amax())
        assert (objective.energies(shorter, fixed.grid) < objective.energies(u, fixed.grid)).all()


def test_value_and_gradient_are_per_pair(pairs, random_field, objective):
    fixed, moving = pairs
    u = 0.3 * random_field.expand(6, -1, -1, -1).contiguous()
    values, gradients = objective.value_and_gradient(fixed, moving, u)
    alone = objective.value_and_gradient(
        Images(fixed.data[2:3], fixed.grid), Images(moving.data[2:3], fixed.grid), u[2:3]
    )
    torch.testing.assert_close(values[2:3], alone[0])
    torch.testing.assert_close(gradients[2:3], alone[1])


def test_gauss_newton_finds_a_shift_that_one_gradient_step_does_not():
    grid = Grid((40,), np.eye(2))
    x = torch.arange(40.0)
    fixed = Images(torch.sin(x / 4)[None, None], grid)
    moving = Images(torch.sin((x - 0.3) / 4)[None, None], grid)
    step = gauss_newton(state(fixed, moving, torch.zeros(1, 1, 40)), PairObjective(SSD(), "diffusion", 0.01))
    assert step[0, 0, 4:-4] == pytest.approx(torch.full((32,), 0.3), abs=0.02)


def test_gauss_newton_lowers_the_objective_in_3d():
    grid = Grid((12, 13, 11), np.diag([2, 2, 2, 1.0]))
    image = smoothing.gaussian(torch.randn(2, 1, *grid.shape, generator=torch.Generator().manual_seed(0)), 2)
    image = image / image.std()
    fixed = Images(image, grid)
    shift = torch.zeros(2, 3, *grid.shape)
    shift[:, 1] = 0.4
    moving = fixed.warp(DisplacementField(shift, grid))
    for similarity in (SSD(), NCC(), LNCC(epsilon=1e-3)):
        objective = PairObjective(similarity, "diffusion", 0.05)
        still = torch.zeros_like(shift)
        step = gauss_newton(state(fixed, moving, still), objective)
        share = 0.9 if isinstance(similarity, LNCC) else 0.5  # its curvature is an upper bound
        assert (objective.values(fixed, moving, 0.5 * step) < share * objective.values(fixed, moving, still)).all()
    assert gauss_newton(state(fixed, moving, still), PairObjective(MIND())) is None


def test_any_energy_of_the_moved_image_is_a_candidate(pairs):
    fixed, moving = pairs
    still = state(fixed, moving, torch.zeros(6, 2, *fixed.grid.shape))
    brightness = of_moved(lambda fixed, moved: moved.flatten(1).sum(1))(still)
    torch.testing.assert_close(brightness, torch.stack(torch.gradient(moving.data[:, 0], dim=(1, 2)), 1))
