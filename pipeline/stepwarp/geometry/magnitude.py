"""The size of an image's numbers, where it is far from 1."""

from __future__ import annotations

import math

import numpy as np


def magnitude(values: np.ndarray) -> float:
    """The power of two below the largest finite size among the values; 1 where all are 0.

    Divided by it they lose nothing, and their differences neither overflow nor vanish: intensities may be of the order
    of 1e300, or of 1e-310, between which and 0 there is little left of double precision."""
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max(initial=0))
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest else 1.0
