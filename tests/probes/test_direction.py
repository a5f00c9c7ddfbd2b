import numpy as np
import pytest
import torch

from stepwarp.geometry import DisplacementField
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.networks import Segmenter, UNet
from stepwarp.probes.direction import FINAL, NEWTON, OF_ANOTHER, RAW, direction, smooth
from stepwarp.probes.objective import PairObjective, State
from stepwarp.probes.trajectory import Taken, trajectory, walk
from stepwarp.registrar.steps import Guided, Images, Repeat, Segmented

SSD_ALONE = PairObjective(SSD())


def test_gradient_descent_follows_the_gradient(descent, pairs):
    found = direction(walk(descent(), *pairs), SSD_ALONE, trajectory(descent(), *pairs)[-1])
    assert found[RAW].shape == (5, 6)
    assert found[RAW] == pytest.approx(1, abs=1e-4)
    assert np.abs(found[RAW + OF_ANOTHER]).max() < 0.5
    assert (found[smooth(2)] < found[RAW]).all()
    assert (found[NEWTON] > 0).all()


def test_smoothed_descent_follows_the_gradient_of_its_width(descent, pairs):
    step = descent(rate=20000, sigma=2.0)
    found = direction(walk(step, *pairs), SSD_ALONE, trajectory(step, *pairs)[-1])
    assert found[smooth(2)] == pytest.approx(1, abs=1e-4)
    best = max((name for name in found if name.startswith("smooth") or name == RAW), key=lambda n: found[n].mean())
    assert best == smooth(2)


def test_a_step_that_ignores_the_images_fails(ignorant, pairs):
    found = direction(walk(ignorant, *pairs), SSD_ALONE, trajectory(ignorant, *pairs)[-1])
    assert abs(found[RAW].mean()) < 0.4
    assert abs(found[RAW].mean() - found[RAW + OF_ANOTHER].mean()) < 0.15


def test_the_last_step_leads_to_the_final_answer(descent, pairs):
    step = descent(rate=20000, sigma=2.0)
    found = direction(walk(step, *pairs), SSD_ALONE, trajectory(step, *pairs)[-1])[FINAL]
    assert found[-1] == pytest.approx(1, abs=1e-2)
    assert (found[0] < 1).all()


def test_steps_that_are_shown_a_segmentation_are_probed_on_the_images(pairs):
    segmented = Segmented(Segmenter(2, 3, (8,)), Repeat(Guided(UNet(2, (4,), in_channels=6)), 3))
    states = [taken.state for taken in walk(segmented, *pairs)]
    assert [len(state.fixed.data[0]) for state in states] == [1, 1, 1]
    found = direction(walk(segmented, *pairs), SSD_ALONE, trajectory(segmented, *pairs)[-1])
    assert np.isfinite(found[RAW]).all()


def test_no_step_and_no_other_pair_have_no_direction(pairs):
    fixed, moving = (Images(images.data[:1], images.grid) for images in pairs)
    still = torch.zeros(1, 2, *fixed.grid.shape)
    taken = Taken(State(fixed, moving, still), still, DisplacementField(still, fixed.grid))
    found = direction([taken], SSD_ALONE, DisplacementField(still, fixed.grid))
    assert np.isnan(found[RAW]).all()
    assert np.isnan(found[RAW + OF_ANOTHER]).all()
