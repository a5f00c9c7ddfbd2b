import numpy as np
import pytest
import torch

from stepwarp.geometry import DisplacementField
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.probes.fixed_point import disturbed, path_independence, random_start, stays
from stepwarp.probes.objective import PairObjective
from stepwarp.probes.optimisers import lbfgs
from stepwarp.probes.trajectory import identity, rms


def test_a_contraction_has_one_end_and_an_ignorant_step_keeps_its_distance(contraction, ignorant, ramps):
    # Beyond the border nothing can be seen: the starts fade out there.
    fades = torch.hann_window(20)[:, None] * torch.hann_window(24)
    starts = {"random": DisplacementField(fades * random_start(ramps, 1.0, 3.0, seed=1).displacement, ramps.grid)}
    objective = PairObjective(SSD(), outside="border")
    contraction.outside = "border"
    found = path_independence(contraction, ramps, ramps, starts, objective)
    distance = found["random"]["distance"]
    assert distance.shape == (7, 3)
    assert (distance[0] > 0.2).all()
    assert (distance[-1] < 0.05 * distance[0]).all()
    assert (np.diff(distance, axis=0) < 0).all()
    assert (found["random"]["to_end"][-1] < 0.05 * distance[0]).all()
    blind = path_independence(ignorant, ramps, ramps, starts, objective)["random"]["distance"]
    assert (blind[-1] > 0.5 * blind[0]).all()


def test_ends_of_other_pairs_are_apart(descent, pairs, objective):
    found = path_independence(descent(), *pairs, {}, objective)
    assert (found["another pair"]["to_end"] > 0.1).all()
    assert (found["identity"]["to_end"][-1] == 0).all()


def test_descent_stays_at_its_optimum_and_ignorance_does_not(descent, ignorant, pairs):
    objective = PairObjective(SSD(), "diffusion", 0.0)
    optimum = lbfgs(objective, *pairs, 300).found
    step = descent(rate=2000)
    at_optimum, from_identity = (stays(step, *pairs, at, objective) for at in (optimum, identity(pairs[0])))
    assert at_optimum["drift"][-1].mean() < 0.5 * from_identity["drift"][-1].mean()
    assert (at_optimum["drift"][0] == 0).all()
    assert (stays(ignorant, *pairs, optimum, objective)["drift"][-1] > 1).all()


def test_nothing_moves_between_an_image_and_itself(descent, pairs, objective):
    fixed = pairs[0]
    found = stays(descent(), fixed, fixed, identity(fixed), objective)
    assert found["drift"] == pytest.approx(0, abs=1e-4)
    assert found["step"] == pytest.approx(0, abs=1e-4)


def test_random_starts_have_their_size_and_seed(pairs):
    fixed = pairs[0]
    start = random_start(fixed, 2.0, 3.0, seed=4)
    assert rms(start.displacement).tolist() == pytest.approx([2] * 6, rel=1e-4)
    torch.testing.assert_close(start.displacement, random_start(fixed, 2.0, 3.0, seed=4).displacement)
    moved = disturbed(start, fixed, torch.arange(6.0), 3.0, seed=5)
    assert rms(moved.displacement - start.displacement).tolist() == pytest.approx(range(6), abs=1e-4)
