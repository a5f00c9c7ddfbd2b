"""The page of a batch: one HTML file that loads nothing but the cases' pictures beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stepwarp.evaluation import metrics
from stepwarp.evaluation.metric import Metric
from stepwarp.files.atomic import write_text
from stepwarp.report import benchmark_plots as plots
from stepwarp.report import text
from stepwarp.report.benchmark_data import Look, Value, number
from stepwarp.report.document import card, document, tiles

#: How a case can have ended, the worst first; the looks of the verdicts have the colours of a pair's page.
LOOKS = {
    "failed": Look("failed", "could not be registered", 0, "verdict", "#f2605c", "cross"),
    "waiting": Look("waiting", "not begun", 1, "verdict", "#97a1af", "circle"),
    "fail": Look("fail", "registered, but not to be used", 2, "verdict", "#ff8a5c", "down"),
    "check": Look("check", "registered, to be looked at before use", 3, "verdict", "#eba63f", "diamond"),
    "pass": Look("pass", "registered, every check passed", 4, "verdict", "#35c07a", "circle"),
}


def write_index(out: Path, summary: Mapping[str, Any]) -> Path:
    """Write index.html, complete or not at all, into the folder of a batch; an older one is replaced.

    summary: the content of summary.json. Raises OutputError if the page cannot be written."""
    path = out / "index.html"
    write_text(path, render(out, summary), overwrite=True)
    return path


def render(out: Path, summary: Mapping[str, Any]) -> str:
    """The page as HTML; `out` is only asked which pictures there are."""
    present = {name: look for name, look in LOOKS.items() if summary["counts"].get(name)}
    content = f"""<style>{plots.style_of(present.values())}{_hiding(present.values())}</style>
{_header(summary)}
{_notes(summary)}
{_failures(summary)}
{plots.chips(present.values()) if len(present) > 1 else ""}
{_cases(out, summary)}
<div class="grid">{_distributions(summary)}</div>
{_about(summary)}"""
    styles, scripts = ["page.css", "benchmark.css", "batch.css"], ["benchmark.js"]
    title = f"Batch: {summary['about'].get('manifest', '')}"
    return document(title, content, styles=styles, scripts=scripts, images="'self' file: data:")


def _hiding(looks: Iterable[Look]) -> str:
    """Rows of a table do not fade, they go."""
    return "".join(f"main[data-only='{look.number}'] tr.mark:not(.m{look.number}){{display:none}}" for look in looks)


def _header(summary: Mapping[str, Any]) -> str:
    about, counts, rows = summary["about"], summary["counts"], summary["cases"]
    seconds = [found for row in rows if (found := number(row.get("seconds"))) is not None]
    facts = {
        "cases": str(len(rows)),
        **{name: str(counts[name]) for name in LOOKS if counts.get(name)},
        "computing": _duration(sum(seconds)) if seconds else None,
        "stepwarp": about.get("stepwarp"),
        "date": about.get("date"),
    }
    to = f" <span>to {escape(str(about['to']))}</span>" if about.get("to") else ""
    split = f" <span>{escape(str(about['split']))}</span>" if about.get("split") else ""
    heading = f"<h1>{escape(str(about.get('manifest', 'Batch')))}{split}{to}</h1>"
    return f'<header><div>{heading}<p class="lead">{_lead(counts)}</p></div>{tiles(facts)}</header>'


def _lead(counts: Mapping[str, int]) -> str:
    """The result in a sentence."""
    said = {
        "pass": "passed every check",
        "check": "should be looked at",
        "fail": "must not be used",
        "failed": "could not be registered",
        "waiting": "were not begun",
    }
    return ", ".join(f"<b>{counts[name]}</b> {words}" for name, words in said.items() if counts.get(name)) + "."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _notes(summary: Mapping[str, Any]) -> str:
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in summary.get("notes", []))
    return f'<ul class="warnings">{notes}</ul>' if notes else ""


def _failures(summary: Mapping[str, Any]) -> str:
    failed = [row for row in summary["cases"] if row["status"] == "failed"]
    if not failed:
        return ""
    rows = "".join(
        f'<tr class="mark m{LOOKS["failed"].number}"><th scope="row">'
        f'<a href="failed/{_file(row)}.json">{escape(str(row["case"]))}</a></th>'
        f"<td>{escape(str(row['reason']))}{_tries(row)}</td></tr>"
        for row in failed
    )
    return card(f"Could not be registered <small>{len(failed)}</small>", f'<table class="reasons">{rows}</table>')


def _tries(row: Mapping[str, Any]) -> str:
    count = len(row.get("attempts", []))
    return f" <small>tried {count} times</small>" if count > 1 else ""


def _cases(out: Path, summary: Mapping[str, Any]) -> str:
    done = [row for row in summary["cases"] if row["status"] != "failed"]
    if not done:
        return ""
    columns = [metric for metric in metrics.shown("batch cases") if any(metric.key in row for row in done)]
    heads = "".join(
        f'<th scope="col" title="{escape(metric.meaning)}">{escape(metric.title)}'
        f"{f' <small>{escape(metric.unit)}</small>' if metric.unit else ''}</th>"
        for metric in columns
    )
    body = "".join(_row(out, row, columns) for row in done)
    files = '<a href="cases.csv">cases.csv</a> · <a href="summary.json">summary.json</a>'
    table = (
        '<div class="wide-table"><table class="cases"><thead><tr><th scope="col">Case</th>'
        f'<th scope="col" class="said">Verdict</th>{heads}'
        f'<th scope="col">fixed, moved, difference, log J</th></tr></thead><tbody>{body}</tbody></table></div>'
    )
    return card(f"Cases, worst first <small>{files}</small>", table)


def _row(out: Path, row: Mapping[str, Any], columns: Sequence[Metric]) -> str:
    look = LOOKS[row.get("verdict", row["status"])]
    page = f"cases/{_file(row)}/report.html"
    name = escape(str(row["case"]))
    name = f'<a href="{page}">{name}</a>' if row["status"] == "done" else name
    cells = "".join(f'<td data-name="{escape(m.title)}">{m.text(number(row.get(m.key)))}</td>' for m in columns)
    return (
        f'<tr class="mark m{look.number}"><th scope="row">{name}</th>'
        f'<td class="said"><strong>{escape(look.name)}</strong>{_reasons(row)}</td>{cells}'
        f'<td class="picture">{_picture(out, row, page)}</td></tr>'
    )


def _reasons(row: Mapping[str, Any]) -> str:
    """What makes a verdict worse than pass; the reasons begin with it."""
    if row.get("verdict") in (None, "pass"):
        return ""
    said = escape("; ".join(map(str, row.get("reasons", []))))
    return f'<small title="{said}">{said}</small>'


def _picture(out: Path, row: Mapping[str, Any], page: str) -> str:
    """The upper part of the case's picture, linked to its page; a dash where there is none."""
    if not (out / "cases" / str(row["case"]) / "picture.jpg").is_file():
        return "-"
    source = f"cases/{_file(row)}/picture.jpg"
    said = escape(f"Pictures of {row['case']}: fixed, moved, difference and Jacobian")
    return f'<a href="{page}"><img src="{source}" alt="{said}" loading="lazy" width="300" height="96"></a>'


def _distributions(summary: Mapping[str, Any]) -> str:
    cards = ""
    for metric in metrics.shown("batch figure"):
        values = dict(_values(summary, metric))
        if values:
            nothing = all(value.number == 0 for found in values.values() for value in found)
            figure = '<p class="note">0 in every case.</p>' if nothing else plots.distributions(LOOKS, values, metric)
            cards += card(f"{escape(metric.heading)} <small>{escape(metric.meaning)}</small>", figure)
    return cards


def _values(summary: Mapping[str, Any], metric: Metric) -> Iterator[tuple[str, list[Value]]]:
    """Verdict -> the metric of each case that got it."""
    for name in reversed(LOOKS):
        rows = [row for row in summary["cases"] if row.get("verdict") == name]
        numbers = [(str(row["case"]), number(row.get(metric.key))) for row in rows]
        found = [Value(case, value) for case, value in numbers if value is not None]
        if found:
            yield name, found


def _about(summary: Mapping[str, Any]) -> str:
    cards = {"Asked for": summary["about"], "Machine and software": summary.get("environment", {})}
    boxes = "".join(
        card(title, f'<div class="facts">{text.record_table(facts)}</div>') for title, facts in cards.items() if facts
    )
    return f'<div class="grid">{boxes}</div>'


def _file(row: Mapping[str, Any]) -> str:
    return quote(str(row["case"]), safe="")
