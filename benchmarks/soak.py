"""Two hundred registrations in one process, and two hundred through a batch: does anything pile up?

python benchmarks/soak.py [--count 200] [--out benchmarks/results/soak]

Small pairs (brains of OASIS at 8 mm), preset fast, one thread. After each registration: memory, open files and threads
of the process that registers, temporary files, and what the results take on the disk per case. Writes soak.json and
soak.png; a row of the table that is not flat is said."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import stepwarp  # before torch
from stepwarp.batch.farm import Farm
from stepwarp.batch.study import Batch
from stepwarp.files import read_image, write_text, write_volume
from stepwarp.geometry import Image
from stepwarp.kernels.sampling import average_pool
from stepwarp.machine import machine
from stepwarp.options import RegisterOptions

import numpy as np  # isort: skip
import psutil  # isort: skip

SCANS = ("1000", "1001", "1002", "1004", "1007", "1008", "1009", "1010", "1011", "1012", "1013", "1015", "1017", "1018")
MM = 8
#: Caches fill while the first ones run.
WARM_UP = 20
#: What may be gained per hundred registrations and still be called flat.
FLAT = {"memory_mib": 10, "open_files": 0.5, "threads": 0.5, "temporary_files": 0.5, "disk_mib_per_case": 0.05}
TITLES = {
    "memory_mib": "memory, MiB",
    "open_files": "open files",
    "threads": "threads",
    "temporary_files": "temporary files",
    "disk_mib_per_case": "disk per case, MiB",
    "seconds": "seconds per case",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "soak")
    asked = parser.parse_args()
    data = Path(os.environ.get("STEPWARP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    folder = Path(tempfile.mkdtemp(prefix="stepwarp-soak-"))
    os.environ["TMPDIR"] = str(folder / "tmp")
    (folder / "tmp").mkdir()
    tempfile.tempdir = None
    try:
        pairs = write_scans(data / "oasis", folder, asked.count)
        rows = {"one process": one_process(pairs, folder), "batch": batch(folder, asked.count)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    drift = {name: drifts(found) for name, found in rows.items()}
    content = {
        "count": asked.count,
        "voxels_mm": MM,
        "preset": "fast",
        "warm_up": WARM_UP,
        "drift_per_hundred": drift,
        "flat": {name: {key: abs(found[key]) <= limit for key, limit in FLAT.items()} for name, found in drift.items()},
        "machine": machine(1),
        "samples": rows,
    }
    write_text(asked.out / "soak.json", json.dumps(content) + "\n", overwrite=True)
    draw(rows, asked.out / "soak.png")
    print(json.dumps({key: content[key] for key in ("drift_per_hundred", "flat")}, indent=1))


def write_scans(source: Path, folder: Path, count: int) -> list[tuple[str, str]]:
    """Small scans and their manifest; the pairs."""
    images = {}
    for name in SCANS:
        image = read_image(source / f"{name}_SS.nii.gz")
        data = average_pool(image.data[None, None].float(), (MM,) * 3)[0, 0]
        write_volume(folder / f"{name}.nii.gz", Image(data, image.grid.coarser(MM), name))
        images[name] = {"image": f"{name}.nii.gz"}
    ordered = [(a, b) for a in SCANS for b in SCANS if a != b]
    pairs = [ordered[number % len(ordered)] for number in range(count)]
    listed = [{"id": f"{n:04d}_{a}_{b}", "fixed": a, "moving": b} for n, (a, b) in enumerate(pairs)]
    write_text(folder / "soak.json", json.dumps({"name": "soak", "images": images, "pairs": listed}))
    return pairs


def one_process(pairs: list[tuple[str, str]], folder: Path) -> list[dict]:
    rows, out = [], folder / "one"
    for number, (fixed, moving) in enumerate(pairs):
        started = time.monotonic()
        found = stepwarp.register(
            folder / f"{fixed}.nii.gz", folder / f"{moving}.nii.gz", preset="fast", threads=1, device="cpu"
        )
        found.save(out / f"{number:04d}")
        rows.append(sample(psutil.Process(), folder, out, number + 1, time.monotonic() - started))
        print(f"one process {number + 1}/{len(pairs)}: {rows[-1]}", flush=True)
    shutil.rmtree(out)
    return rows


def batch(folder: Path, count: int) -> list[dict]:
    rows, out, last = [], folder / "batch", time.monotonic()

    def tell(line: str) -> None:
        nonlocal last
        if line.startswith("["):
            now = time.monotonic()
            workers = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
            rows.append(sample(workers[0], folder, out / "cases", len(rows) + 1, now - last))
            last = now
            print(f"batch {line}: {rows[-1]}", flush=True)

    options = RegisterOptions(preset="fast", device="cpu")
    study = Batch.of(folder / "soak.json", out, options, data=folder, farm=Farm(workers=1, threads=1))
    summary = study.run(tell=tell)
    assert summary["counts"]["failed"] == 0
    assert len(summary["cases"]) == count
    return rows


def sample(process: psutil.Process, folder: Path, out: Path, cases: int, seconds: float) -> dict:
    """What there is after a case; the batch's worker is on its next one already."""
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and "/." not in str(path))
    return {
        "memory_mib": round(process.memory_info().rss / 2**20, 1),
        "open_files": process.num_fds(),
        "threads": process.num_threads(),
        "temporary_files": sum(1 for _ in (folder / "tmp").rglob("*")),
        "disk_mib_per_case": round(size / 2**20 / cases, 4),
        "seconds": round(seconds, 2),
    }


def drifts(rows: list[dict]) -> dict[str, float]:
    """The slope of each row after the warm-up, per hundred registrations; the median of the slopes between points."""
    from scipy.stats import theilslopes

    found = {}
    for key in FLAT:
        values = np.array([row[key] for row in rows[min(WARM_UP, len(rows) // 2) :]])
        found[key] = round(100 * float(theilslopes(values)[0]), 3)
    return found


def draw(rows: dict[str, list[dict]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(rows), len(TITLES), figsize=(17, 5), squeeze=False, constrained_layout=True)
    for line, (name, found) in zip(axes, rows.items(), strict=True):
        for axis, (key, title) in zip(line, TITLES.items(), strict=True):
            values = [row[key] for row in found]
            axis.plot(range(1, len(found) + 1), values, linewidth=1)
            axis.axvspan(0, WARM_UP, color="0.92")
            axis.set_ylim(0, 1.2 * max(values) or 1)
            axis.set_title(f"{name}: {title}", fontsize=9)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
