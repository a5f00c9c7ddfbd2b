"""Draw what the comparison with other methods comes to, from results/: python benchmarks/figures.py

docs/dice_against_time.png: mean Dice against processor seconds, of which the interval is over people where the pairs
tell them apart. docs/landmarks.png: mean distance of landmarks (TRE) of each method on each pair that has some, with
what people differ by among themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
#: Folders of results with labels, the first one there is; and those with landmarks -> of what.
LABELLED = ("people", "oasis")
LANDMARKS = {
    "people": "OASIS, different people",
    "templates": "Colin27 to MNI152",
    "chest": "a chest in CT, its breath",
}
#: Mean distance, mm, between what several raters set on one brain (Lau et al. 2019); none of the chest's exact points.
RATERS_MM = 0.9
OURS, THEIRS = "#c0392b", "#34495e"


def summary(folder: str) -> dict[str, Any] | None:
    path = RESULTS / folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def dice_against_time(found: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    places = {}
    for name, method in found["methods"].items():
        measures = method["metrics"]
        if name in ("identity", "centre-of-mass") or "mean_dice" not in measures:
            continue
        seconds, dice = measures["cpu_seconds"]["mean"], measures["mean_dice"]
        low, high = dice["ci95"] or (dice["mean"], dice["mean"])
        places[name] = seconds, dice["mean"]
        spread = [[dice["mean"] - low], [high - dice["mean"]]]
        shape = {"color": _colour(name), "fmt": "o" if _colour(name) == OURS else "s"}
        axes.errorbar(*places[name], yerr=spread, elinewidth=0.8, capsize=2, **shape)
    for name, place in places.items():
        side = -1 if any(_is_right_beside(other, place) for other in places.values()) else 1
        axes.annotate(
            _short(name),
            place,
            xytext=(6 * side, -3),
            textcoords="offset points",
            ha="left" if side == 1 else "right",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.set_xlabel("processor seconds for a pair, mean")
    pairs = max(method["metrics"]["mean_dice"]["n"] for method in found["methods"].values() if method["metrics"])
    axes.set_ylabel(f"Dice, mean of {pairs} pairs")
    axes.grid(alpha=0.3)
    axes.margins(x=0.15)
    return figure


def _is_right_beside(other: tuple[float, float], place: tuple[float, float]) -> bool:
    """Whether a name written to the right of a place would meet another place."""
    return 1 < other[0] / place[0] < 4 and abs(other[1] - place[1]) < 0.012


def landmarks(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(4 * len(found), 5), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (folder, one) in zip(panels, found.items(), strict=True):
        _errors(axes, one["cases"])
        axes.set_title(LANDMARKS[folder], fontsize=10)
        axes.set_xlabel("TRE, mm")
        if folder != "chest":
            axes.axvspan(0, RATERS_MM, color="grey", alpha=0.2)
            axes.text(RATERS_MM / 2, 0, "raters among themselves", rotation=90, ha="center", va="bottom", fontsize=8)
        axes.set_xlim(left=0)
    return figure


def _errors(axes: Axes, cases: list[dict[str, Any]]) -> None:
    """A line for each method: its pairs, small, and their mean."""
    with_points = [case for case in cases if "tre_mm" in case and case["method"] not in ("identity", "centre-of-mass")]
    names = sorted({case["method"] for case in with_points}, key=lambda name: -_mean_error(with_points, name))
    for place, name in enumerate(names):
        each = [case["tre_mm"] for case in with_points if case["method"] == name]
        axes.plot(each, [place] * len(each), "|", color=_colour(name), markersize=6, alpha=0.6)
        axes.plot(_mean_error(with_points, name), place, "o", color=_colour(name), markersize=5)
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8)
    axes.grid(axis="x", alpha=0.3)


def _mean_error(cases: list[dict[str, Any]], name: str) -> float:
    each = [case["tre_mm"] for case in cases if case["method"] == name]
    return sum(each) / len(each)


def _colour(name: str) -> str:
    return OURS if name.startswith("stepwarp") else THEIRS


def _short(name: str) -> str:
    return name.replace("stepwarp-", "stepwarp ").replace("ants-", "ANTs ")


def main() -> None:
    compared = next(found for found in map(summary, LABELLED) if found is not None)
    dice_against_time(compared).savefig(DOCS / "dice_against_time.png", dpi=110)
    of_points = {folder: found for folder in LANDMARKS if (found := summary(folder)) is not None}
    landmarks(of_points).savefig(DOCS / "landmarks.png", dpi=110)


if __name__ == "__main__":
    main()
