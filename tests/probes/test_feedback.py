import numpy as np
import pytest

from stepwarp.probes.feedback import BLIND, FULL, MEAN, ONCE, OTHERS, feedback
from stepwarp.registrar.steps import Downsampled, Images, TwoStep


def test_a_step_that_ignores_the_images_loses_nothing(ignorant, pairs, objective):
    found = feedback(ignorant, *pairs, objective)
    for variant in (BLIND, MEAN, OTHERS):
        np.testing.assert_allclose(found["loss"][variant], found["loss"][FULL], rtol=1e-4)


def test_descent_needs_its_feedback(descent, pairs, objective):
    # So fast that steps on the image as it was overshoot.
    found = feedback(descent(20000, 2.0), *pairs, objective)
    surviving = {name: values.mean() for name, values in found["surviving"].items()}
    assert surviving[FULL] == pytest.approx(1)
    assert surviving[BLIND] < 0.95
    assert surviving[OTHERS] < 0.3
    assert surviving[ONCE] < 1
    assert (found["best"][BLIND] >= found["surviving"][BLIND]).all()


def test_mean_steps_do_not_know_their_own_pair(descent, pairs, objective):
    fixed, moving = pairs
    alone = fixed.data.clone(), moving.data.clone()
    alone[1][1:] = alone[0][1:]  # only the first pair has anywhere to go
    one = Images(alone[0], fixed.grid), Images(alone[1], fixed.grid)
    found = feedback(descent(), *one, objective)
    assert found["loss"][MEAN][:, 0] == pytest.approx(found["loss"][MEAN][0, 0])


def test_mean_steps_of_other_pairs_for_a_single_one(descent, pairs, objective):
    first, rest = (tuple(Images(p.data[part], p.grid) for p in pairs) for part in (slice(0, 1), slice(1, 6)))
    found = feedback(descent(), *first, objective, calibration=rest)
    expected = feedback(descent(), *pairs, objective)
    assert OTHERS not in found["loss"]
    np.testing.assert_allclose(found["loss"][MEAN][:, 0], expected["loss"][MEAN][:, 0], rtol=1e-5)


def test_in_a_pyramid_only_the_first_step_is_the_same_blind(descent, pairs, objective):
    step = TwoStep(Downsampled(descent(n=2), 2), descent(n=2))
    found = feedback(step, *pairs, objective)["loss"]
    np.testing.assert_allclose(found[BLIND][:2], found[FULL][:2], rtol=1e-4)
    assert not np.allclose(found[BLIND][-1], found[FULL][-1], rtol=1e-4)


def test_more_steps_than_trained(descent, pairs, objective):
    found = feedback(descent(n=2), *pairs, objective, count=5)
    assert all(values.shape == (6, 6) for values in found["loss"].values())
