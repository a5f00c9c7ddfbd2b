"""The benchmark's tables: methods by metrics, and the cases of each method with the worst first. All of it is HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stepwarp.evaluation import metrics
from stepwarp.evaluation.metric import Metric
from stepwarp.printable import counted
from stepwarp.report.benchmark_data import Board, Look, number
from stepwarp.report.benchmark_plots import key

#: A p below this is written as such.
SMALLEST_P = 0.001


def scores(board: Board, wanted: Sequence[Metric], caption: str) -> str:
    """One row per method that is present, one column per metric; empty where nothing was measured."""
    columns = board.measured(wanted)
    if not columns:
        return ""
    best = {metric.key: _best(board, metric) for metric in columns}
    heads = "".join(_head(metric) for metric in columns)
    rows = ""
    for name in (name for name in board.present if any(board.statistics(name, metric) for metric in columns)):
        look = board.looks[name]
        cells = "".join(_cell(board, name, metric, name in best[metric.key]) for metric in columns)
        rows += f'<tr class="mark m{look.number}">{_method(board, look)}{cells}</tr>'
    return (
        f'<div class="wide-table" role="region" aria-label="{escape(caption)}" tabindex="0"><table class="scores">'
        f'<caption>{escape(caption)}</caption><thead><tr><th scope="col">Method</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _head(metric: Metric) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", None: ""}[metric.better]
    said = {"higher": "higher is better", "lower": "lower is better", None: "neither end is better"}[metric.better]
    unit = f" <small>{escape(metric.unit)}</small>" if metric.unit else ""
    return f'<th scope="col" title="{escape(metric.meaning)}; {said}">{escape(metric.title)}{unit}{arrow}</th>'


def _method(board: Board, look: Look) -> str:
    method = board.summary["methods"][look.name]
    failed = method.get("failed", 0)
    count = counted(method["cases"], "case")
    notes = [f'<span class="failed">{failed} failed</span>'] if failed else []
    notes += ["baseline"] if look.name == board.baseline else []
    return (
        f'<th scope="row"><div>{key(look)}<b>{escape(look.title)}</b>'
        f"<small><code>{escape(look.name)}</code><br>{' · '.join([count, *notes])}</small></div></th>"
    )


def _cell(board: Board, method: str, metric: Metric, best: bool) -> str:
    found = board.statistics(method, metric)
    if found is None:
        return '<td class="none">-</td>'
    spread = f"<small> ± {metric.text(sd)}</small>" if (sd := number(found.get("sd"))) is not None else ""
    badge = '<i class="best" role="img" aria-label="best" title="best of the column">★</i>' if best else ""
    lines = f'<span class="value">{badge}<b>{metric.text(found["mean"])}</b>{spread}</span>'
    lines += f"<small>{_interval(metric, found.get('ci95'))}</small>"
    beside = found.get("against_baseline")
    lines += _difference(metric, beside) if beside else ""
    median, q30 = (metric.text(number(found.get(name))) for name in ("median", "q30"))
    title = f"median {median}, 30 % quantile {q30}, {counted(found['n'], 'case')}"
    return f'<td title="{title}">{lines}</td>'


def _interval(metric: Metric, interval: Sequence[float] | None) -> str:
    return f"[{metric.text(interval[0])}, {metric.text(interval[1])}]" if interval else ""


def _difference(metric: Metric, beside: Mapping[str, Any]) -> str:
    """Difference to the baseline; coloured where its interval excludes 0 and one end of the metric is better."""
    interval, better = beside.get("ci95"), metric.better
    tone = ""
    if interval and better and (interval[0] > 0 or interval[1] < 0):
        tone = "gain" if (interval[0] > 0) == (better == "higher") else "loss"
    counts, said = _counts(beside) if better else ("", "neither end is better")
    title = f"difference to the baseline {_interval(metric, interval)}: {said}"
    return (
        f'<small class="beside {tone}" title="{title}">{metric.text(beside["difference"], signed=True)}'
        f"<span>{_p(beside.get('p_wilcoxon'))}</span><span>{counts}</span></small>"
    )


def _counts(beside: Mapping[str, Any]) -> tuple[str, str]:
    """On how many pairs a method is better, worse and equal: in short, and in words."""
    wins, losses, ties = (beside.get(key, 0) for key in ("wins", "losses", "ties"))
    return f"{wins}/{losses}{f'/{ties}' if ties else ''}", f"{wins} better, {losses} worse, {ties} equal"


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return f"p&lt;{SMALLEST_P:g}" if p < SMALLEST_P else f"p {p:.2g}"


def _best(board: Board, metric: Metric) -> set[str]:
    """The contenders whose mean is the best one as it is written; none where all of them are equal."""
    means = _contenders(board, metric)
    written = {name: metric.text(mean) for name, mean in means.items()}
    if metric.better is None or len(set(written.values())) < 2:
        return set()
    leading = (max if metric.better == "higher" else min)(means, key=means.__getitem__)
    return {name for name in written if written[name] == written[leading]}


def _contenders(board: Board, metric: Metric) -> dict[str, float]:
    """The mean of each method that has no case less than another one and does more than place the images."""
    found = {name: board.statistics(name, metric) for name in board.present if not board.looks[name].is_start}
    known = {name: statistics for name, statistics in found.items() if statistics}
    most = max((statistics["n"] for statistics in known.values()), default=0)
    return {name: statistics["mean"] for name, statistics in known.items() if statistics["n"] == most}


def absences(board: Board) -> str:
    """Methods that could not run here, each with the reason; empty where there is none."""
    absent = {name: method["absent"] for name, method in board.summary["methods"].items() if method.get("absent")}
    if not absent:
        return ""
    rows = "".join(f"<tr><th scope=row>{escape(n)}</th><td>{escape(str(why))}</td></tr>" for n, why in absent.items())
    return f'<table class="reasons"><caption>Absent: could not run here</caption>{rows}</table>'


def worst_cases(board: Board, out: Path) -> str:
    """A folded table per method, its worst case first, with pictures where they are in `out`."""
    columns = board.measured(metrics.shown("cases"))
    return "".join(_cases_of(board, out, board.looks[name], columns) for name in board.present)


def _cases_of(board: Board, out: Path, look: Look, columns: Sequence[Metric]) -> str:
    rows = board.rows(look.name)
    cases = {case["pair"]: case for case in board.done(look.name)}
    heads = "".join(_head(metric) for metric in columns)
    body = "".join(_case_row(out, row, cases.get(row["pair"], {}), columns) for row in rows)
    first = " open" if look.name == leader(board) else ""
    return (
        f'<details class="mark m{look.number}"{first}><summary>{key(look)}'
        f"<b>{escape(look.title)}</b> <small>{_about(rows, columns)}</small></summary>"
        f'<div class="wide-table"><table class="cases"><thead><tr><th scope="col">Case</th>{heads}'
        f'<th scope="col">Picture</th></tr></thead><tbody>{body}</tbody></table></div></details>'
    )


def _about(rows: Sequence[Mapping[str, Any]], columns: Sequence[Metric]) -> str:
    """How many cases there are, and the worst value of the first metric that the rows are sorted by."""
    done = [row for row in rows if row["status"] == "done"]
    failed = len(rows) - len(done)
    said = [counted(len(done), "case")] + ([f'<span class="failed">{failed} failed</span>'] if failed else [])
    value = number(done[0].get(columns[0].key)) if done and columns else None
    if value is not None:
        said.append(f"worst {escape(columns[0].title)} {columns[0].text(value)}")
    return " · ".join(said)


def leader(board: Board) -> str | None:
    """The contender with the best mean of the first measure of accuracy there is; None without a contender."""
    for metric in board.measured(metrics.of_family("accuracy"))[:1]:
        means = _contenders(board, metric)
        if means:
            return (max if metric.better == "higher" else min)(means, key=means.__getitem__)
    return None


def _case_row(out: Path, row: Mapping[str, Any], case: Mapping[str, Any], columns: Sequence[Metric]) -> str:
    name = f'<a href="cases/{_file(row)}.json">{escape(str(row["pair"]))}</a>'
    if row["status"] != "done":
        reason = escape(str(row.get("reason", "no reason is recorded")))
        wide = f'<td class="reason" colspan="{len(columns) + 1}"><b class="failed">failed</b> {reason}</td>'
        return f"<tr><th scope=row>{name}</th>{wide}</tr>"
    cells = "".join(f'<td data-name="{escape(m.title)}">{m.text(number(row.get(m.key)))}</td>' for m in columns)
    changes = _label_changes(case.get("evaluation", {}))
    return f"<tr><th scope=row>{name}{changes}</th>{cells}<td class=picture>{_picture(out, row)}</td></tr>"


def _label_changes(evaluation: Mapping[str, Any]) -> str:
    """Labels that the warp lost or created, never left unsaid."""
    said = ""
    for name, labels in (("lost", evaluation.get("labels_lost")), ("created", evaluation.get("labels_created"))):
        if labels:
            said += f"<small class=failed>labels {name}: {escape(', '.join(map(str, labels)))}</small>"
    return said


def _picture(out: Path, case: Mapping[str, Any]) -> str:
    """The upper part of the case's picture, linked to the whole; a dash where there is none."""
    if not (out / "pictures" / f"{case['pair']}__{case['method']}.jpg").is_file():
        return "-"
    source = f"pictures/{_file(case)}.jpg"
    said = escape(f"Pictures of {case['pair']} by {case['method']}: fixed, moved, difference, Jacobian and labels")
    return f'<a href="{source}"><img src="{source}" alt="{said}" loading="lazy" width="300" height="96"></a>'


def _file(case: Mapping[str, Any]) -> str:
    return quote(f"{case['pair']}__{case['method']}", safe="")
