import numpy as np
import pytest

from stepwarp.losses.similarities.ssd import SSD
from stepwarp.probes.inner_objective import candidates, inner_objective
from stepwarp.probes.objective import blurred, smoothed
from stepwarp.probes.trajectory import walk

TRAIN, TEST = [0, 1, 2, 3], [4, 5]


def test_descent_on_ssd_is_recognised_and_nothing_else_is_needed(descent, pairs):
    found = inner_objective(walk(descent(), *pairs), candidates(), TRAIN, TEST)
    assert found["r2"]["all"] == pytest.approx(1, abs=1e-4)
    assert found["r2"]["pooled"].shape == (5, 2)
    assert found["alone"]["SSD"] == pytest.approx(1, abs=1e-4)
    assert (found["alone"]["diffusion"] < 0.2).all()
    weights = dict(zip(found["names"], found["weights"]["pooled"], strict=True))
    assert weights["SSD"] == pytest.approx(1, abs=1e-2)
    assert sum(weights.values()) - weights["SSD"] < 0.05
    assert (found["without"]["SSD"] < found["r2"]["all"] - 1e-3).all()
    assert (found["null"] < 0.3).all()


def test_a_metric_that_was_used_is_found_among_candidates(descent, pairs):
    gradients = candidates() | {"SSD, smooth 2": smoothed(candidates()["SSD"], 2.0)}
    found = inner_objective(walk(descent(20000, 2.0), *pairs), gradients, TRAIN, TEST)
    assert found["alone"]["SSD, smooth 2"] == pytest.approx(1, abs=1e-4)
    assert max(found["alone"], key=lambda name: found["alone"][name].mean()) == "SSD, smooth 2"


def test_a_step_that_ignores_the_images_is_explained_by_no_similarity(ignorant, pairs):
    gradients = {"SSD": candidates()["SSD"], "blurred": blurred(SSD(), 1.0)}
    found = inner_objective(walk(ignorant, *pairs), gradients, TRAIN, TEST)
    assert (found["r2"]["all"] < 0.1).all()


def test_weights_are_not_negative(descent, pairs):
    """An ascent is no descent of anything: every weight is 0, and it explains nothing."""
    found = inner_objective(walk(descent(-500, n=1), *pairs), {"SSD": candidates()["SSD"]}, TRAIN, TEST)
    assert found["weights"]["pooled"].tolist() == [0]
    assert found["r2"]["all"] == pytest.approx(0)
    assert np.isfinite(found["weights"]["by_step"]).all()
