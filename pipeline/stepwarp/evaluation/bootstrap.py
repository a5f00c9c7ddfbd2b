"""How sure a mean over a handful of pairs is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri

#: How the intervals are found, for those who read a summary.
INTERVAL = "95 % of the mean, by the bias-corrected and accelerated bootstrap with 10000 resamples, seed 0"
INTERVAL_OVER_PEOPLE = (
    "95 % of the mean, by the percentiles of 10000 resamples of people, seed 0: a pair counts as often as the product"
    " of how often its two people were drawn"
)

_RESAMPLES, _SEED, _CONFIDENCE = 10_000, 0, 0.95
#: Draws that hold no pair at all are left out, and must be few.
_MOST_EMPTY = 0.05


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of values (N,), N at least 2: see INTERVAL.

    With as few as six pairs it is narrower than it should be; it says how far the mean depends on which pairs were
    drawn, no more."""
    mean, n = values.mean(), len(values)
    if np.ptp(values) == 0:
        return float(mean), float(mean)
    means = values[_resamples(n)].mean(1)
    # The bias: how far the mean is from the median of the resampled means; a tie counts half.
    bias = ndtri(np.clip((means < mean).mean() + (means == mean).mean() / 2, 1 / _RESAMPLES, 1 - 1 / _RESAMPLES))
    # The acceleration: the skewness of the jackknife; for a mean its values are the deviations over N - 1.
    deviations = values - mean
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    z = bias + ndtri(np.array([1 - _CONFIDENCE, 1 + _CONFIDENCE]) / 2)
    low, high = np.quantile(means, ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def interval_over_people(values: np.ndarray, pairs: Sequence[tuple[str, str]]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean of values (N,), one for each pair of two people; see
    INTERVAL_OVER_PEOPLE. None for so few pairs that many draws hold none.

    Pairs that share a person are not independent, and an interval that takes them so is too narrow: with 30 ordered
    pairs of six people it is people who were drawn (the pigeonhole bootstrap of Owen 2007, both ways of a pair being
    drawn by the same people)."""
    people, numbers = np.unique(np.array(pairs), return_inverse=True)
    fixed, moving = numbers.reshape(-1, 2).T
    drawn = _resamples(len(people))
    often = np.stack([(drawn == person).sum(1) for person in range(len(people))], 1)
    weights = often[:, fixed] * often[:, moving]
    total = weights.sum(1)
    if (total == 0).mean() > _MOST_EMPTY:
        return None
    means = (weights @ values)[total > 0] / total[total > 0]
    low, high = np.quantile(means, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _resamples(n: int) -> np.ndarray:
    """The same draws for every metric and method of n pairs, (resamples, n)."""
    return np.random.default_rng(_SEED).integers(n, size=(_RESAMPLES, n))
