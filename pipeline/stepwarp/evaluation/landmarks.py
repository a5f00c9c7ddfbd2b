"""Distance between where a transform sends landmarks and where their matches are."""

from __future__ import annotations

import numpy as np

from stepwarp.errors import InputError
from stepwarp.geometry import Transform


def target_registration_error(transform: Transform, fixed_points: np.ndarray, moving_points: np.ndarray) -> np.ndarray:
    """|T(fixed) - moving| in mm for each pair of landmarks, shape (N,).

    transform: fixed world to moving world. fixed_points, moving_points: (N, D) RAS+ mm in their own image's world, one
    row per landmark, matched by row. Raises InputError if the two do not pair up or hold a value that is not finite."""
    fixed_points, moving_points = np.asarray(fixed_points, float), np.asarray(moving_points, float)
    expected = (len(fixed_points), transform.ndim)
    if fixed_points.shape != expected or moving_points.shape != expected:
        raise InputError(
            f"landmarks of shape {fixed_points.shape} and {moving_points.shape} do not pair up: "
            f"both need one row of {transform.ndim} coordinates per landmark"
        )
    if not (np.isfinite(fixed_points).all() and np.isfinite(moving_points).all()):
        raise InputError("a landmark has a coordinate that is not a finite number")
    return np.linalg.norm(transform(fixed_points) - moving_points, axis=1)
