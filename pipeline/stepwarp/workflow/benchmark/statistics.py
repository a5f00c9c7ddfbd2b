"""What a handful of pairs says about a method, and about its difference from another one on the same pairs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]
from scipy.stats import rankdata, wilcoxon  # type: ignore[import-untyped]

#: Metric of a case -> whether more of it is better.
METRICS: Mapping[str, bool] = {
    "mean_dice": True,
    "mean_hd95_mm": False,
    "mean_asd_mm": False,
    "tre_mm": False,
    "folds_percent": False,
    "corner_folds": False,
    "ndv_percent": False,
    "std_log_jacobian": False,
    "inverse_mean_mm": False,
    "inverse_p95_mm": False,
    "seconds": False,
    "cpu_seconds": False,
    "peak_mib": False,
    "lncc_after": True,
}

#: How the interval is found, for those who read a summary.
INTERVAL = "95 % of the mean, by the bias-corrected and accelerated bootstrap with 10000 resamples, seed 0"
TEST = "Wilcoxon's signed-rank test on pairs, two-sided, exact up to 200 pairs, ties by mid-ranks, equal pairs left out"

_RESAMPLES, _SEED, _CONFIDENCE = 10_000, 0, 0.95
#: Up to this many pairs that differ, all signs are counted; beyond, the normal approximation is as good.
_EXACT = 200
#: Differences below this share of the values themselves are rounding.
_EQUAL = 1e-9


def described(values: np.ndarray) -> dict[str, Any]:
    """{n, mean, sd, median, q30, ci95} of values (N,), N at least 1; sd (N - 1) and ci95 are None for a single one."""
    several = len(values) > 1
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if several else None,
        "median": float(np.median(values)),
        "q30": float(np.quantile(values, 0.3)),
        "ci95": list(interval(values)) if several else None,
    }


def compared(values: np.ndarray, baseline: np.ndarray, higher_is_better: bool) -> dict[str, Any]:
    """A method beside the baseline on the same N pairs, in the same order: what `against_baseline` of a summary holds.

    difference: mean of value minus baseline. wins: pairs on which the method is better than the baseline."""
    differences = values - baseline
    differences[np.abs(differences) <= _EQUAL * np.maximum(np.abs(values), np.abs(baseline))] = 0
    better = differences > 0 if higher_is_better else differences < 0
    wins, ties = int(better.sum()), int((differences == 0).sum())
    return {
        "n": len(differences),
        "difference": float(differences.mean()),
        "ci95": list(interval(differences)) if len(differences) > 1 else None,
        "p_wilcoxon": signed_rank_p(differences),
        "wins": wins,
        "losses": len(differences) - wins - ties,
        "ties": ties,
    }


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


def signed_rank_p(differences: np.ndarray) -> float | None:
    """The p of `TEST` for paired differences (N,): 1 if all pairs are equal, None if there is no pair."""
    if len(differences) == 0:
        return None
    differences = differences[differences != 0]
    if len(differences) == 0:
        return 1.0
    if len(differences) > _EXACT:
        return float(wilcoxon(differences, correction=True, method="approx").pvalue)
    # Mid-ranks are multiples of a half: twice the ranks are whole numbers, and their sums can be counted.
    ranks = np.rint(2 * rankdata(np.round(np.abs(differences), 12))).astype(int)
    share = np.zeros(ranks.sum() + 1)
    share[0] = 1
    for rank in ranks:
        share[rank:] = (share[rank:] + share[:-rank]) / 2
        share[:rank] /= 2
    positive = ranks[differences > 0].sum()
    tail = min(positive, ranks.sum() - positive)
    return float(min(1.0, 2 * share[: tail + 1].sum()))


@lru_cache(maxsize=8)
def _resamples(n: int) -> np.ndarray:
    """The same draws for every metric and method of n pairs, (resamples, n)."""
    return np.random.default_rng(_SEED).integers(n, size=(_RESAMPLES, n))
