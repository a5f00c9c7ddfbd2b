"""What is to be known of a metric: its names, which way is better, where it lies in JSON files, where it is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

#: Which values are better; None where neither end is, so that none is the best and no method wins by it.
Direction = Literal["higher", "lower"] | None
Family = Literal["accuracy", "regularity", "cost"]
#: Where a metric is shown, beside the rows of all that has it. benchmark: its summary, table.md, cases.csv and the
#: page's tables. against: the differences from the baseline in table.md. headline: what a method is known by, the first
#: that there is. terminal: the benchmark's table there. figure, cases: a figure of its own and a column of the table of
#: cases on the benchmark's page; with `batch`: on the batch's.
View = Literal["benchmark", "against", "headline", "terminal", "figure", "cases", "batch figure", "batch cases"]
VIEWS: tuple[View, ...] = get_args(View)


def _only(values: Sequence[float]) -> float:
    return values[0]


def total(values: Sequence[float]) -> float:
    """The sum, to a hundredth."""
    return round(sum(values), 2)


@dataclass(frozen=True)
class Metric:
    """One number of a case. key: its name in summaries, tables of cases and the lists of their readers.

    name: in words; short: the heading of a column, if that is another. decimals: how many are shown; None shows three
    significant digits, and whole numbers whole. case: the keys to follow in a benchmark's case, whose `evaluation` is
    what `stepwarp evaluate` gives. record: the same in registration.json, the first of several that is there; over:
    what becomes of the values of a list there. factor: from the stored number to the unit. of_label: its key in
    the scores of a label, where it is the mean over labels. remark: what the terminal says behind it."""

    key: str
    name: str
    better: Direction
    family: Family
    meaning: str
    unit: str = ""
    decimals: int | None = 3
    short: str = ""
    case: str = ""
    record: tuple[str, ...] = ()
    over: Callable[[Sequence[float]], float] = _only
    factor: float = 1
    of_label: str = ""
    remark: str = ""
    shown: tuple[View, ...] = VIEWS

    @property
    def title(self) -> str:
        """The heading of a column on a page, without the unit."""
        words = self.short or self.name
        return words[0].upper() + words[1:]

    @property
    def heading(self) -> str:
        """The heading of a figure or a row."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def heading_in_words(self) -> str:
        """The heading of a row that has room for the whole name."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def column(self) -> str:
        """The heading of a column of text."""
        words = self.short or self.name
        return f"{words}, {self.unit}" if self.unit else words

    def in_case(self, case: Mapping[str, Any]) -> float | None:
        """Its value in a benchmark's case; None where it was not measured."""
        values = _follow(case, self.case) if self.case else []
        return values[0] * self.factor if values else None

    def in_record(self, record: Mapping[str, Any]) -> float | None:
        """Its value in a registration.json; None where it was not measured."""
        values = next((found for path in self.record if (found := _follow(record, path))), None)
        return None if values is None else self.over(values) * self.factor

    def plain(self, value: float, signed: bool = False) -> str:
        """A value in ASCII, without its unit."""
        return f"{value:{'+' if signed else ''}.{self._digits(value)}f}"

    def said(self, value: float, signed: bool = False) -> str:
        """A value in a line of text: what it is of, and its unit."""
        return f"{self.title} {self.plain(value, signed)} {self.unit}".rstrip()

    def text(self, value: float | None, signed: bool = False) -> str:
        """A value as the pages show it, without its unit; a dash for none."""
        if value is None:
            return "-"
        written = f"{value:{'+' if signed and value else ''},.{self._digits(value)}f}"
        return written.replace("-", "\N{MINUS SIGN}")

    def _digits(self, value: float) -> int:
        if self.decimals is not None:
            return self.decimals
        return 0 if value == round(value) else min(6, max(0, 2 - math.floor(math.log10(abs(value)))))


def _follow(content: Any, path: str) -> list[Any]:
    """The values at a path of keys, of every item of a list on the way; none where it ends before."""
    values = [content]
    for key in path.split("."):
        values = [value[key] for value in values if isinstance(value, Mapping) and value.get(key) is not None]
        values = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return values
