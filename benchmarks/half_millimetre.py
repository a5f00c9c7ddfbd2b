"""What a pair of 0.5 mm costs, whether it is as good as the same pair of 1 mm, and whether memory was planned honestly.

    python benchmarks/half_millimetre.py [--data FOLDER]

A training pair of OASIS, cut to what it shows, as it is and resampled to half its voxels' length; `fast` and `default`
as whole commands, each in a process of its own, and `default` once more with too little memory for its finest level.
Dice is of the labels of 1 mm, carried onto the fixed grid of 1 mm through the files that were written. planned is what
`memory` in registration.json says, measured the most that the process held. Writes
results/half_millimetre/{results.json, table.md}; about 5 minutes on two quiet cores."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from stepwarp.data.manifest import Pair, Scan, data_root, pairs, read_manifest
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_image, read_labels, read_transform, write_volume
from stepwarp.geometry import Affine, Composition, Grid
from stepwarp.layout import AFFINE, RECORD, WARP
from stepwarp.machine import cpu_seconds, load, machine

OUT = Path(__file__).parent / "results" / "half_millimetre"
PAIR = "1002_1007"
THREADS = 2
#: Voxels of nothing that are kept around what a scan shows.
_MARGIN = 4
#: Voxels in mm, preset, and what --max-memory says.
CASES = (
    (1.0, "fast", None),
    (1.0, "default", None),
    (0.5, "fast", None),
    (0.5, "default", None),
    (1.0, "default", "1600M"),
)
_STEPWARP = (sys.executable, "-P", "-c", "from stepwarp.cli import main; main()")
_HEAD = "| voxels, mm | preset | memory allowed | seconds | processor seconds | planned, MiB | measured, MiB | Dice |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    manifest = read_manifest("oasis")
    pair = next(each for each in pairs(manifest, data_root(given.data, "oasis")) if each.id == PAIR)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(pair, folder)
        run(folder, 1.0, "fast", None)  # kernels are compiled once
        rows = [case(pair, folder, manifest.ignore_labels, *each) for each in CASES]
    result = {"pair": PAIR, "machine": machine(THREADS), "cases": rows}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (OUT / "table.md").write_text(table(rows))
    print(table(rows))


def make(pair: Pair, folder: Path) -> None:
    """Both scans of 1 mm and of half of it, and the grid of 1 mm on which labels are compared."""
    for role, scan in (("fixed", pair.fixed), ("moving", pair.moving)):
        image = read_image(scan.image)
        cut = image.warp(Affine.identity(3), _around_shown(image.data.numpy() > 0, image.grid))
        write_volume(_scan(folder, role, 1.0), cut)
        write_volume(_scan(folder, role, 0.5), cut.warp(Affine.identity(3), _halved(cut.grid)))


def case(pair: Pair, folder: Path, ignored: Any, mm: float, preset: str, allowed: str | None) -> dict[str, Any]:
    """What one command cost, and how well it carries the labels."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    out = run(folder, mm, preset, allowed)
    cost = {"seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(cpu_seconds() - cpu, 1)}
    record = json.loads((out / RECORD).read_text())
    row = {
        "mm": mm,
        "preset": preset,
        "max_memory": allowed,
        **cost,
        "planned_mib": record["memory"]["planned_mib"],
        "peak_mib": max(stage["peak_mib"] for stage in record["stages"]),
        "dice": round(carried(pair.fixed, pair.moving, out, ignored), 4),
        "shape": record["inputs"]["fixed"]["shape"],
        "left_out": record["memory"]["left_out"],
        "load": load(),
    }
    print(json.dumps(row), flush=True)
    return row


def run(folder: Path, mm: float, preset: str, allowed: str | None) -> Path:
    """The folder of one `stepwarp register`."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "out"
    words = ["register", "--fixed", str(_scan(folder, "fixed", mm)), "--moving", str(_scan(folder, "moving", mm))]
    words += ["--out", str(out), "--preset", preset, "--threads", str(THREADS), "--device", "cpu", "--json"]
    words += [] if allowed is None else ["--max-memory", allowed]
    done = subprocess.run([*_STEPWARP, *words], stdout=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SystemExit(f"stepwarp {' '.join(words)}: exit code {done.returncode}")
    return out


def carried(fixed: Scan, moving: Scan, out: Path, ignored: Any) -> float:
    """The mean Dice of the labels of 1 mm on the fixed scan's own grid."""
    assert fixed.labels is not None
    assert moving.labels is not None
    target = read_labels(fixed.labels)
    through = Composition.of(read_transform(out / AFFINE), read_transform(out / WARP))
    moved = read_labels(moving.labels).warp(through, target.grid)
    return mean_dice(dice(target, moved, ignored))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [_HEAD, "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        allowed = row["max_memory"] or "what is free"
        numbers = (row["seconds"], row["cpu_seconds"], row["planned_mib"], row["peak_mib"], f"{row['dice']:.3f}")
        lines.append(f"| {row['mm']:g} | {row['preset']} | {allowed} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines) + "\n"


def _scan(folder: Path, role: str, mm: float) -> Path:
    return folder / f"{role}_{mm:g}mm.nii.gz"


def _around_shown(shown: np.ndarray, grid: Grid) -> Grid:
    at = np.argwhere(shown)
    low = np.maximum(at.min(0) - _MARGIN, 0)
    high = np.minimum(at.max(0) + 1 + _MARGIN, grid.shape)
    affine = grid.affine.copy()
    affine[:3, 3] = grid.world(low.astype(float))
    return Grid(tuple(high - low), affine)


def _halved(grid: Grid) -> Grid:
    """Of whose voxels eight are one of this grid."""
    affine = grid.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = grid.world(np.full(3, -0.25))
    return Grid(tuple(2 * n for n in grid.shape), affine)


if __name__ == "__main__":
    main()
