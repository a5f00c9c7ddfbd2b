"""The page of a benchmark: one HTML file that loads nothing but the cases' pictures beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from stepwarp.evaluation import metrics
from stepwarp.evaluation.metric import Metric
from stepwarp.evaluation.metrics import METRICS
from stepwarp.files.atomic import write_text
from stepwarp.printable import counted
from stepwarp.report import benchmark_plots as plots
from stepwarp.report import benchmark_tables as tables
from stepwarp.report import text
from stepwarp.report.benchmark_data import Board
from stepwarp.report.contact_sheet import case_picture
from stepwarp.report.document import card, document, tiles

__all__ = ["case_picture", "write_index"]

#: What an environment says in words, and how a sentence with it begins.
CLAUSES = {"clock": "The clock runs", "order": "Order:", "warm_up": "Warm-up:"}


def write_index(out: Path, summary: dict[str, Any], cases: list[dict[str, Any]]) -> Path:
    """Write index.html, complete or not at all, into the folder of a benchmark; an older one is replaced.

    summary: the content of summary.json. cases: the content of the cases' JSON files. Pictures are linked where they
    are in `out` now. Raises OutputError if the page cannot be written."""
    path = out / "index.html"
    write_text(path, render(out, summary, cases), overwrite=True)
    return path


def render(out: Path, summary: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> str:
    """The page as HTML; `out` is only asked which pictures there are."""
    board = Board(summary, cases)
    title = f"Benchmark: {summary['manifest']['name']}"
    content = f"""<style>{plots.style_of(board.looks.values())}</style>
{_header(board)}
{_scores(board)}
{plots.chips(board.looks[name] for name in board.present)}
<div class="grid">{_against_time(board)}</div>
<div class="grid">{_label_groups(board)}</div>
<div class="grid">{_spreads(board)}</div>
{_landmarks(board)}
{_worst(board, out)}
{_definitions(board)}
{_environment(summary.get("environment", {}))}"""
    styles, scripts = ["page.css", "benchmark.css"], ["benchmark.js"]
    return document(title, content, styles=styles, scripts=scripts, images="'self' file: data:")


def _header(board: Board) -> str:
    manifest, runs = board.summary["manifest"], [case["run"] for case in board.done()]
    split = f" <span>{escape(str(manifest['split']))}</span>" if manifest.get("split") else ""
    failed = sum(case["status"] == "failed" for case in board.cases)
    machine = board.summary.get("environment", {})
    facts = {
        "pairs": str(len(board.pairs)),
        "methods": str(len(board.present)),
        "cases": f"{len(runs)}" + (f", {failed} failed" if failed else ""),
        "machine": _some(machine.get("cpu") or machine.get("machine")),
        "threads": _all(run.get("threads") for run in runs),
        "stepwarp": _all(run.get("stepwarp") for run in runs),
        "date": _period(str(run["date"])[:10] for run in runs if run.get("date")),
    }
    return f"<header><div><h1>{escape(manifest['name'])}{split}</h1>{_lead(board)}</div>{tiles(facts)}</header>"


def _some(value: Any) -> str | None:
    return None if value is None else text.plain(value)


def _all(values: Iterable[Any]) -> str | None:
    """The different values there are."""
    return ", ".join(sorted({text.plain(value) for value in values if value is not None})) or None


def _period(dates: Iterable[str]) -> str | None:
    days = sorted(set(dates))
    return f"{days[0]} to {days[-1]}" if len(days) > 1 else next(iter(days), None)


def _lead(board: Board) -> str:
    """The result in a sentence."""
    name = tables.leader(board)
    if name is None:
        return ""
    metric = board.measured(metrics.of_family("accuracy"))[0]
    word = "Highest" if metric.better == "higher" else "Lowest"
    said = f"{word} mean {metric.title}: {_result(board, name, metric)}"
    if board.baseline in board.present and board.baseline != name and board.statistics(board.baseline, metric):
        said += f"; the baseline {_result(board, board.baseline, metric)}"
    return f'<p class="lead">{said}.</p>'


def _result(board: Board, method: str, metric: Metric) -> str:
    """A method's mean, and in how many seconds it came about."""
    value, seconds = (board.mean(method, which) for which in (metric, METRICS["seconds"]))
    said = f"<b>{escape(board.looks[method].title)}</b> {metric.text(value)} {metric.unit}".rstrip()
    return said if seconds is None else f"{said} in {METRICS['seconds'].text(seconds)} s"


def _scores(board: Board) -> str:
    accuracy = tables.scores(board, metrics.of_family("accuracy", "cost"), "Accuracy and cost")
    regularity = tables.scores(board, metrics.of_family("regularity"), "Regularity of the deformation")
    files = '<a href="table.md">table.md</a> · <a href="cases.csv">cases.csv</a>'
    warnings = "".join(f"<li>{escape(note)}</li>" for note in board.summary.get("notes", []))
    content = f'{accuracy}{regularity}<p class="note">{_reading(board)}</p>'
    content += f'<ul class="warnings">{warnings}</ul>' if warnings else ""
    return card(f"Methods <small>{files}</small>", content + tables.absences(board))


def _reading(board: Board) -> str:
    """How to read a cell of the tables."""
    said = "Mean ± standard deviation over cases; below it the 95 % interval of the mean"
    if board.baseline in board.present:
        said += (
            f", then the difference to <code>{escape(str(board.baseline))}</code> on the same pairs, Wilcoxon's p, and "
            "on how many pairs it is better/worse(/equal). Where the interval of the difference excludes 0 it is <span "
            'class="gain">green for better</span> and <span class="loss">orange for worse</span>'
        )
    return f"{said}. ★ is the best mean of a column, of methods that have every case and do more than place."


def _against_time(board: Board) -> str:
    metric = next(iter(board.measured(metrics.shown("headline"))), None)
    if metric is None:
        return ""
    cards = ""
    for cost in (METRICS["seconds"], METRICS["cpu_seconds"]):
        figure = plots.scatter(board, cost, metric)
        cards += card(f"{metric.heading} against {cost.column}", figure) if figure else ""
    return cards


def _label_groups(board: Board) -> str:
    dice = METRICS["mean_dice"]
    everything = board.label_dice()
    if not everything:
        return ""
    cards = card("Dice, all labels", plots.distributions(board.looks, everything, dice, "of all labels"))
    for name, labels in board.groups().items():
        count = counted(len(labels), "label")
        figure = plots.distributions(board.looks, board.label_dice(labels), dice, f"of {name}")
        cards += card(f"Dice, {escape(name)} <small>{count}</small>", figure)
    return cards


def _spreads(board: Board) -> str:
    cards = ""
    for metric in board.measured(metrics.shown("figure")):
        values = board.values(metric)
        if values:
            title = f"{escape(metric.heading)} <small>{escape(metric.meaning)}</small>"
            nothing = all(value.number == 0 for found in values.values() for value in found)
            figure = (
                '<p class="note">0 in every case.</p>' if nothing else plots.distributions(board.looks, values, metric)
            )
            cards += card(title, figure)
    return cards


def _landmarks(board: Board) -> str:
    count = len(board.landmarks())
    if not count:
        return ""
    shown = min(count, plots.LANDMARKS)
    which = f"the {shown} of {count} with the largest errors" if shown < count else "the largest errors first"
    return card(f"TRE per landmark (mm) <small>mean over pairs; {which}</small>", plots.landmarks(board))


def _worst(board: Board, out: Path) -> str:
    return card("Cases, worst first", tables.worst_cases(board, out))


def _definitions(board: Board) -> str:
    masks = _all(_mask(case["evaluation"]) for case in board.done())
    environment, statistics = board.summary.get("environment", {}), board.summary.get("statistics", {})
    sentences = [
        "Every method got the same two images and was judged by the same code from the transform files that it left.",
        "Labels are carried to the fixed grid once, by nearest neighbour. A label is scored if both maps hold it and "
        "it is not ignored; one that the warp loses has a Dice of 0 and the fixed grid's diagonal as HD95 and ASD.",
        "Landmarks of the fixed image are mapped and compared with those of the moving one. Labels and landmarks count "
        "wherever they lie.",
        "Folds of both kinds, Jacobian, inverse consistency and similarity are taken on the fixed grid inside the same "
        f"mask{f' ({masks})' if masks else ''}.",
        *_clauses(environment, CLAUSES),
        *_clauses(statistics, {"ci95": "Intervals:", "p_wilcoxon": "p:"}),
        "In the figures a box reaches from the lower to the upper quartile, its whiskers from the 5th to the 95th "
        "percentile, and the large mark is the mean; a hollow one lies beyond the axis.",
        f"Of more than {plots.DOTS} values only the {plots.FURTHEST} furthest beyond each whisker are dots.",
        "Figures of Dice hold one value per label and pair, the others one per pair.",
    ]
    names = "".join(
        f"<div><dt>{escape(metric.heading)}</dt><dd>{escape(metric.meaning)}</dd></div>"
        for metric in board.measured(metrics.shown("benchmark"))
    )
    content = f'<p id="methods">{escape(" ".join(sentences))}</p><dl class="terms">{names}</dl>'
    return card("How the numbers are defined", content)


def _mask(evaluation: Mapping[str, Any]) -> str | None:
    """Which mask a case was judged in; one that was given has the name of a file, which differs from pair to pair."""
    source = evaluation.get("mask", {}).get("source")
    return "given with the images" if source and source.startswith("given") else source


def _clauses(said: Mapping[str, Any], beginnings: Mapping[str, str]) -> list[str]:
    """Sentences from what a summary says in words, where it does."""
    return [f"{beginning} {said[name]}." for name, beginning in beginnings.items() if said.get(name)]


def _environment(environment: Mapping[str, Any]) -> str:
    facts = {key: value for key, value in environment.items() if key not in CLAUSES}
    return card("Machine and software", f'<div class="facts">{text.record_table(facts)}</div>') if facts else ""
