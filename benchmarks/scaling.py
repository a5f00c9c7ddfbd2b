"""What a registration costs, and how that grows: with voxels, threads, empty space around the subject, and pairs in
flight; beside ANTs.

    python benchmarks/scaling.py [--finest 1] [--data FOLDER]

A training pair of OASIS, pooled to coarser voxels and with nothing added around it; every case in a process of its own,
as `stepwarp benchmark` times it: both images in memory before, the transform in memory after. Pairs in flight are whole
commands: `stepwarp batch` with its pages, self-checks and files, and for ANTs as many processes at a time, which read
the images and write the transform. Cases that are done are kept, so it can be interrupted; remove cases.jsonl to begin
afresh. Writes results/scaling/{cases.jsonl, results.json, table.md, curve.png}; about 25 minutes on two quiet cores.

--finest 4 tries all of it on voxels of 4 mm; nothing is kept of that."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch.nn.functional as F

from stepwarp import limits
from stepwarp.baselines import BASELINES
from stepwarp.benchmark import child
from stepwarp.data.manifest import Pair, Scan, data_root, pairs, read_manifest
from stepwarp.files import read_image, write_volume
from stepwarp.geometry import Grid, Image
from stepwarp.machine import cpu_seconds, load, machine

OUT = Path(__file__).parent / "results" / "scaling"
#: Of voxels, mm; the scans have the last.
SIZES = (4, 2, 1)
#: Of nothing, on each side, mm.
EMPTY = (0, 40, 80)
AT_A_TIME = (1, 2)
OWN = {"stepwarp-fast": "fast", "stepwarp-default": "default"}
ANTS = "ants-syn-quick"
#: ANTs takes so long that two pairs must do.
_PAIRS = {ANTS: 2}
_PAIRS_OF_OURS = 4
_FORMS = {"seconds": ".1f", "cpu_seconds": ".1f", "peak_mib": ".0f"}
_SAMPLE_SECONDS = 0.2
_STEPWARP = (sys.executable, "-P", "-c", "from stepwarp.cli import main; main()")


@dataclass(frozen=True)
class Single:
    """One pair. around: the image that has `empty` mm of nothing on all sides, fixed, moving or both."""

    method: str
    mm: int
    threads: int
    empty: int = 0
    around: str = "both"


@dataclass(frozen=True)
class Flight:
    """Several pairs, so many of them at a time, which share all threads."""

    method: str
    mm: int
    at_a_time: int
    pairs: int


Case = Single | Flight
#: What is varied, and the case.
Line = Sequence[tuple[float, Case]]


class Section(NamedTuple):
    """A table and a panel. height: of a case in the panel, by what it cost."""

    title: str
    horizontal: str
    vertical: str
    lines: Mapping[str, Line]
    height: Callable[[dict[str, Any]], float]


def sections(methods: list[str], finest: int) -> list[Section]:
    """Everything that is measured; a case may be in several."""
    cores = limits.processors()
    counts = [2**n for n in range(int(math.log2(cores)) + 1)]
    sizes = [mm for mm in SIZES if mm >= finest]
    own = [method for method in methods if method in OWN]

    def seconds(row: dict[str, Any]) -> float:
        return row["seconds"]

    empty: dict[str, Line] = {
        f"{method}, around {side}": [(mm, Single(method, finest, cores, mm, side if mm else "both")) for mm in EMPTY]
        for method in own
        for side in ("fixed", "moving", "both")
    }
    # Around both 80 mm of nothing are seven times the voxels: ANTs is spared them.
    empty |= {
        f"{method}, around both": [(mm, Single(method, finest, cores, mm)) for mm in EMPTY[:2]]
        for method in methods
        if method not in own
    }
    return [
        Section(
            "Voxels",
            "length of a voxel, mm",
            "seconds",
            {method: [(mm, Single(method, mm, cores)) for mm in sizes] for method in methods},
            seconds,
        ),
        Section(
            "Threads",
            "threads",
            "seconds",
            {method: [(n, Single(method, finest, n)) for n in counts] for method in methods},
            seconds,
        ),
        Section("Empty space", "mm of nothing on every side", "seconds", empty, seconds),
        Section(
            "Pairs in flight",
            "pairs at a time",
            "pairs per hour",
            {
                method: [(n, Flight(method, finest, n, _PAIRS.get(method, _PAIRS_OF_OURS))) for n in AT_A_TIME]
                for method in methods
            },
            lambda row: row["pairs_per_hour"],
        ),
    ]


class Bench:
    """Runs cases on pairs of which it makes what they need in a folder."""

    def __init__(self, chosen: list[Pair], folder: Path) -> None:
        self.pairs, self.folder = chosen, folder

    def run(self, case: Case) -> dict[str, Any]:
        """What the case cost."""
        cost = self._single(case) if isinstance(case, Single) else self._flight(case)
        return {**cost, "load": load()}

    def warm_up(self, methods: list[str]) -> None:
        """Kernels are compiled once, and not again."""
        job = {"methods": methods, "threads": limits.processors()}
        self._start("stepwarp.benchmark.warm_up", job, limits.processors())

    def _single(self, case: Single) -> dict[str, Any]:
        empty = {side: case.empty if case.around in (side, "both") else 0 for side in ("fixed", "moving")}
        pair = self.pairs[0]
        fixed = self._scan(pair.fixed, case.mm, empty["fixed"])
        moving = self._scan(pair.moving, case.mm, empty["moving"])
        run = self._register(case.method, fixed, moving, case.threads)
        return {key: run[key] for key in ("seconds", "cpu_seconds", "peak_mib")} | {
            "megavoxels": round(math.prod(read_image(fixed).grid.shape) / 1e6, 3)
        }

    def _flight(self, case: Flight) -> dict[str, Any]:
        threads = max(1, limits.processors() // case.at_a_time)
        scans = [
            (self._scan(pair.fixed, case.mm, 0), self._scan(pair.moving, case.mm, 0))
            for pair in self.pairs[: case.pairs]
        ]
        with _metered() as cost:
            if case.method in OWN:
                self._batch(OWN[case.method], scans, case.at_a_time, threads)
            else:
                with ThreadPoolExecutor(case.at_a_time) as pool:
                    list(pool.map(lambda pair: self._register(case.method, pair[0], pair[1], threads), scans))
        return cost | {"pairs_per_hour": round(3600 * case.pairs / cost["seconds"], 1)}

    def _register(self, method: str, fixed: Path, moving: Path, threads: int) -> dict[str, Any]:
        """The record of one registration in a process of its own."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            out = Path(place) / "run"
            paths = {"fixed": str(fixed), "moving": str(moving), "folder": str(out)}
            self._start("stepwarp.benchmark.case", {"method": method, "threads": threads, "seed": 0, **paths}, threads)
            return json.loads((out / "run.json").read_text())

    def _start(self, module: str, job: dict[str, Any], threads: int) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            child.run(module, job, Path(place) / "log", threads=threads, use_gpu=False, tick=lambda: None)

    def _batch(self, preset: str, scans: list[tuple[Path, Path]], workers: int, threads: int) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            study = Path(place) / "study.json"
            names = sorted({path.name for pair in scans for path in pair})
            listed = [
                {"id": str(n), "fixed": fixed.name, "moving": moving.name} for n, (fixed, moving) in enumerate(scans)
            ]
            images = {name: {"image": name} for name in names}
            study.write_text(json.dumps({"name": "scaling", "images": images, "pairs": listed}))
            words = ["batch", str(study), "--data", str(self.folder), "--out", str(Path(place) / "out")]
            words += ["--preset", preset, "--workers", str(workers), "--threads", str(threads), "--device", "cpu"]
            done = subprocess.run([*_STEPWARP, *words, "--json"], stdout=subprocess.DEVNULL)
            if done.returncode != 0:
                raise SystemExit(f"stepwarp {' '.join(words)}: exit code {done.returncode}")

    def _scan(self, scan: Scan, mm: int, empty: int) -> Path:
        """The scan with voxels of `mm` and so much of nothing on all sides, made once."""
        path = self.folder / f"{scan.id}_{mm}mm_{empty}.nii.gz"
        if not path.exists():
            write_volume(path, _surrounded(read_image(scan.image).coarser(mm), empty))
        return path


@contextmanager
def _metered() -> Iterator[dict[str, float]]:
    """Seconds, processor seconds and the most memory of all processes that are started within, filled in at the end."""
    cost: dict[str, float] = {}
    held, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            held.append(_held_by_children())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), cpu_seconds()
    try:
        yield cost
    finally:
        cost |= {"seconds": round(time.perf_counter() - wall, 2), "cpu_seconds": round(cpu_seconds() - cpu, 2)}
        done.set()
        watcher.join()
    cost["peak_mib"] = round(max(held))


def _held_by_children() -> float:
    """MiB; what several of them share counts for each."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def _surrounded(image: Image, mm: int) -> Image:
    """With so many mm of zeros on all sides, to a voxel."""
    voxels = [round(mm / spacing) for spacing in image.grid.spacing]
    data = F.pad(image.data.float(), [n for count in reversed(voxels) for n in (count, count)])
    affine = image.grid.affine.copy()
    affine[:3, 3] = image.grid.world(-np.array(voxels, float))
    return Image(data, Grid(tuple(data.shape), affine), image.name)


def table(found: list[Section], costs: dict[Case, dict[str, Any]]) -> str:
    """A table for each section."""
    parts = []
    for section in found:
        flights = section.vertical != "seconds"
        head = ["", section.horizontal, *([section.vertical] if flights else []), "wall s", "processor s", "peak MiB"]
        rows = [
            [
                name,
                f"{value:g}",
                *([f"{section.height(costs[case]):.0f}"] if flights else []),
                *(f"{costs[case][key]:{form}}" for key, form in _FORMS.items()),
            ]
            for name, line in section.lines.items()
            for value, case in line
        ]
        cells = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        parts.append(f"### {section.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n")
    return "\n".join(parts)


def draw(found: list[Section], costs: dict[Case, dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((13, 7.5), layout="constrained")
    for axes, section in zip(figure.subplots(2, 2).flat, found, strict=True):
        for name, line in section.lines.items():
            places = [(value, section.height(costs[case])) for value, case in line]
            axes.plot(*zip(*places, strict=True), "o-", label=name)
        axes.set(title=section.title, xlabel=section.horizontal, ylabel=section.vertical)
        axes.set_xticks(sorted({value for line in section.lines.values() for value, _ in line}))
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def read_costs(path: Path) -> dict[Case, dict[str, Any]]:
    """What is done already, by its case."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(Flight if "at_a_time" in row["case"] else Single)(**row["case"]): row["cost"] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finest", type=int, choices=SIZES, default=SIZES[-1], help="mm of the finest voxels")
    parser.add_argument("--data", type=Path, help="where the manifest's paths begin; $STEPWARP_DATA by default")
    arguments = parser.parse_args()
    chosen = pairs(read_manifest("oasis"), data_root(arguments.data, "oasis"), "training", verify=False)
    absent = BASELINES[ANTS].missing()
    methods = [*OWN, *([] if absent else [ANTS])]
    found = sections(methods, arguments.finest)
    cases = list(dict.fromkeys(case for section in found for line in section.lines.values() for _, case in line))
    with tempfile.TemporaryDirectory(prefix="stepwarp-scaling-") as folder:
        out = OUT if arguments.finest == SIZES[-1] else Path(folder) / "results"
        out.mkdir(parents=True, exist_ok=True)
        costs = read_costs(out / "cases.jsonl")
        bench = Bench(chosen, Path(folder))
        bench.warm_up(list(OWN))
        for number, case in enumerate(cases, 1):
            if case in costs:
                continue
            costs[case] = bench.run(case)
            with (out / "cases.jsonl").open("a") as file:
                file.write(json.dumps({"case": asdict(case), "cost": costs[case]}) + "\n")
            print(f"[{number}/{len(cases)}] {case}: {costs[case]}", flush=True)
        result = {
            "machine": machine(limits.processors()),
            "absent": {ANTS: absent} if absent else {},
            "cases": [{"case": asdict(case), "cost": costs[case]} for case in cases],
        }
        (out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
        (out / "table.md").write_text(table(found, costs))
        draw(found, costs, out / "curve.png")
        print((out / "table.md").read_text())


if __name__ == "__main__":
    main()
