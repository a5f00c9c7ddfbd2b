"""What all answers are made of: numbers with their intervals, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stepwarp.probes.statistics import described, described_rows, differs

#: Nested names -> arrays (seeds, ..., pairs).
Stacked = Mapping[str, Any]
#: From how many seeds and pairs on a difference that all seeds agree on is called sure: some are judged on half of 500.
SEEDS, PAIRS = 5, 240


@dataclass(frozen=True)
class Answer:
    """What a probe found, how sure that is, and what would change the mind; all texts follow from `numbers`, which are
    JSON-ready. verdict: in one or two words."""

    verdict: str
    found: str
    sure: str
    mind: str
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """Of two conditions on the same pairs and seeds. values: (seeds, pairs)."""

    what: str
    values: np.ndarray

    @cached_property
    def described(self) -> dict[str, Any]:
        return differs(self.values, np.zeros_like(self.values))

    @property
    def above(self) -> bool:
        """Whether its whole interval is above 0."""
        ends = self.described["ci95"]
        return ends is not None and ends[0] > 0

    @property
    def agreeing(self) -> int:
        """How many seeds have the sign of the mean."""
        with np.errstate(all="ignore"):
            means = np.nanmean(self.values, 1)
        return int((np.sign(means) == np.sign(np.nanmean(self.values))).sum())

    def text(self) -> str:
        """For people."""
        found = self.described
        if found["ci95"] is None:
            return f"{self.what}: not measured"
        low, high = found["ci95"]
        return (
            f"{self.what} {found['mean']:+.3g} ({low:+.3g} to {high:+.3g}; {self.agreeing} of {found['seeds']} seeds)"
        )


def sureness(*differences: Difference) -> str:
    """How sure the signs of the differences are that a verdict rests on, and their numbers."""
    found = [each.described for each in differences]
    unanimous = all(each.agreeing == row["seeds"] for each, row in zip(differences, found, strict=True))
    apart = all(row["apart"] for row in found)
    enough = all(row["seeds"] >= SEEDS and row["n"] >= PAIRS for row in found)
    level = "high" if unanimous and apart and enough else "fair" if unanimous and apart else "low"
    few = "" if enough else f", {found[0]['seeds']} seeds and {found[0]['n']} pairs are too few for more"
    return f"{level}{few}: " + "; ".join(each.text() for each in differences)


def described_all(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`described` of each (seeds, pairs)."""
    return {name: described(each) for name, each in values.items()}


def rows(values: np.ndarray) -> dict[str, list[Any]]:
    """Of (seeds, steps, pairs), {"mean", "ci95"} of every step."""
    found = described_rows(values)
    return {"mean": [row["mean"] for row in found], "ci95": [row["ci95"] for row in found]}


def mean(values: np.ndarray) -> float:
    """Over everything that is a number; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.0f} %"


def joined(parts: Sequence[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
