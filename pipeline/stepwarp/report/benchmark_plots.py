"""The benchmark's figures as inline SVG: positions across are percentages, so text keeps its size on every screen.

Every function returns HTML that is escaped. What a mark stands for is its hover title."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np

from stepwarp.evaluation.metric import Metric
from stepwarp.printable import counted
from stepwarp.report.benchmark_data import Board, Look, Value, mean, number

#: Heights in pixels: a method's row, a landmark's row, room for tick labels, a scatter plot.
ROW, LANDMARK_ROW, AXIS, SCATTER = 24, 19, 22, 330

#: The narrowest a scatter plot gets, in pixels: labels that do not touch there touch nowhere.
NARROWEST = 285

#: A row with more values than this shows as dots only what lies beyond its whiskers, and at most so many at each end.
DOTS, FURTHEST = 60, 15

#: How many landmarks a figure shows, and how many characters a label in it has.
LANDMARKS, CHARACTERS = 40, 24

#: Seconds that people think in.
CLOCK = {0.01: "10 ms", 0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36000: "10 h"}

SHAPES = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "square": "M-4.5-4.5h9v9h-9z",
    "diamond": "M0-6.2L6.2 0L0 6.2L-6.2 0z",
    "triangle": "M0-5.8L5.8 4.4H-5.8z",
    "down": "M0 5.8L5.8-4.4H-5.8z",
    "cross": "M-1.9-5.4h3.8v3.5h3.5v3.8h-3.5v3.5h-3.8v-3.5h-3.5v-3.8h3.5z",
}


Looks = Mapping[str, Look]


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, with its ticks (value -> text). log: its logarithm is even."""

    low: float
    high: float
    ticks: Mapping[float, str]
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, 0 to 1; values beyond an end lie on it."""
        low, high, value = (map(_log10, (self.low, self.high, value))) if self.log else (self.low, self.high, value)
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def holds(self, value: float) -> bool:
        """Whether a value lies within the axis."""
        return self.low <= value <= self.high


def _log10(value: float) -> float:
    return math.log10(max(value, 1e-9))


def linear_axis(values: Iterable[float], about: int = 5) -> Axis:
    """A linear axis with round ends around the values."""
    values = list(values)
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = (0.0, high or 1.0) if high >= 0 else (low, 0.0)
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, {k * step: f"{k * step:.6g}" for k in range(first, last + 1)})


def time_axis(values: Iterable[float]) -> Axis:
    """A logarithmic axis of seconds around positive values."""
    values = list(values)
    room = 1.4 if max(values) > 4 * min(values) else 2  # enough that a round number lies on each side
    low, high = min(values) / room, max(values) * room
    ticks = {second: text for second, text in CLOCK.items() if low <= second <= high}
    if len(ticks) < 2:
        steps = [k * 10.0**e for e in range(-3, 6) for k in (1, 2, 5)]
        ticks = {second: f"{second:g} s" for second in steps if low <= second <= high}
    return Axis(low, high, ticks, log=True)


def distributions(looks: Looks, values: Mapping[str, list[Value]], metric: Metric, of: str = "") -> str:
    """A row per key of `values` and `looks`, which is a method: box, whiskers, mean and values.

    of: what is measured, for those who do not see the figure."""
    shown = {method: _numbers(found) for method, found in values.items()}
    axis = linear_axis(_limits(looks, shown))
    rows = "".join(
        _row(looks[m], values[m], n, metric, axis, ROW * i + ROW / 2) for i, (m, n) in enumerate(shown.items())
    )
    names = "".join(_name(looks[method]) for method in shown)
    height = ROW * len(shown)
    means = ", ".join(f"{looks[m].name} {metric.text(float(n.mean()))}" for m, n in shown.items())
    picture = _svg(height + AXIS, f"{metric.heading} {of}".strip() + f". Means: {means}", _grid(axis, height) + rows)
    return f'<div class="plot"><div class="names" aria-hidden="true">{names}</div>{picture}</div>'


def _numbers(values: Sequence[Value]) -> np.ndarray:
    return np.array([value.number for value in values])


def _limits(looks: Looks, shown: Mapping[str, np.ndarray]) -> list[float]:
    """What the axis must hold: all values of the methods that do more than place the images, if there are such."""
    rows = [n for method, n in shown.items() if not looks[method].is_start] or list(shown.values())
    return [float(end) for numbers in rows for end in (numbers.min(), numbers.max())]


def _row(look: Look, values: Sequence[Value], numbers: np.ndarray, metric: Metric, axis: Axis, y: float) -> str:
    low, first, middle, third, high = np.percentile(numbers, (5, 25, 50, 75, 95))
    centre = float(numbers.mean())
    drawn = values if len(values) <= DOTS else _furthest(values, low, high)
    dots = "".join(
        _dot(axis.at(v.number), y + _jitter(i), f"{v.of}: {metric.text(v.number)}")
        for i, v in enumerate(drawn)
        if axis.holds(v.number) and axis.holds(centre)
    )
    box = _box(axis, (low, first, middle, third, high), y) if len(values) > 3 and axis.holds(centre) else ""
    quartiles = f"quartiles {metric.text(first)} to {metric.text(third)}"
    about = (
        f"{look.title}: mean {metric.text(centre)}, median {metric.text(middle)}, {quartiles}, "
        f"{counted(len(values), 'value')}"
    )
    return f'<g class="mark m{look.number}">{box}{dots}{_mark(look, axis, centre, y, about, metric)}</g>'


def _furthest(values: Sequence[Value], low: float, high: float) -> list[Value]:
    """The lowest of the values below `low` and the highest of those above `high`."""
    ordered = sorted(values, key=lambda value: value.number)
    below = [value for value in ordered[:FURTHEST] if value.number < low]
    return below + [value for value in ordered[-FURTHEST:] if value.number > high]


def _box(axis: Axis, marks: Sequence[float], y: float) -> str:
    low, first, middle, third, high = (100 * axis.at(float(value)) for value in marks)
    return (
        f'<line class="whisker" x1="{low:.2f}%" x2="{high:.2f}%" y1="{y}" y2="{y}"/>'
        f'<rect class="box" x="{first:.2f}%" width="{max(third - first, 0.3):.2f}%" y="{y - 7}" height="14" rx="2"/>'
        f'<line class="median" x1="{middle:.2f}%" x2="{middle:.2f}%" y1="{y - 7}" y2="{y + 7}"/>'
    )


def _jitter(count: int) -> float:
    """Up or down by a few pixels, so that equal values do not hide each other."""
    return (0, -4, 4, -2, 2)[count % 5]


def _dot(x: float, y: float, title: str) -> str:
    return f'<circle cx="{100 * x:.2f}%" cy="{y:g}" r="2"><title>{escape(title)}</title></circle>'


def _mark(look: Look, axis: Axis, value: float, y: float, title: str, metric: Metric) -> str:
    """A method's mean; one beyond the axis stands hollow at its end, with its value."""
    x = axis.at(value)
    beyond = ""
    if not axis.holds(value):
        side = 'x="12" text-anchor="start"' if x == 0 else 'x="-12" text-anchor="end"'
        beyond = f'<text {side} dy=".33em">{metric.text(value)} {"◂" if x == 0 else "▸"}</text>'
    return _at(x, y, f'<path class="{"mean off" if beyond else "mean"}" d="{SHAPES[look.mark]}"/>{beyond}', title)


def _at(x: float, y: float, content: str, title: str = "") -> str:
    """Content drawn in pixels about a point given as a share of the width and in pixels from the top."""
    hover = f"<title>{escape(title)}</title>" if title else ""
    return f'<svg class="at" x="{100 * x:.2f}%" y="{y:g}">{hover}{content}</svg>'


def _name(look: Look) -> str:
    title = escape(look.title)
    return f'<span class="mark m{look.number}" title="{title}">{key(look)}<b>{escape(look.name)}</b></span>'


def style_of(looks: Iterable[Look]) -> str:
    """Rules that give looks their colours, and let the others fade while one of them is singled out."""
    return "".join(
        f".m{look.number}{{--tone:{look.colour}}}"
        f"main[data-only='{look.number}'] .mark:not(.m{look.number}){{opacity:.13}}"
        for look in looks
    )


def chips(looks: Iterable[Look]) -> str:
    """Buttons that single out one of the looks."""
    buttons = "".join(
        f'<button class="chip" value="{look.number}" aria-pressed="false" style="--tone:{look.colour}" '
        f'title="{escape(look.title)}">{key(look)}{escape(look.name)}</button>'
        for look in looks
    )
    return f'<nav class="chips" aria-label="Single out"><span>Single out</span>{buttons}</nav>'


def key(look: Look) -> str:
    """The mark of a method, to stand beside its name."""
    return f'<svg class="key" viewBox="-7 -7 14 14" aria-hidden="true"><path d="{SHAPES[look.mark]}"/></svg>'


def _grid(axis: Axis, height: float) -> str:
    """Upright lines at the ticks of the axis across, with their texts below."""
    lines = ""
    for value, text in axis.ticks.items():
        x = 100 * axis.at(value)
        lines += f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="{height}"/>'
        lines += f'<text class="tick" x="{x:.2f}%" y="{height + 15}" text-anchor="middle">{escape(text)}</text>'
    return lines


def _svg(height: float, label: str, content: str, kind: str = "") -> str:
    return f'<svg class="chart {kind}" height="{height:g}" role="img" aria-label="{escape(label)}">{content}</svg>'


def landmarks(board: Board) -> str:
    """A row per landmark, the largest errors first; every method's mean error over the pairs."""
    found = board.landmarks()
    shown = dict(list(found.items())[:LANDMARKS])
    means = {name: {m: mean(values) for m, values in methods.items()} for name, methods in shown.items()}
    finals = [v for row in means.values() for m, v in row.items() if not board.looks[m].is_start]
    axis = linear_axis([0.0, *(finals or [v for row in means.values() for v in row.values()])], 6)
    rows = ""
    for i, (name, methods) in enumerate(shown.items()):
        y = LANDMARK_ROW * (i + 0.5)
        rows += f'<line class="rail" x1="0" x2="100%" y1="{y:g}" y2="{y:g}"/>'
        for method in (m for m in board.present if m in methods and axis.holds(means[name][m])):
            look, pairs = board.looks[method], len(methods[method])
            title = f"{name} · {look.title}: {means[name][method]:.2f} mm, {counted(pairs, 'pair')}"
            point = _at(axis.at(means[name][method]), y, f'<path class="mean" d="{SHAPES[look.mark]}"/>', title)
            rows += f'<g class="mark m{look.number}">{point}</g>'
    names = "".join(f'<span title="{escape(name)}"><b>{escape(name)}</b></span>' for name in shown)
    height = LANDMARK_ROW * len(shown)
    picture = _svg(
        height + AXIS, f"Error of {counted(len(shown), 'landmark')} for each method, in mm", _grid(axis, height) + rows
    )
    return f'<div class="plot landmarks"><div class="names" aria-hidden="true">{names}</div>{picture}</div>'


@dataclass(frozen=True)
class _Point:
    """A case in a scatter plot."""

    pair: str
    x: float
    y: float


def scatter(board: Board, across: Metric, up: Metric) -> str:
    """Every case a small point, every method's mean a large one with its name; `across` on a logarithmic axis.

    Empty where no case has both."""
    points = {method: list(_points(board.rows(method), across, up)) for method in board.present}
    points = {method: found for method, found in points.items() if found}
    if not points:
        return ""
    finals = {m: found for m, found in points.items() if not board.looks[m].is_start} or points
    everyone = [point for found in finals.values() for point in found]
    x_axis, y_axis = time_axis(p.x for p in everyone), linear_axis(p.y for p in everyone)
    means = {m: _Point(m, _mean(p.x for p in found), _mean(p.y for p in found)) for m, found in points.items()}
    places = _label_places({m: (x_axis.at(p.x), SCATTER * (1 - y_axis.at(p.y))) for m, p in means.items()})
    dots = marks = said = ""
    for method, found in points.items():
        look, centre = board.looks[method], means[method]
        inside = [p for p in found if x_axis.holds(p.x) and y_axis.holds(p.y)]
        cases = "".join(
            _dot(
                x_axis.at(p.x),
                SCATTER * (1 - y_axis.at(p.y)),
                f"{p.pair} · {look.title}: {up.title} {up.text(p.y)}, {across.text(p.x)} {across.unit}",
            )
            for p in inside
        )
        dots += f'<g class="mark m{look.number}">{cases}</g>'
        off = "" if x_axis.holds(centre.x) and y_axis.holds(centre.y) else " off"
        result = f"{up.title} {up.text(centre.y)} in {across.text(centre.x)} {across.unit}"
        said += f" {look.name}: {result}."
        label = places[method].svg(_short(look.name) + (f" ({up.text(centre.y)})" if off else ""))
        shape = f'{label}<path class="mean{off}" d="{SHAPES[look.mark]}"/>'
        title = f"{look.title}: mean {result}, {counted(len(found), 'case')}"
        marks += f'<g class="mark big m{look.number}">{_at(places[method].x, places[method].y, shape, title)}</g>'
    lines = _grid(x_axis, SCATTER) + _levels(y_axis)
    return _svg(SCATTER + AXIS, f"{up.heading} against {across.column}.{said}", lines + dots + marks, "scatter")


def _points(rows: Iterable[Mapping], across: Metric, up: Metric) -> Iterator[_Point]:
    for row in rows:
        x, y = number(row.get(across.key)), number(row.get(up.key))
        if x is not None and x > 0 and y is not None:
            yield _Point(str(row["pair"]), x, y)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _levels(axis: Axis) -> str:
    """Level lines at the ticks of a scatter plot's upright axis, with their texts on the left."""
    lines = ""
    for value, text in axis.ticks.items():
        y = SCATTER * (1 - axis.at(value))
        lines += f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        lines += f'<text class="tick" x="-8" y="{y:.1f}" dy=".33em" text-anchor="end">{escape(text)}</text>'
    return lines


def _short(name: str) -> str:
    return name if len(name) <= CHARACTERS else f"{name[: CHARACTERS - 1]}…"


@dataclass(frozen=True)
class _Place:
    """Where a method's mean lies (share of the width, pixels from the top); its label's side and how far down."""

    x: float
    y: float
    side: int
    drop: float

    def svg(self, text: str) -> str:
        anchor = "start" if self.side > 0 else "end"
        line = f'<path class="leader" d="M0 0L{9 * self.side} {self.drop:g}"/>' if self.drop else ""
        place = f'x="{11 * self.side}" y="{self.drop:g}" dy=".33em" text-anchor="{anchor}"'
        return f"{line}<text {place}>{escape(text)}</text>"


class _Box(NamedTuple):
    """A rectangle in a scatter plot of the narrowest kind, in pixels."""

    left: float
    right: float
    top: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def _label_places(points: Mapping[str, tuple[float, float]]) -> dict[str, _Place]:
    """Labels beside their points that cover neither each other nor other points, if there is room for that."""
    marks = {m: _Box(x * NARROWEST - 7, x * NARROWEST + 7, y - 6, y + 6) for m, (x, y) in points.items()}
    places: dict[str, _Place] = {}
    labels: list[_Box] = []
    for method, (x, y) in sorted(points.items(), key=lambda item: item[1][1]):
        others = [box for name, box in marks.items() if name != method]
        places[method], box = _best_place(x, y, 6.6 * len(_short(method)) + 14, labels + others)
        labels.append(box)
    return places


def _best_place(x: float, y: float, width: float, taken: Sequence[_Box]) -> tuple[_Place, _Box]:
    """The place, nearest to the point, where a label of that width meets the fewest boxes."""
    centre = x * NARROWEST
    sides = [s for s in (1, -1) if 0 <= centre + s * width <= NARROWEST] or [1 if x < 0.5 else -1]
    drops = sorted((d for d in range(-84, 85, 7) if 6 <= y + d <= SCATTER - 6), key=abs)
    found: list[tuple[int, _Place, _Box]] = []
    for drop, side in itertools.product(drops or [0], sides):
        left, right = sorted((centre + side * 8, centre + side * width))
        box = _Box(left, right, y + drop - 7, y + drop + 7)
        found.append((sum(box.meets(other) for other in taken), _Place(x, y, side, float(drop)), box))
    _, place, box = min(found, key=lambda candidate: candidate[0])
    return place, box
