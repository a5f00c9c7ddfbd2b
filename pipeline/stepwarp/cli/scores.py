"""What an evaluation says on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from stepwarp.cli.terminal import cell, console
from stepwarp.evaluation.metric import Metric
from stepwarp.evaluation.metrics import METRICS, of_similarities
from stepwarp.printable import counted

if TYPE_CHECKING:
    from rich.console import Console

#: Labels and landmarks that are shown, the worst first, unless all are asked for.
_WORST = 10


def print_evaluation(result: Mapping[str, Any], everything: bool) -> None:
    """The numbers of `evaluate_files`: a summary, and the worst labels and landmarks, or all of them."""
    screen = console(soft_wrap=True)
    for name, value in _rows(result):
        screen.print(f"{name:<30}{cell(value)}")
    if "labels" in result:
        _print_labels(screen, result["labels"], everything)
    if "tre_mm" in result:
        _print_landmarks(screen, result["tre_mm"]["landmarks"], everything)
    _print_notes(screen, result["notes"])


def print_task(result: Mapping[str, Any]) -> None:
    """The numbers of `evaluate_learn2reg`: a row for each pair, then what the challenge makes of all of them."""
    screen = console(soft_wrap=True, width=1000)  # a narrow terminal may break a line, but not cut a number
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(f"{cell(result['task'])}\n", no_wrap=True)
    for measure in result["measures"]:
        table.add_column(f"Learn2Reg\n{cell(measure['name'])}", justify="right", no_wrap=True)
        table.add_column(f"stepwarp\n{METRICS[measure['stepwarp']].column}", justify="right", no_wrap=True)
    for row in result["pairs"]:
        table.add_row(cell(row["pair"]), *(["no result"] if "reason" in row else _both(row, result["measures"])))
    for key, name in {"mean": "mean", "std": "std", "30": "30 %", "70": "70 %"}.items():
        sides = {
            side: {name: found[side][key] for name, found in result["aggregates"].items() if side in found}
            for side in ("learn2reg", "stepwarp")
        }
        table.add_row(name, *_both(sides, result["measures"]), style="bold")
    screen.print(table)
    for row in result["pairs"]:
        if "reason" in row:
            screen.print(f"[yellow]{cell(row['pair'])}[/]: {cell(row['reason'])}")
    _print_notes(screen, result["notes"])


def _both(row: Mapping[str, Mapping[str, float | None]], measures: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Of each measure the challenge's number, with the digits that its script prints, and ours."""
    for measure in measures:
        theirs, ours = (row[side].get(measure["name"]) for side in ("learn2reg", "stepwarp"))
        yield "-" if theirs is None else f"{theirs:.5f}"
        yield "-" if ours is None else METRICS[measure["stepwarp"]].plain(ours)


def _rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    files = ", then ".join(result["transform"]) or "the identity"
    inside = f"{result['mask']['source']}, {counted(result['mask']['voxels'], 'voxel')}"
    rows = [("transform", files), ("measured in", inside)]
    rows += _label_rows(result) if "labels" in result else []
    rows += _landmark_rows(result["tre_mm"]) if "tre_mm" in result else []
    for metric in METRICS.values():
        value = metric.in_case({"evaluation": result})
        if value is not None:
            rows.append((metric.heading_in_words, f"{metric.plain(value)}{_more(metric, result)}{metric.remark}"))
    jacobian, moved = result["jacobian"], result["displacement_mm"]
    if jacobian is not None:
        spread = f"from {jacobian['min']:.3f} to {jacobian['max']:.3f}, median {jacobian['median']:.3f}"
        rows.append(("Jacobian", spread))
    lengths = f"mean {_mm(moved['mean'])}, 95 % {_mm(moved['p95'])}, largest {_mm(moved['max'])}"
    return [*rows, ("displacement (mm)", lengths)]


def _more(metric: Metric, result: Mapping[str, Any]) -> str:
    """What stands behind the value of some metrics."""
    if metric.key == "tre_mm":
        tre = result["tre_mm"]
        spread = f", median {_mm(tre['median'])}, 95 % {_mm(tre['p95'])}, largest {_mm(tre['max'])}"
        return f"{spread}; {_mm(tre['before_mean'])} before"
    if metric.key == "inverse_mean_mm":
        back = result["inverse_mm"]
        return f", largest {_mm(back['max'])}; {back['source']}"
    before = next((result["similarity"]["before"][name] for name, m in of_similarities().items() if m is metric), None)
    return "" if before is None else f", {metric.plain(before)} before"


def _label_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("labels", f"{result['labels_scored']} scored{_penalty(result)}")]
    missing = result["labels_missing_in"]
    listed = {
        "  lost by the transform": result["labels_lost"],
        "  made by the transform": result["labels_created"],
        "  only in the fixed map": missing["moving"],
        "  only in the moving map": missing["fixed"],
    }
    return rows + [(name, ", ".join(map(str, labels))) for name, labels in listed.items() if labels]


def _penalty(result: Mapping[str, Any]) -> str:
    count, diagonal = result["surfaces_penalised"], _mm(result["surface_penalty_mm"])
    return f", distances of {count} lost counted as {diagonal} mm (the fixed grid's diagonal)" if count else ""


def _landmark_rows(tre: Mapping[str, Any]) -> list[tuple[str, str]]:
    left_out = [("  left out", ", ".join(tre["left_out"]))] if tre["left_out"] else []
    return [("landmarks", str(tre["count"])), *left_out]


def _print_notes(screen: Console, notes: Iterable[str]) -> None:
    for note in notes:
        screen.print(f"[yellow]note[/]: {cell(note)}")


def _print_labels(screen: Console, labels: Mapping[str, Mapping[str, Any]], everything: bool) -> None:
    worst_first = sorted(labels.items(), key=lambda item: item[1]["dice"])
    rows = [
        (
            label,
            values.get("name", ""),
            f"{values['dice']:.3f}",
            f"{values['jaccard']:.3f}",
            _mm(values["hd95_mm"]),
            _mm(values["asd_mm"]),
            f"{values['fixed_ml']:.2f}",
            f"{values['moved_ml']:.2f}",
        )
        for label, values in worst_first
    ]
    columns = ("label", "name", "Dice", "Jaccard", "HD95 mm", "average mm", "fixed ml", "moved ml")
    _print_table(screen, columns, rows, everything)


def _print_landmarks(screen: Console, landmarks: Mapping[str, Mapping[str, float]], everything: bool) -> None:
    worst_first = sorted(landmarks.items(), key=lambda item: -item[1]["after"])
    rows = [(name, _mm(values["before"]), _mm(values["after"])) for name, values in worst_first]
    _print_table(screen, ("landmark", "before mm", "after mm"), rows, everything)


def _print_table(screen: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], everything: bool) -> None:
    """Worst first; columns without content are left out."""
    shown = rows if everything else rows[:_WORST]
    kept = [n for n in range(len(columns)) if any(row[n] for row in shown)]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for n in kept:
        if columns[n] in ("name", "landmark"):
            table.add_column(columns[n], no_wrap=True)
        else:  # a name may be cut where the terminal is narrow, a number may not
            table.add_column(columns[n], justify="right", min_width=max(len(row[n]) for row in (columns, *shown)))
    for row in shown:
        table.add_row(*(cell(row[n]) for n in kept))
    screen.print()
    screen.print(table)
    if len(shown) < len(rows):
        screen.print(f"{len(rows) - len(shown)} better ones are shown by --all.")


def _mm(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
