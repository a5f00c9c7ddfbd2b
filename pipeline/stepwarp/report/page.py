"""The page of one registered pair: a single HTML file that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from stepwarp.files.atomic import write_text
from stepwarp.report import figures, panels, text
from stepwarp.report.document import card, document, tiles
from stepwarp.report.pair import PairPage, Scene

#: What the verdict says beside its badge when it gives no reasons.
VERDICTS = {
    "pass": "Every check passed.",
    "check": "Look at the pictures before you use the result.",
    "fail": "Do not use the result.",
}


def write_page(path: Path, page: PairPage, overwrite: bool = False) -> None:
    """Write the page of a pair to `path`, complete or not at all.

    Raises OutputError if it cannot be written, or if it is there and `overwrite` is false."""
    write_text(path, render(page), overwrite)


def render(page: PairPage) -> str:
    """The page of a pair as one HTML document without any reference to another file or host."""
    scene = Scene(page)
    title = f"{page.moved.name} → {page.fixed.name}"
    content = f"""{_header(page)}
{panels.comparison(scene)}
<div class="pairs">{_deformation(scene)}{_differences(scene)}</div>
{panels.steps(scene) if page.steps else ""}
{_course(page.record)}
<div class="columns">{_tables(page)}</div>
{_methods(page)}"""
    return document(title, content, styles=["page.css"], scripts=["page.js"])


def _header(page: PairPage) -> str:
    record = page.record
    stages = record.get("stages", [])
    gpu = [stage["gpu_peak_mib"] for stage in stages if "gpu_peak_mib" in stage]
    facts = {
        "time": f"{sum(stage['seconds'] for stage in stages):.1f} s" if stages else None,
        "peak memory": f"{max(stage['peak_mib'] for stage in stages):,.0f} MiB" if stages else None,
        "peak GPU memory": f"{max(gpu):,.0f} MiB" if gpu else None,
        "device": record.get("device"),
        "threads": record.get("threads"),
        "stepwarp": record.get("version"),
    }
    known = {name: None if value is None else text.plain(value) for name, value in facts.items()}
    names = f"{escape(page.moved.name)} <span>registered to</span> {escape(page.fixed.name)}"
    return f"<header><div><h1>{names}</h1>{_verdict(record.get('verdict'))}</div>{tiles(known)}</header>"


def _verdict(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return ""
    status = verdict["status"]
    if status not in VERDICTS:
        raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}, not {status!r}")
    reasons = "".join(f"<li>{escape(str(reason))}</li>" for reason in verdict.get("reasons") or [VERDICTS[status]])
    return f'<div class="verdict {status}"><strong>{status}</strong><ul>{reasons}</ul></div>'


def _deformation(scene: Scene) -> str:
    warp, jacobian = scene.page.warp, scene.page.jacobian
    grid = panels.deformed_grid(scene, warp) if warp is not None else ""
    return grid + (panels.jacobian(scene, jacobian) if jacobian is not None else "")


def _differences(scene: Scene) -> str:
    before = "affine" if "affine" in scene.moving else "before"
    return panels.difference(scene, before) + panels.difference(scene, "moved")


def _course(record: Mapping[str, Any]) -> str:
    loss, stages = record.get("loss"), record.get("stages")
    curves = card("Loss", figures.loss_curves(loss)) if loss else ""
    bars = card("Stages", text.stage_bars(stages)) if stages else ""
    return f'<div class="course">{curves}{bars}</div>'


def _tables(page: PairPage) -> str:
    record = page.record
    names = {
        "measures": "Measures",
        "initial": "Start",
        "network": "Network",
        "further": "Further pairs of images",
        "self_check": "Self-check of the written files",
        "inputs": "Inputs",
    }
    cards = {title: record[key] for key, title in names.items() if record.get(key)}
    truth = card("Against the known truth", text.before_after_table(page.truth)) if page.truth else ""
    settings = card("Settings", text.record_table(record["settings"])) if record.get("settings") else ""
    return truth + "".join(card(title, text.record_table(value)) for title, value in cards.items()) + settings


def _methods(page: PairPage) -> str:
    shape = " x ".join(map(str, page.fixed.grid.shape))
    spacing = " x ".join(f"{s:.3g}" for s in page.fixed.grid.spacing)
    paragraph = text.methods(page.record, page.fixed.name, page.moved.name, f"{shape} voxels of {spacing} mm")
    button = '<button id="copy">Copy</button>'
    return card(f"Methods, to paste into a paper {button}", f'<p id="methods">{escape(paragraph)}</p>')
