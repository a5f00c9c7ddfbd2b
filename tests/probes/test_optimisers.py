import numpy as np
import pytest
import torch

from stepwarp.geometry import DisplacementField, Grid
from stepwarp.kernels import smoothing
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.probes.objective import PairObjective
from stepwarp.probes.optimisers import OPTIMISERS, compare
from stepwarp.registrar.steps import Images


class Counted(PairObjective):
    """Counts what it is asked for."""

    def value_and_gradient(self, fixed, moving, displacement):
        self.__dict__["asked"] = self.__dict__.get("asked", 0) + 1
        return super().value_and_gradient(fixed, moving, displacement)


@pytest.mark.parametrize("evaluations", [1, 7])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_evaluations_are_counted_exactly(name, evaluations, pairs):
    objective = Counted(SSD(), "diffusion", 0.01)
    found = OPTIMISERS[name](objective, *pairs, evaluations)
    assert objective.__dict__["asked"] == found.evaluations == evaluations
    assert found.values.shape == (1 + evaluations, 6)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_best_map_is_returned_and_is_never_worse_than_the_start(name, pairs, objective):
    found = OPTIMISERS[name](objective, *pairs, 30)
    assert (np.diff(found.values, axis=0) <= 0).all()
    assert (found.values[-1] < 0.5 * found.values[0]).all()
    reached = objective.values(*pairs, found.found.displacement)
    assert reached.numpy() == pytest.approx(found.values[-1], rel=1e-5)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_pairs_do_not_know_of_each_other(name, pairs, objective):
    together = OPTIMISERS[name](objective, *pairs, 12).values[:, 3]
    alone = OPTIMISERS[name](objective, *(Images(p.data[3:4], p.grid) for p in pairs), 12).values[:, 0]
    np.testing.assert_allclose(together, alone, rtol=1e-3)


class Bowl(PairObjective):
    """A quadratic whose axes differ in steepness by a hundred, around a minimum that is known."""

    def values(self, fixed, moving, displacement):
        steep = torch.logspace(0, 2, displacement[0].numel()).view_as(displacement[0])
        return (steep * (displacement - 1).square()).flatten(1).mean(1)


def test_lbfgs_solves_a_quadratic_that_gradient_descent_does_not():
    images = Images(torch.zeros(2, 1, 4, 5), Grid((4, 5), np.eye(3)))
    reached = {name: run(Bowl(SSD()), images, images, 60).values[-1] for name, run in OPTIMISERS.items()}
    assert (reached["L-BFGS"] < 1e-7).all()
    assert (reached["gradient descent"] > 10 * reached["L-BFGS"]).all()


def test_going_on_from_an_optimum_is_to_stay(pairs, objective):
    first = OPTIMISERS["L-BFGS"](objective, *pairs, 100)
    again = OPTIMISERS["L-BFGS"](objective, *pairs, 10, first.found)
    assert again.values[-1] == pytest.approx(first.values[-1], rel=0.03)


def test_equal_numbers_of_evaluations_beside_a_network(pairs, objective):
    losses = np.linspace(1, 0.5, 4)[:, None].repeat(6, 1)
    found = compare(losses, objective, *pairs, {"Adam": {"rate": 0.1}})
    assert set(found) == {"network", "none", *OPTIMISERS}
    assert all(values.shape == (4, 6) for values in found.values())
    assert (found["none"] == 1).all()


def test_volumes_too():
    grid = Grid((14, 15, 13), np.diag([2, 2, 2, 1.0]))
    image = smoothing.gaussian(torch.randn(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0)), 2)
    fixed = Images(image / image.std(), grid)
    shift = torch.zeros(1, 3, *grid.shape)
    shift[:, 2] = 1.0
    moving = fixed.warp(DisplacementField(shift, grid))
    for run in OPTIMISERS.values():
        values = run(PairObjective(LNCC(epsilon=1e-3), "diffusion", 0.01), fixed, moving, 15).values
        assert values[-1] < 0.5 * values[0]
