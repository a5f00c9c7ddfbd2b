"""What the network adds at the same time: Dice against the time, with it and without.

    python benchmarks/network_time.py [--data FOLDER]

Each preset, and shorter ones, registers the six OASIS validation pairs from the affine on and from the network on, all
on the same two threads, one after the other. Cases that are done are kept, so it can be interrupted. Writes
results/network_time/{cases.jsonl, results.json, curve.png}. The Dice at a given time is that of the best setting that
has ended by then; the time is the whole registration in memory: read, affine, network, refinement, measures. Both
clocks are kept: of the processor, which other work on the machine disturbs little, and on the wall."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stepwarp.config import Preset, preset
from stepwarp.data.manifest import Manifest, Pair, data_root, pairs, read_manifest
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_labels
from stepwarp.machine import load, machine
from stepwarp.registrar.weights import SHIPPED
from stepwarp.workflow.register import register

OUT = Path(__file__).parent / "results" / "network_time"
WEIGHTS = ("brain-t1", "brain-t1-labels")
THREADS = 2
BUDGETS = (5, 10, 20, 40)
#: Presets, with the share of their iterations.
_SETTINGS = (("fast", 0.4), ("fast", 1.0), ("default", 1.0), ("best", 0.6), ("best", 1.0), ("best", 2.0))


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each way to register, and the arguments that make it."""
    yield "affine", {"preset": preset("fast"), "affine_only": True}
    for weights in WEIGHTS:
        yield weights, {"preset": preset("fast"), "network": weights, "refine": False}
    for name, share in _SETTINGS:
        recipe = _shortened(preset(name), share)
        title = name if share == 1 else f"{share:g} x {name}"
        yield title, {"preset": recipe}
        for weights in WEIGHTS:
            yield f"{weights} + {title}", {"preset": recipe, "network": weights}


def _shortened(recipe: Preset, share: float) -> Preset:
    levels = [
        level.model_copy(update={"iterations": max(1, round(share * level.iterations))})
        for level in recipe.deformable.levels
    ]
    return recipe.model_copy(update={"deformable": recipe.deformable.model_copy(update={"levels": tuple(levels)})})


def case(pair: Pair, manifest: Manifest, arguments: dict[str, Any]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = register(pair.fixed.image, pair.moving.image, device="cpu", threads=THREADS, **arguments)
    cost = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - wall}
    fixed, moving = (read_labels(scan.labels) for scan in (pair.fixed, pair.moving))
    overlap = mean_dice(dice(fixed, moving.warp(found.transform, fixed.grid), manifest.ignore_labels))
    network = found.record["network"]
    return {
        "mean_dice": overlap,
        **cost,
        "corner_folds": 0 if found.warp is None else found.record["measures"]["regularity"]["corner_folds"]["count"],
        "network_used": None if network is None else network["used"],
        "network_seconds": None if network is None else network["seconds"],
        "load": load(),
    }


def at(points: list[dict[str, Any]], seconds: float, clock: str) -> float | None:
    """The best mean Dice of the settings that have ended by then; None where none has."""
    return max((point["mean_dice"] for point in points if point[clock] <= seconds), default=None)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    table = []
    for name, arguments in settings():
        weights = SHIPPED.get(arguments.get("network"))
        own = [row for row in rows if (row["setting"], row["weights_sha256"]) == (name, weights)]
        means = {
            key: float(np.mean([row[key] for row in own]))
            for key in ("mean_dice", "cpu_seconds", "seconds", "corner_folds")
        }
        table.append({"setting": name, "network": arguments.get("network"), "pairs": len(own), **means})
    families = {
        weights or "direct": [point for point in table if point["network"] == weights] for weights in (None, *WEIGHTS)
    }
    budgets = {
        clock: {str(budget): {key: at(points, budget, clock) for key, points in families.items()} for budget in BUDGETS}
        for clock in ("cpu_seconds", "seconds")
    }
    shipped = {weights: SHIPPED[weights] for weights in WEIGHTS}
    return {"machine": machine(THREADS), "weights": shipped, "settings": table, "dice_at": budgets}


def draw(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((6.4, 4), layout="constrained")
    axes = figure.subplots()
    labels = {None: "direct optimisation", **{weights: f"{weights} first" for weights in WEIGHTS}}
    for weights, label in labels.items():
        points = sorted((p for p in result["settings"] if p["network"] == weights), key=lambda p: p["cpu_seconds"])
        axes.plot(*zip(*((p["cpu_seconds"], p["mean_dice"]) for p in points), strict=True), "o-", label=label)
    axes.set_xscale("log")
    axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
    axes.minorticks_off()
    axes.set(xlabel="processor seconds, everything included", ylabel="mean Dice, six pairs")
    axes.set(xlim=(5, 45), ylim=(0.6, 0.68))  # the affine alone lies far below
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="where the manifest's paths begin; $STEPWARP_DATA by default")
    arguments = parser.parse_args()
    manifest = read_manifest("oasis")
    chosen = pairs(manifest, data_root(arguments.data, "oasis"), "validation", verify=False)
    OUT.mkdir(parents=True, exist_ok=True)
    kept = OUT / "cases.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["pair"], row["setting"], row["weights_sha256"]) for row in rows}
    register(
        chosen[0].fixed.image, chosen[0].moving.image, preset="fast", weights=WEIGHTS[0], threads=THREADS
    )  # warm up
    for pair in chosen:
        for name, how in settings():
            key = {"pair": pair.id, "setting": name, "weights_sha256": SHIPPED.get(how.get("network"))}
            if tuple(key.values()) in done:
                continue
            rows.append({**key, **case(pair, manifest, how)})
            with kept.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{pair.id} {name}: {rows[-1]['mean_dice']:.3f}, {rows[-1]['cpu_seconds']:.1f} CPU s", flush=True)
    result = summary(rows)
    (OUT / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, OUT / "curve.png")
    print(json.dumps(result["dice_at"], indent=1))


if __name__ == "__main__":
    main()
