"""The figures of the probes, drawn from the summary alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stepwarp.mnist import drawing, store
from stepwarp.mnist.drawing import COLOURS, INK, SOFT
from stepwarp.mnist.pull import CLAIM, CONTROLS, FIVES
from stepwarp.mnist.study import MnistStudy
from stepwarp.probes.direction import FINAL, NEWTON, OF_ANOTHER, RAW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_charts(study: MnistStudy, summary: dict[str, Any]) -> list[str]:
    """Draw the answers that are there. Returns the names of the files in the folder `figures`."""
    makers = {
        "a": steps,
        "b": cosines,
        "c": regression,
        "d": pull,
        "e": ends,
        "f": drifts,
        "h": swap,
        "i": rivals,
        "j": kinds,
    }
    names = []
    for letter, make in makers.items():
        if letter in summary["answers"]:
            numbers = summary["answers"][letter]["numbers"]
            names.append(f"{letter}.png")
            drawing.save(
                make(numbers, study.settings.steps, study.digits.source), study.out / store.FIGURES / names[-1]
            )
    if summary["stability"]:
        names.append("stability.png")
        drawing.save(stability(summary["stability"], study.digits.source), study.out / store.FIGURES / names[-1])
    return names


def steps(numbers: dict[str, Any], n: int, source: str) -> Figure:
    """a: loss, SSD, correlation and folds after each step."""
    made = drawing.figure(11, 2.9, source)
    names = {"loss": "loss", "ssd": "SSD", "ncc": "correlation", "folds": "share of folded pixels"}
    for place, (key, title) in zip(made.subplots(1, len(names)), names.items(), strict=True):
        drawing.panel(place, title, "steps")
        for digit, colour in (("5", COLOURS[0]), ("7", COLOURS[1])):
            drawing.band(place, numbers["curves"][digit][key], f"{digit}s", colour)
        _trained(place, n)
        drawing.legend(place)
    return made


def cosines(numbers: dict[str, Any], n: int, source: str) -> Figure:
    """b: the direction of each step."""
    made = drawing.figure(9.6, 3.2, source)
    best = numbers["best"]
    lines = {
        best: ("gradient, " + best, COLOURS[0], "-"),
        best + OF_ANOTHER: ("the same of another pair", COLOURS[0], ":"),
        RAW: ("gradient, raw", COLOURS[1], "-"),
        NEWTON: ("Gauss-Newton", COLOURS[2], "-"),
        NEWTON + OF_ANOTHER: ("the same of another pair", COLOURS[2], ":"),
        FINAL: ("to the final answer", COLOURS[4], "--"),
    }
    for place, digit in zip(made.subplots(1, 2, sharey=True), ("5", "7"), strict=True):
        drawing.panel(place, f"{digit}s", "step", "cosine with the step")
        for name, (label, colour, style) in lines.items():
            if name in numbers["cosines"][digit]:
                _from_one(place, numbers["cosines"][digit][name]["mean"], label, colour, style)
        place.axhline(0, color=SOFT, linewidth=0.6)
    drawing.legend(place, loc="upper left", bbox_to_anchor=(1, 1))
    return made


def regression(numbers: dict[str, Any], n: int, source: str) -> Figure:
    """c: R2 of each candidate alone, and what is missed without it."""
    made = drawing.figure(9.6, 3.4, source)
    for place, digit in zip(made.subplots(1, 2, sharey=True), ("5", "7"), strict=True):
        fit = numbers[f"{digit}, smooth"]
        names = list(fit["alone"])
        drawing.panel(place, f"{digit}s: all together {fit['r2']['mean']:.2f}, null {fit['null']['mean']:.2f}", "R2")
        y = np.arange(len(names))
        place.barh(y - 0.2, [fit["alone"][k]["mean"] for k in names], 0.36, color=COLOURS[0], label="alone")
        place.barh(y + 0.2, [fit["missed"][k] for k in names], 0.36, color=COLOURS[1], label="missed when left out")
        place.set_yticks(y, names, color=INK)
        place.invert_yaxis()
    drawing.legend(place)
    return made


def pull(numbers: dict[str, Any], n: int, source: str) -> Figure:
    """d: how much of a 5 there is in the moved image."""
    made = drawing.figure(11, 3.6, source)
    left, right = made.subplots(1, 2)
    looks = dict(zip((CLAIM, *CONTROLS, FIVES), COLOURS, strict=False))
    for place, key, title in ((left, "probability", "P(5)"), (right, "distance", "distance to the nearest 5")):
        drawing.panel(place, title, "steps")
        for name, colour in looks.items():
            if key == "distance" or name != FIVES:
                drawing.band(place, numbers[key][name], name, colour, linestyle="-" if name == CLAIM else "--")
        _trained(place, n)
        place.axvline(numbers["peak"], color=COLOURS[0], linewidth=0.8, linestyle=":")
    drawing.legend(right, loc="upper left", bbox_to_anchor=(1, 1))
    return made


def ends(numbers: dict[str, Any], n: int, source: str) -> Figure:
    """e: how far runs from other starts are from the run from the identity."""
    made = drawing.figure(6.5, 3.1, source)
    place = drawing.panel(made.subplots(), "Distance to the run from the identity", "steps", "pixels")
    starts = [name for name in numbers if name not in ("apart", "left")]
    for name, colour in zip(starts, COLOURS, strict=False):
        drawing.band(place, numbers[name], name, colour)
    place.axhline(numbers["apart"], color=SOFT, linewidth=0.8, linestyle="--", label="ends of two pairs")
    _trained(place, n)
    place.set_ylim(0)
    drawing.legend(place, loc="upper left", bbox_to_anchor=(1, 1))
    return made


def drifts(numbers: dict[str, Any], n: int, source: str) -> Figure:
    """f: drift and loss from each start."""
    made = drawing.figure(9.6, 3.1, source)
    for place, key, title in zip(
        made.subplots(1, 2), ("drift", "loss"), ("drift from the start, pixels", "loss"), strict=True
    ):
        drawing.panel(place, title, "steps")
        for (name, each), colour in zip(numbers.items(), COLOURS, strict=False):
            drawing.band(place, each[key], name, colour)
        place.set_ylim(0)
    drawing.legend(place, loc="upper left", bbox_to_anchor=(1, 1))
    return made


def swap(numbers: dict[str, Any], n: int, source: str) -> Figure:
    """h: the loss against the second target."""
    made = drawing.figure(6.5, 3.1, source)
    place = drawing.panel(made.subplots(), "Loss against the second target", "steps after the swap, or from the start")
    names = {"swapped": "swapped half-way", "straight": "straight to it", "kept": "on towards the first"}
    for (name, label), colour in zip(names.items(), COLOURS, strict=False):
        drawing.band(place, numbers[name], label, colour)
    drawing.legend(place)
    return made


def rivals(numbers: dict[str, Any], n: int, source: str) -> Figure:
    """i: the loss after as many evaluations."""
    made = drawing.figure(9.6, 3.1, source)
    for place, digit in zip(made.subplots(1, 2), ("5", "7"), strict=True):
        drawing.panel(place, f"{digit}s", "steps, evaluations", "loss")
        for (name, curve), colour in zip(numbers[digit].items(), COLOURS, strict=False):
            drawing.band(place, curve, name, colour)
        place.set_ylim(0)
    drawing.legend(place)
    return made


def kinds(numbers: dict[str, Any], n: int, source: str) -> Figure:
    """j: the loss of each kind of network."""
    made = drawing.figure(9.6, 3.1, source)
    for place, digit in zip(made.subplots(1, 2), ("5", "7"), strict=True):
        drawing.panel(place, f"{digit}s", "steps", "loss")
        for (name, curves), colour in zip(numbers["curves"].items(), COLOURS, strict=False):
            drawing.band(place, curves[digit], name, colour)
        _trained(place, n)
        place.set_ylim(0)
    drawing.legend(place, loc="upper left", bbox_to_anchor=(1, 1))
    return made


def stability(runs: dict[str, Any], source: str) -> Figure:
    """Trainings with other learning rates, to their end or their breakdown."""
    made = drawing.figure(9.6, 3.3, source)
    place = drawing.panel(made.subplots(), "Training with other learning rates", "iteration", "loss")
    for (name, each), colour in zip(runs.items(), COLOURS, strict=False):
        place.semilogy(each["curve"]["iteration"], each["curve"]["loss"], color=colour, label=name, linewidth=1.3)
    drawing.legend(place, loc="upper left", bbox_to_anchor=(1, 1))
    return made


def _trained(place: Axes, n: int) -> None:
    place.axvline(n, color=SOFT, linewidth=0.8, linestyle=":")


def _from_one(place: Axes, values: list[float | None], label: str, colour: str, style: str) -> None:
    numbers = np.array(values, float)
    place.plot(np.arange(1, len(numbers) + 1), numbers, color=colour, linestyle=style, label=label, linewidth=1.6)
