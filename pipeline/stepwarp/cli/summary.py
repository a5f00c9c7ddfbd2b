"""What a finished registration says on the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from stepwarp.cli.terminal import cell, console
from stepwarp.evaluation.metrics import METRICS, of_similarities
from stepwarp.printable import counted

if TYPE_CHECKING:
    from stepwarp.workflow.demo import Demonstration

_COLOURS = {"pass": "green", "check": "yellow", "fail": "red"}


def print_registration(record: Mapping[str, Any], folder: Path) -> None:
    """Verdict with reasons, similarity, folds, seconds, and what to do next."""
    screen = console(soft_wrap=True)
    for name, value in _rows(record):
        screen.print(f"{name:<20}{value}")
    apply = f"stepwarp apply -t {shlex.quote(str(folder))} -i MOVING_LABELS -o ON_FIXED_GRID"
    screen.print(f"{'look at':<20}{cell(folder / 'report.html')}")
    screen.print(f"{'carry further':<20}{cell(apply)}")
    if not record.get("trusted"):  # other programs read such headers in their own way
        screen.print(f"{'with ANTs':<20}antsApplyTransforms {_for_ants(record)}")


def print_demonstration(demonstration: Demonstration) -> None:
    """How far the registration is from the truth, and its own summary."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("against the truth, inside the brain")
    for stage in demonstration.accuracy:
        table.add_column(stage, justify="right")
    for name, values in demonstration.rows().items():
        table.add_row(name, *(f"{value:.3f}" for value in values))
    screen = console()
    screen.print(table)
    screen.print()
    print_registration(demonstration.registration.record, demonstration.folder)


def _rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    verdict, measures = record["verdict"], record["measures"]
    colour = _COLOURS[verdict["status"]]
    rows = [("verdict", f"[bold {colour}]{verdict['status']}[/]")]
    rows += [("", cell(reason)) for reason in verdict["reasons"]]
    rows += [(metric.name, _change(measures, key) + metric.remark) for key, metric in of_similarities().items()]
    for name, further in measures.get("further", {}).items():
        rows += [(name, f"{metric.name} {_change(further, key)}") for key, metric in of_similarities().items()]
    if "regularity" in measures:
        folds = {METRICS[key].name: measures["regularity"][key]["count"] for key in ("folds", "corner_folds")}
        rows += [(name, counted(count, "voxel")) for name, count in folds.items()]
    if record.get("network"):
        rows.append(("network", cell(_network(record["network"]))))
    seconds: dict[str, float] = {}
    for stage in record["stages"]:
        seconds[stage["name"]] = seconds.get(stage["name"], 0.0) + stage["seconds"]
    stages = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    rows.append(("seconds", f"{sum(seconds.values()):.1f} ({stages})"))
    memory = f"{max(stage['peak_mib'] for stage in record['stages'])} MiB at most"
    gpu = [stage["gpu_peak_mib"] for stage in record["stages"] if "gpu_peak_mib" in stage]
    rows.append(("memory", f"{memory}, and {max(gpu)} MiB of the GPU's" if gpu else memory))
    return rows


def _for_ants(record: Mapping[str, Any]) -> str:
    from stepwarp.layout import AFFINE, WARP
    from stepwarp.workflow.subjects import ants_options

    return ants_options(record, [WARP, AFFINE] if "regularity" in record["measures"] else [AFFINE])


def _network(network: Mapping[str, Any]) -> str:
    steps = counted(network["steps"], "step")
    return f"{network['name']}, {steps}" if network["used"] else f"{network['name']}, not used"


def _change(measures: Mapping[str, Any], key: str) -> str:
    affine = f"{measures['similarity_affine'][key]:.3f} after the affine"
    return f"{affine}, {measures['similarity'][key]:.3f} at the end" if "similarity" in measures else affine
