"""The page of a registrar's probes: what was found, how sure it is, and what would change the answer, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from stepwarp.probes import direction
from stepwarp.probes.findings import QUESTIONS, value
from stepwarp.report import text
from stepwarp.report.document import card, document, tiles
from stepwarp.report.probe_plots import Curve, curves


def render(record: Mapping[str, Any]) -> str:
    """The page as HTML of what probes.json holds."""
    title = f"Probes: {record['weights']['name']}"
    cards = "".join(_probe(key, found) for key, found in record["probes"].items())
    content = f"{_header(record)}{_overview(record)}{cards}{_method(record)}"
    return document(title, content, styles=["page.css", "probes.css"], scripts=[])


def _header(record: Mapping[str, Any]) -> str:
    spacing = record["grid"]["spacing_mm"][0]
    facts = {
        "pairs": str(len(record["pairs"])),
        "steps": str(record["steps"]),
        "grid": f"{' x '.join(map(str, record['grid']['shape']))} of {spacing:g} mm",
        "objective": record["objective"],
        "seconds": f"{record['seconds']:.0f}",
        "stepwarp": record["stepwarp"],
    }
    lead = f"<p>{escape(record['manifest'])}: {escape(', '.join(record['pairs']))}</p>"
    name = escape(record["weights"]["name"])
    return f"<header><div><h1>{name} <span>probes</span></h1>{lead}</div>{tiles(facts)}</header>"


def _overview(record: Mapping[str, Any]) -> str:
    """For each question what was found and what would change the mind."""
    rows = "".join(
        f"<tr><th>{escape(found['asked'])}</th><td>{escape(found['findings'][_lead(key)])}</td>"
        f"<td>{escape(found['change'])}</td></tr>"
        for key, found in record["probes"].items()
    )
    head = "<thead><tr><th>question</th><td>found</td><td>what would change the answer</td></tr></thead>"
    few = len(record["pairs"])
    note = f'<p class="note">In brackets: {escape(record["interval"])}. '
    note += f"With {few} pairs it says how far a mean hangs on which pairs were taken, and little about others.</p>"
    return card("Answers", f'<table class="overview">{head}<tbody>{rows}</tbody></table>{note}')


def _lead(key: str) -> int:
    """Which of a probe's sentences answers its question."""
    return {"b": 1, "f": 1}.get(key, 0)


def _probe(key: str, found: Mapping[str, Any]) -> str:
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in found["findings"])
    terms = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(found[name])}</dd>" for name in ("measured", "control", "null")
    )
    numbers = found["numbers"]
    figures = "".join(
        f"<figure>{curves(lines, across, up)}<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, across, up, lines in _figures(key, numbers)
    )
    content = f'<ul class="answers">{sentences}</ul><dl class="terms">{terms}</dl>'
    content += f'<div class="figures">{figures}</div>' if figures else ""
    content += f"<details><summary>All numbers</summary>{_values(numbers)}{_rows(numbers)}</details>"
    return card(f"{escape(found['title'])} <small>{escape(found['asked'])}</small>", content)


def _figures(key: str, numbers: Mapping[str, Any]) -> list[tuple[str, str, str, list[Curve]]]:
    """(caption, label across, label up, curves) of each figure of a probe."""

    def of(*names: str, labels: Sequence[str] | None = None, first: int = 0) -> list[Curve]:
        given = labels or names
        return [Curve(label, numbers[n]["rows"], first) for n, label in zip(names, given, strict=True) if n in numbers]

    times = [n for n in (1, 2, 4) if f"loss, {n} x" in numbers]
    if key == "a":
        labels = [f"{n} x" for n in times]
        return [
            (
                f"{caption} after each step; the bands are intervals over pairs.",
                "step",
                caption,
                of(*names, labels=labels),
            )
            for caption, names in (
                ("Objective", [f"loss, {n} x" for n in times]),
                ("Correlation", [f"ncc, {n} x" for n in times]),
                ("Length of the step (mm)", [f"step, {n} x" for n in times]),
                ("Share of folded voxels", [f"folds, {n} x" for n in times]),
            )
        ]
    if key == "b":
        downhill = [n for n in numbers if "rows" in numbers[n] and direction.OF_ANOTHER not in n]
        smooth = [n for n in downhill if n.startswith("smooth")]
        best = max(smooth, key=lambda n: numbers[f"{n}, all steps"]["value"]["mean"] or -1.0)
        shown = [direction.RAW, best, direction.NEWTON, direction.FINAL, best + direction.OF_ANOTHER]
        return [
            ("Cosine of each step with what it may follow.", "step", "cosine", of(*shown, first=1)),
            ("With gradients of several widths.", "step", "cosine", of(direction.RAW, *smooth, first=1)),
        ]
    if key == "e":
        starts = [n.removeprefix("distance, ") for n in numbers if n.startswith("distance, ")]
        return [
            (
                "Distance to the run from the identity (mm); a second pass begins half-way.",
                "step",
                "mm",
                of(*(f"distance, {n}" for n in starts), labels=starts),
            ),
            (
                "Objective.",
                "step",
                "objective",
                of("loss, identity", *(f"loss, {n}" for n in starts), labels=["identity", *starts]),
            ),
        ]
    if key == "f":
        starts = [n.removeprefix("drift, ") for n in numbers if n.startswith("drift, ")]
        return [
            (caption, "step", up, of(*(f"{kind}, {n}" for n in starts), labels=starts))
            for caption, up, kind in (
                ("Distance from the start (mm).", "mm", "drift"),
                ("Objective.", "objective", "loss"),
            )
        ]
    if key == "h":
        said = ("after the swap", "without a swap", "towards the first target")
        runs = of("swapped", "straight", "kept", labels=said)
        return [("Objective against the second target.", "step", "objective", runs)]
    return []


def _values(numbers: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value(found['value'], 4))}</td><td>{found['value']['n']}</td></tr>"
        for name, found in numbers.items()
        if "value" in found
    )
    head = "<thead><tr><th></th><td>mean over pairs [interval]</td><td>pairs</td></tr></thead>"
    return f"<table>{head}<tbody>{rows}</tbody></table>" if rows else ""


def _rows(numbers: Mapping[str, Any]) -> str:
    """Means by step, a table per group of equally long rows."""
    groups: dict[int, list[str]] = {}
    for name, found in numbers.items():
        if "rows" in found:
            cells = "".join(f"<td>{escape(_mean(row))}</td>" for row in found["rows"])
            groups.setdefault(len(found["rows"]), []).append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return "".join(f'<div class="rows"><table>{"".join(rows)}</table></div>' for rows in groups.values())


def _mean(row: Mapping[str, Any]) -> str:
    return "-" if row["mean"] is None else f"{row['mean']:.4g}"


def _method(record: Mapping[str, Any]) -> str:
    facts = {
        "weights": record["weights"],
        "registrar": {f"{n:02d}": line for n, line in enumerate(record["registrar"].splitlines(), 1)},
        "run": {key: record[key] for key in ("manifest", "accuracy", "seed", "device", "threads", "interval")},
    }
    changes = " ".join(f"{question.title}: {question.change}" for question in QUESTIONS.values())
    return card("How it was measured", text.record_table(facts) + f'<p class="note">{escape(changes)}</p>')
