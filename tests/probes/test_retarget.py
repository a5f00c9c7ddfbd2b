import numpy as np
import pytest
import torch

from stepwarp.losses.similarities.ssd import SSD
from stepwarp.probes.objective import PairObjective
from stepwarp.probes.retarget import retarget
from stepwarp.registrar.steps import Images


@pytest.fixture
def shifted(ramps):
    """Targets of the ramps: each half a voxel or more away."""
    ahead, back = (Images(ramps.data + by, ramps.grid) for by in (1.0, -2.0))
    return ahead, back


def test_a_contraction_follows_its_target(contraction, ramps, shifted):
    contraction.outside = "border"
    found = retarget(contraction, *shifted, ramps, PairObjective(SSD(), outside="border"), swap_at=3, count=6)
    assert found["swapped"].shape == (7, 3)
    assert found["before"].shape == (4, 3)
    assert (found["swapped"][0] > found["straight"][0]).all()  # it had gone the other way
    assert found["share"] == pytest.approx(1, abs=0.02)
    assert (found["share_kept"] < 0).all()
    # Half of the way per step: 90 % of what the squared difference can fall takes two steps, and one more from afar.
    assert (found["steps_straight"] == 2).all()
    assert (found["steps_swapped"] >= 2).all()


def test_a_step_that_ignores_its_images_does_not(ignorant, pairs, objective):
    fixed, moving = pairs
    other = Images(torch.roll(fixed.data, 1, 0), fixed.grid)
    found = retarget(ignorant, fixed, other, moving, objective)
    np.testing.assert_allclose(found["swapped"], found["kept"], rtol=1e-6)
    assert np.isnan(found["steps_swapped"]).all()
