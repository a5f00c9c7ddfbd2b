import numpy as np
import pytest

from stepwarp.errors import InputError
from stepwarp.evaluation.distances import DistanceSummary
from stepwarp.evaluation.landmarks import target_registration_error
from stepwarp.geometry import Affine

POINTS = np.random.default_rng(0).normal(0, 40, (32, 3))
SHIFT = Affine(np.array([[1, 0, 0, 3.0], [0, 1, 0, 4.0], [0, 0, 1, 0]]))


def test_fixed_points_are_sent_to_moving_points():
    assert target_registration_error(SHIFT, POINTS, SHIFT(POINTS)) == pytest.approx(np.zeros(32))
    assert target_registration_error(Affine.identity(3), POINTS, SHIFT(POINTS)) == pytest.approx(np.full(32, 5.0))
    assert target_registration_error(SHIFT, SHIFT(POINTS), POINTS) == pytest.approx(np.full(32, 10.0))


@pytest.mark.parametrize("moving", [POINTS[:-1], POINTS[:, :2], np.full_like(POINTS, np.nan)])
def test_points_that_do_not_pair_up_are_refused(moving):
    with pytest.raises(InputError, match="landmark"):
        target_registration_error(SHIFT, POINTS, moving)


def test_summary():
    summary = DistanceSummary.of(np.arange(101.0))
    assert summary.as_dict() == {"count": 101, "mean_mm": 50, "median_mm": 50, "p95_mm": 95, "max_mm": 100}
    with pytest.raises(ValueError, match="no distances"):
        DistanceSummary.of(np.array([]))
