"""What a batch leaves to be looked at: a summary, a table, a page, and names as BIDS has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stepwarp.batch.places import BatchPlaces
from stepwarp.batch.settings import key_of, parts_in
from stepwarp.evaluation.metrics import METRICS
from stepwarp.files import write_text
from stepwarp.files.json import read_record, write_record
from stepwarp.files.tables import csv_text, guarded

_ORDER = {"failed": 0, "waiting": 1, "fail": 2, "check": 3, "pass": 4}


def conclude(places: BatchPlaces, about: Mapping[str, Any], asked: Sequence[str]) -> dict[str, Any]:
    """Write summary.json, cases.csv and index.html from all that the folder holds; the summary.

    about: what the batch was asked for. asked: its cases; those without result or reason are waiting."""
    from stepwarp.report.batch import write_index

    summary = summarise(places, about, asked)
    write_record(places.summary, summary)
    write_text(places.csv, csv_of(summary), overwrite=True)
    write_index(places.out, summary)
    return summary


def summarise(places: BatchPlaces, about: Mapping[str, Any], asked: Sequence[str]) -> dict[str, Any]:
    """{about, asked, environment, counts, notes, cases: rows, the worst first}.

    A case that failed counts as failed even if an older result of it is there."""
    failures, records = places.read_failures(), places.read_cases()
    rows = [failed_row(case, failure) for case, failure in failures.items()]
    rows += [row_of(case, record) for case, record in records.items() if case not in failures]
    known = {row["case"] for row in rows}
    rows += [{"case": case, "status": "waiting"} for case in asked if case not in known]
    rows.sort(key=_worst_first)
    counts = Counter(row.get("verdict", row["status"]) for row in rows)
    settings = {key_of((parts_in(record) or {}).get("settings", {})) for record in records.values()}
    notes = ["the cases were not all made with the same settings"] if len(settings) > 1 else []
    return {
        "about": dict(about),
        "asked": list(asked),
        "environment": read_record(places.environment) if places.environment.exists() else {},
        "counts": {name: counts[name] for name in _ORDER},
        "notes": notes,
        "cases": rows,
    }


def row_of(case: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """A finished case as one flat row; what it has not is left out."""
    values = {metric.key: metric.in_record(record) for metric in METRICS.values()}
    return {
        "case": case,
        "status": "done",
        "verdict": record["verdict"]["status"],
        "reasons": list(record["verdict"]["reasons"]),
        **{name: value for name, value in values.items() if value is not None},
        **{role: record["inputs"][role]["path"] for role in ("fixed", "moving")},
    }


def failed_row(case: str, failure: Mapping[str, Any]) -> dict[str, Any]:
    """A case that failed as one flat row."""
    kept = {name: failure[name] for name in ("kind", "attempts") if failure.get(name)}
    return {"case": case, "status": "failed", "reason": str(failure.get("reason", "no reason is recorded")), **kept}


def csv_of(summary: Mapping[str, Any]) -> str:
    """The rows of a summary as CSV, safe to open in a spreadsheet."""
    measures = [metric.key for metric in METRICS.values() if metric.record]
    columns = ["case", "status", "verdict", *measures, "fixed", "moving", "reason"]
    return csv_text([columns, *([_cell(row, column) for column in columns] for row in summary["cases"])])


def _cell(row: Mapping[str, Any], column: str) -> Any:
    value = "; ".join(row["reasons"]) if column == "reason" and "reasons" in row else row.get(column, "")
    return guarded(value) if isinstance(value, str) else value


def _worst_first(row: Mapping[str, Any]) -> tuple[int, float, str]:
    return _ORDER[row.get("verdict", row["status"])], row.get("lncc_after", 0.0), row["case"]
