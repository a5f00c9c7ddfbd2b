"""Whether every preset is at least as good as the one below it, on brains of any voxel size.

    python benchmarks/presets_in_order.py [--data FOLDER]

The twelve pairs of OASIS, with their own voxels of 1 mm and pooled to 2 and 4. Dice is that of all labels, carried on
their own grid of 1 mm; LNCC that of the images as they were registered. Cases that are done are kept, so it can be
interrupted; remove cases.jsonl to begin afresh.

Writes results/presets_in_order/{cases.jsonl, results.json, table.md}."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import stepwarp
from stepwarp.data.manifest import Manifest, Pair, data_root, pairs, read_manifest
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_image, read_labels
from stepwarp.machine import load, machine

OUT = Path(__file__).parent / "results" / "presets_in_order"
PRESETS = ("fast", "default", "best")
#: Of voxels, mm; the scans have the first.
SIZES = (1, 2, 4)
THREADS = 2
#: A preset that is below another by less is as good.
SLACK = 0.002


def registered(pair: Pair, manifest: Manifest, mm: int, preset: str) -> dict[str, Any]:
    fixed, moving = (read_image(scan.image).coarser(mm) for scan in (pair.fixed, pair.moving))
    cpu = time.process_time()
    found = stepwarp.register(fixed, moving, preset=preset, device="cpu", threads=THREADS)
    cpu = time.process_time() - cpu
    a, b = (read_labels(scan.labels) for scan in (pair.fixed, pair.moving))
    return {
        "pair": pair.id,
        "mm": mm,
        "preset": preset,
        "dice": round(mean_dice(dice(a, b.warp(found.transform, a.grid), manifest.ignore_labels)), 5),
        "lncc": found.record["measures"]["similarity"]["lncc"],
        "std_log_jacobian": round(found.record["measures"]["regularity"]["std_log_jacobian"], 4),
        "corner_folds": found.record["measures"]["regularity"]["corner_folds"]["count"],
        "verdict": found.record["verdict"]["status"],
        "cpu_seconds": round(cpu, 2),
        "load": load(),
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each size and preset the means, and against the preset below it the smallest gain of any pair."""
    result = []
    for mm in SIZES:
        for n, preset in enumerate(PRESETS):
            own = _chosen(rows, mm, preset)
            entry: dict[str, Any] = {"mm": mm, "preset": preset, "pairs": len(own)}
            for key in ("dice", "lncc", "std_log_jacobian", "corner_folds", "cpu_seconds"):
                entry[key] = round(float(np.mean([row[key] for row in own.values()])), 4)
            if n:
                below = _chosen(rows, mm, PRESETS[n - 1])
                for key in ("dice", "lncc"):
                    gains = [own[pair][key] - below[pair][key] for pair in own]
                    entry[f"least_gain_{key}"] = round(min(gains), 4)
                    entry[f"worse_{key}"] = sum(gain < -SLACK for gain in gains)
            result.append(entry)
    return result


def _chosen(rows: list[dict[str, Any]], mm: int, preset: str) -> dict[str, dict[str, Any]]:
    return {row["pair"]: row for row in rows if (row["mm"], row["preset"]) == (mm, preset)}


def table(entries: list[dict[str, Any]]) -> str:
    head = ["voxels", "preset", "Dice", "LNCC", "std log J", "processor s", "least gain, Dice", "least gain, LNCC"]
    lines = [head, ["---"] * len(head)]
    for entry in entries:
        gains = [f"{entry[key]:+.4f}" if key in entry else "" for key in ("least_gain_dice", "least_gain_lncc")]
        means = [f"{entry[key]:.4f}" for key in ("dice", "lncc", "std_log_jacobian")]
        lines.append([f"{entry['mm']} mm", f"`{entry['preset']}`", *means, f"{entry['cpu_seconds']:.1f}", *gains])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the data root; $STEPWARP_DATA by default")
    arguments = parser.parse_args()
    manifest = read_manifest("oasis")
    chosen = pairs(manifest, data_root(arguments.data, "oasis"), verify=False)
    kept = OUT / "cases.jsonl"
    OUT.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["pair"], row["mm"], row["preset"]) for row in rows}
    for pair in chosen:
        for mm in reversed(SIZES):
            for preset in PRESETS:
                if (pair.id, mm, preset) not in done:
                    rows.append(registered(pair, manifest, mm, preset))
                    with kept.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
                    print(rows[-1], flush=True)
    entries = summary(rows)
    result = {"machine": machine(THREADS), "slack": SLACK, "settings": entries}
    (OUT / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (OUT / "table.md").write_text(table(entries))
    print(table(entries))


if __name__ == "__main__":
    main()
