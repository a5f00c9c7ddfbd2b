"""Pairs on a GPU: seconds of each stage, memory, and how far the result is from the processor's; and how many pairs a
minute a batch makes with so many of them in flight.

    python benchmarks/gpu_pairs.py [--data FOLDER] [--in-flight]

The pair of the demonstration, whose answer is known, and with --data (or $STEPWARP_DATA) two training brains of OASIS
with their labels. Each preset with each back end: the first registration of a process, which compiles what was not
compiled before, and a second one. Without a GPU it says so and does nothing.

--in-flight: batches instead, with `default` and our kernels, with files, self-checks and pictures; of OASIS' training
scans, each with others, or of the demonstration again and again. A pair counts from when as many had ended as there are
workers: what processes take to begin is told beside it.

Writes results/gpu_pairs/{results.json, table.md} after each preset, or {flights.json, flights.md} after each batch."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stepwarp
from stepwarp import limits
from stepwarp.batch.farm import Farm
from stepwarp.batch.study import Batch
from stepwarp.data.manifest import data_root, pairs, read_manifest
from stepwarp.data.mni152 import mni152
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_image, read_labels, write_volume
from stepwarp.geometry import Image, LabelMap
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.kernels import backend
from stepwarp.layout import RECORD
from stepwarp.machine import device_name, machine, versions
from stepwarp.options import RegisterOptions
from stepwarp.workflow.demo import make_pair

OUT = Path(__file__).parent / "results" / "gpu_pairs"
#: Preset, and weights or none.
WAYS = (("fast", None), ("default", None), ("best", None), ("default", "brain-t1-labels"))
BACKENDS = ("reference", "gpu")
COMPUTING = ("affine", "network", "deformable", "measure")
#: Pairs in flight; and how many pairs a batch has, of each of them and at least.
AT_A_TIME = (1, 2, 4, 8, 16)
EACH, LEAST = 4, 6


@dataclass(frozen=True)
class KnownPair:
    """Two images with their labels, by which a registration is judged, less those that are not scored."""

    name: str
    fixed: Image
    moving: Image
    labels: tuple[LabelMap, LabelMap]
    ignored: tuple[int, ...] = ()


def known_pairs(given: Path | None) -> Iterator[KnownPair]:
    demo = make_pair(mni152(), 0)
    yield KnownPair("demo", demo.fixed, demo.moving, (demo.fixed_labels, demo.moving_labels))
    root = data_root(given, "oasis")
    if (root / "oasis").is_dir():
        pair = pairs(read_manifest("oasis"), root, "training", verify=False)[0]
        assert pair.fixed.labels is not None
        assert pair.moving.labels is not None
        fixed, moving = (read_image(scan.image) for scan in (pair.fixed, pair.moving))
        labels = read_labels(pair.fixed.labels), read_labels(pair.moving.labels)
        yield KnownPair(pair.id, fixed, moving, labels, pair.ignore_labels)


def registered(pair: KnownPair, preset: str, weights: str | None, device: str) -> tuple[stepwarp.Registration, float]:
    started = time.perf_counter()
    found = stepwarp.register(pair.fixed, pair.moving, preset=preset, weights=weights, device=device, escalate=False)
    return found, time.perf_counter() - started


def rows_of(pair: KnownPair, preset: str, weights: str | None) -> Iterator[dict[str, Any]]:
    on_processor, spent = registered(pair, preset, weights, "cpu")
    points = pair.fixed.grid.world((scale_intensities(pair.fixed).data > 0.1).nonzero()[::50].numpy())
    what = {"pair": pair.name, "preset": preset, "weights": weights}
    yield what | {"by": "processor", **_told(pair, on_processor, spent)}
    for name in BACKENDS:
        with backend.use(name):
            first = registered(pair, preset, weights, "cuda")[1]
            found, spent = registered(pair, preset, weights, "cuda")
        apart = np.linalg.norm(found.transform(points) - on_processor.transform(points), axis=1)
        yield what | {
            "by": name,
            "first_seconds": round(first, 3),
            **_told(pair, found, spent),
            "apart_mm": {"mean": round(float(apart.mean()), 4), "p95": round(float(np.quantile(apart, 0.95)), 4)},
        }


def _told(pair: KnownPair, found: stepwarp.Registration, spent: float) -> dict[str, Any]:
    stages = found.record["stages"]
    a, b = pair.labels
    return {
        "kernels": found.record["kernels"],
        "gpu_failure": found.record.get("gpu_failure"),
        "dice": round(mean_dice(dice(a, b.warp(found.transform, a.grid), pair.ignored)), 5),
        "seconds": round(spent, 3),
        "computing_seconds": round(sum(each["seconds"] for each in stages if each["name"] in COMPUTING), 3),
        "stages": {each["name"]: each["seconds"] for each in stages},
        "gpu_peak_mib": max((each.get("gpu_peak_mib") or 0 for each in stages), default=0),
    }


def table(rows: list[dict[str, Any]]) -> str:
    head = ["pair", "preset", "by", "Dice", "computing, s", "a second pair, s", "the first, s", "apart, mm", "GPU MiB"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        preset = f"`{row['preset']}`" + (f", `{row['weights']}`" if row["weights"] else "")
        apart = f"{row['apart_mm']['mean']:.3f}" if "apart_mm" in row else ""
        first = f"{row['first_seconds']:.2f}" if "first_seconds" in row else ""
        numbers = [f"{row['dice']:.4f}", f"{row['computing_seconds']:.2f}", f"{row['seconds']:.2f}", first, apart]
        lines.append([row["pair"], preset, row["by"], *numbers, str(row["gpu_peak_mib"] or "")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def written_study(folder: Path, given: Path | None) -> tuple[Path, Path]:
    """A manifest of as many pairs as the largest batch has, and its data root."""
    root, count = data_root(given, "oasis"), EACH * AT_A_TIME[-1]
    if (root / "oasis").is_dir():
        scans = {name: scan for name, scan in read_manifest("oasis").images.items() if scan.split == "training"}
        images = {name: {"image": scan.image} for name, scan in scans.items()}
        found = list(itertools.islice(itertools.combinations(images, 2), count))
    else:
        demo, root = make_pair(mni152(), 0), folder
        images = {name: {"image": f"{name}.nii.gz"} for name in ("fixed", "moving")}
        write_volume(folder / "fixed.nii.gz", demo.fixed)
        write_volume(folder / "moving.nii.gz", demo.moving)
        found = [("fixed", "moving")] * count
    listed = [{"id": f"p{n}", "fixed": fixed, "moving": moving} for n, (fixed, moving) in enumerate(found)]
    study = folder / "study.json"
    study.write_text(json.dumps({"name": "in flight", "images": images, "pairs": listed}))
    return study, root


def flown(study: Path, root: Path, out: Path, at_a_time: int, device: str = "cuda") -> dict[str, Any]:
    """What a batch with so many pairs in flight costs."""
    asked = [f"p{n}" for n in range(max(EACH * at_a_time, LEAST))]
    options = RegisterOptions(preset="default", device=device, escalate=False)
    batch = Batch.of(study, out, options, data=root, only=asked, farm=Farm(at_a_time))
    size = batch.size(batch.plan())
    assert size.workers is not None
    started = time.time()
    summary = batch.run(tell=lambda line: print(line, flush=True))
    ended = sorted(path.stat().st_mtime for path in batch.places.cases.glob(f"*/{RECORD}"))
    counted = len(ended) - size.workers
    return {
        "asked_for": at_a_time,
        "workers": size.workers,
        "threads": size.threads,
        "gpu_mib_each": size.gpu_mib,
        "pairs": len(asked),
        "failed": sum(row["status"] == "failed" for row in summary["cases"]),
        "seconds": round(time.time() - started, 1),
        "first_seconds": round(ended[0] - started, 1),
        "pairs_per_minute": round(60 * counted / (ended[-1] - ended[size.workers - 1]), 1),
    }


def flight_table(rows: list[dict[str, Any]]) -> str:
    heads = ("in flight", "threads each", "GPU MiB each", "pairs", "failed", "all, s", "first, s", "pairs a minute")
    keys = ("workers", "threads", "gpu_mib_each", "pairs", "failed", "seconds", "first_seconds", "pairs_per_minute")
    lines = [heads, ["---:"] * len(heads), *([str(row[key] or "") for key in keys] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def measure_flights(given: Path | None, about: dict[str, Any]) -> None:
    os.environ[backend.VARIABLE] = "gpu"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        study, root = written_study(Path(place), given)
        for at_a_time in AT_A_TIME:
            if at_a_time > limits.processors():
                break
            rows.append(flown(study, root, Path(place) / str(at_a_time), at_a_time))
            print(rows[-1], flush=True)
            (OUT / "flights.json").write_text(json.dumps({"machine": about, "flights": rows}, indent=1) + "\n")
            (OUT / "flights.md").write_text(flight_table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the data root; $STEPWARP_DATA by default")
    parser.add_argument("--in-flight", action="store_true", help="pairs a minute against the number in flight")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device")
        return
    about = machine(limits.processors(), device_name(torch.device("cuda"))) | {
        "packages": versions(("torch", "triton")),
        "cuda": torch.version.cuda,
    }
    OUT.mkdir(parents=True, exist_ok=True)
    if arguments.in_flight:
        measure_flights(arguments.data, about)
        return
    rows: list[dict[str, Any]] = []
    for pair in known_pairs(arguments.data):
        for preset, weights in WAYS:
            for row in rows_of(pair, preset, weights):
                rows.append(row)
                print(row, flush=True)
            (OUT / "results.json").write_text(json.dumps({"machine": about, "pairs": rows}, indent=1) + "\n")
            (OUT / "table.md").write_text(table(rows))


if __name__ == "__main__":
    main()
