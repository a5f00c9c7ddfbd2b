"""A benchmark's summary and cases made ready for display: how each method looks, values by method."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepwarp.evaluation.metric import Metric

#: Families of methods: a prefix of the name, what the family is called, and its shades. Apart in hue for every kind of
#: colour vision (Okabe and Ito 2008, lightened for a dark page); within a family, shades and marks differ.
FAMILIES = {
    "stepwarp": ("stepwarp", ("#ffb03b", "#ff8419", "#ffd79a", "#d86f1c")),
    "ants": ("ANTs", ("#56b4e9", "#2e86d6", "#a6dbff", "#4f9dff", "#1f6fb0", "#86b6ff")),
    "simpleitk": ("SimpleITK", ("#1fbd92", "#7fe0c4", "#0f8f6c")),
    "identity": ("starts", ("#98a2b0",)),
    "centre-of-mass": ("starts", ("#c3cad4",)),
    "": ("others", ("#df8fc8", "#b878b8", "#f3c1e2", "#9c5fa8")),
}

#: Methods that only place the images: they have no say in how far an axis reaches, and are never the best.
STARTS = ("identity", "centre-of-mass")

MARKS = ("circle", "square", "diamond", "triangle", "down", "cross")


@dataclass(frozen=True)
class Look:
    """A method on the page. number: its class in the style sheet, so that one press can single it out."""

    name: str
    title: str
    number: int
    family: str
    colour: str
    mark: str

    @property
    def is_start(self) -> bool:
        return self.name in STARTS


@dataclass(frozen=True)
class Value:
    """One number of one case, or of one label of it. of: what it belongs to, in words."""

    of: str
    number: float


@dataclass
class Board:
    """summary: the content of summary.json. cases: the content of every case's JSON, in any order.

    Cases of methods that the summary does not hold are left out."""

    summary: Mapping[str, Any]
    cases: Sequence[Mapping[str, Any]]
    looks: dict[str, Look] = field(init=False)

    def __post_init__(self) -> None:
        self.looks = dict(_looks(self.summary["methods"]))
        self.cases = [case for case in self.cases if case["method"] in self.looks]

    @property
    def baseline(self) -> str | None:
        return self.summary.get("baseline")

    @property
    def pairs(self) -> list[str]:
        return list(self.summary["manifest"]["pairs"])

    @property
    def present(self) -> list[str]:
        """Methods that are not absent, in the summary's order."""
        return [name for name, method in self.summary["methods"].items() if not method.get("absent")]

    def done(self, method: str | None = None) -> Iterator[Mapping[str, Any]]:
        """The cases that ran to their end."""
        return (c for c in self.cases if c["status"] == "done" and method in (None, c["method"]))

    def rows(self, method: str) -> list[Mapping[str, Any]]:
        """A method's cases as flat rows, in the summary's order: those that failed, then the worst."""
        return [row for row in self.summary["cases"] if row["method"] == method]

    def statistics(self, method: str, metric: Metric) -> Mapping[str, Any] | None:
        """What the summary says about one metric of one method, None where it says nothing."""
        found = self.summary["methods"][method].get("metrics", {}).get(metric.key)
        return found if found and number(found.get("mean")) is not None else None

    def mean(self, method: str, metric: Metric) -> float | None:
        """Of a metric over a method's cases."""
        found = self.statistics(method, metric)
        return found["mean"] if found else None

    def measured(self, metrics: Iterable[Metric]) -> list[Metric]:
        """Those metrics that at least one method has."""
        return [metric for metric in metrics if any(self.statistics(name, metric) for name in self.present)]

    def values(self, metric: Metric) -> dict[str, list[Value]]:
        """Method -> the metric of each of its cases."""
        found = {}
        for method in self.present:
            numbers = [(str(row["pair"]), number(row.get(metric.key))) for row in self.rows(method)]
            found[method] = [Value(pair, value) for pair, value in numbers if value is not None]
        return {method: values for method, values in found.items() if values}

    def label_dice(self, labels: Iterable[int] | None = None) -> dict[str, list[Value]]:
        """Method -> Dice of each label of each case; of all labels by default."""
        wanted = None if labels is None else {str(n) for n in labels}
        found: dict[str, list[Value]] = defaultdict(list)
        for method in self.present:
            for case in self.done(method):
                for label, scores in case["evaluation"].get("labels", {}).items():
                    dice = number(scores.get("dice"))
                    if dice is not None and (wanted is None or label in wanted):
                        name = scores.get("name") or f"label {label}"
                        found[method].append(Value(f"{case['pair']}, {name}", dice))
        return dict(found)

    def groups(self) -> dict[str, list[int]]:
        """Label groups that have a score, name -> those of their labels that do."""
        known = self.summary["manifest"].get("label_groups") or {}
        scored = {int(n) for case in self.done() for n in case["evaluation"].get("labels", {})}
        return {name: sorted(scored & set(labels)) for name, labels in known.items() if scored & set(labels)}

    def landmarks(self) -> dict[str, dict[str, list[Value]]]:
        """Landmark -> method -> its error in mm in each case, the landmark with the largest errors first."""
        found: dict[str, dict[str, list[Value]]] = defaultdict(lambda: defaultdict(list))
        for case in self.done():
            for name, error in case["evaluation"].get("tre_mm", {}).get("landmarks", {}).items():
                after = number(error.get("after"))
                if after is not None:
                    found[name][case["method"]].append(Value(str(case["pair"]), after))
        return dict(sorted(found.items(), key=lambda item: -self._difficulty(item[1])))

    def _difficulty(self, errors: Mapping[str, list[Value]]) -> float:
        means = [mean(values) for method, values in errors.items() if not self.looks[method].is_start]
        return sorted(means)[len(means) // 2] if means else 0.0


def mean(values: Sequence[Value]) -> float:
    """Of at least one value."""
    return sum(value.number for value in values) / len(values)


def number(value: Any) -> float | None:
    """A finite number, None for anything else that a JSON file may hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _looks(methods: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Look]]:
    used: dict[str, int] = defaultdict(int)
    for count, (name, method) in enumerate(methods.items()):
        prefix = next(prefix for prefix in FAMILIES if name.startswith(prefix))
        family, shades = FAMILIES[prefix]
        turn = used[family]
        used[family] += 1
        colour, mark = shades[turn % len(shades)], MARKS[turn % len(MARKS)]
        yield name, Look(name, str(method.get("title") or name), count, family, colour, mark)
