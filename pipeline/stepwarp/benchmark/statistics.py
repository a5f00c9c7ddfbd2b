"""What a handful of pairs says about a method, and about its difference from another one on the same pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata, wilcoxon

from stepwarp.evaluation.bootstrap import interval, interval_over_people
from stepwarp.evaluation.metric import Direction

#: The two people of each pair, where pairs share them.
People = Sequence[tuple[str, str]]

TEST = "Wilcoxon's signed-rank test on pairs, two-sided, exact up to 200 pairs, ties by mid-ranks, equal pairs left out"
TEST_ON_PEOPLE = (
    "the same on people: a pair's difference is taken for the mean of what each of its two people adds, which least"
    " squares find; none where the pairs do not determine that"
)

#: Up to this many pairs that differ, all signs are counted; beyond, the normal approximation is as good.
_EXACT = 200
#: Differences below this share of the values themselves are rounding.
_EQUAL = 1e-9


def described(values: np.ndarray, people: People | None = None) -> dict[str, Any]:
    """{n, mean, sd, median, q30, ci95} of values (N,), N at least 1; sd (N - 1) and ci95 are None for a single one.

    people: of each pair, where pairs share them. Then ci95 is None for pairs that do not tell their people apart."""
    several = len(values) > 1
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if several else None,
        "median": float(np.median(values)),
        "q30": float(np.quantile(values, 0.3)),
        "ci95": _interval(values, people),
    }


def compared(
    values: np.ndarray, baseline: np.ndarray, better: Direction, people: People | None = None
) -> dict[str, Any]:
    """A method beside the baseline on the same N pairs, in the same order: what `against_baseline` of a summary holds.

    people: as of `described`. Then the test is that on people.
    difference: mean of value minus baseline. wins, losses: pairs on which the method is better and worse than the
    baseline; None where neither end of the metric is better."""
    differences = values - baseline
    differences[np.abs(differences) <= _EQUAL * np.maximum(np.abs(values), np.abs(baseline))] = 0
    above, below, ties = (int(which.sum()) for which in (differences > 0, differences < 0, differences == 0))
    wins, losses = {"higher": (above, below), "lower": (below, above), None: (None, None)}[better]
    return {
        "n": len(differences),
        "difference": float(differences.mean()),
        "ci95": _interval(differences, people),
        "p_wilcoxon": signed_rank_p(differences) if people is None else _p_on_people(differences, people),
        "wins": wins,
        "losses": losses,
        "ties": ties,
    }


def added_by_people(values: np.ndarray, people: People) -> np.ndarray | None:
    """What each person adds to values (N,) that are the mean of what their two people add, by least squares; None
    where the pairs do not determine it. In the order of the people's names."""
    names, numbers = np.unique(np.array(people), return_inverse=True)
    takes_part = np.zeros((len(values), len(names)))
    np.add.at(takes_part, (np.arange(len(values))[:, None], numbers.reshape(-1, 2)), 0.5)
    found, _, rank, _ = np.linalg.lstsq(takes_part, values)
    return found if rank == len(names) else None


def _interval(values: np.ndarray, people: People | None) -> list[float] | None:
    if people is None:
        return list(interval(values)) if len(values) > 1 else None
    found = None if added_by_people(values, people) is None else interval_over_people(values, people)
    return found and list(found)


def _p_on_people(differences: np.ndarray, people: People) -> float | None:
    each = added_by_people(differences, people)
    return None if each is None else signed_rank_p(each)


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
