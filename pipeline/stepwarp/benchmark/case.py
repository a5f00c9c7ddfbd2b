"""One method on one pair: the process in which it is timed.

Started by the runner with the two images, the method, threads and seed. What is read, imported and said to the thread
pools comes before the clock; what is written comes after it."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from stepwarp import limits, machine
from stepwarp.benchmark import child
from stepwarp.errors import OutputError
from stepwarp.version import __version__


def main(job: dict[str, Any]) -> None:
    """Run a job: {pair, method, fixed, moving, folder, threads, seed}. The folder is made anew, run.json comes last."""
    import torch

    from stepwarp.benchmark import results
    from stepwarp.benchmark.methods import find_method
    from stepwarp.benchmark.places import RUN
    from stepwarp.files import read_image, sha256
    from stepwarp.files.json import write_record

    method = find_method(job["method"])
    for module in getattr(method, "imports", ()):
        importlib.import_module(module)
    torch.set_num_threads(job["threads"])
    folder = Path(job["folder"])
    _refuse_foreign(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = {role: Path(job[role]) for role in ("fixed", "moving")}
    fixed, moving = (read_image(path) for path in paths.values())
    inputs = {role: sha256(path) for role, path in paths.items()}
    device = machine.gpu_name() or "cpu"
    if device != "cpu":
        torch.cuda.init()

    meter = Meter()
    outcome = method(fixed, moving, threads=job["threads"], seed=job["seed"])
    cost = meter.read()

    results.write_result(folder, outcome.transform, outcome.inverse, fixed.grid, moving.grid)
    record = child.without_folders(json.loads(json.dumps(outcome.record, default=str)))
    run = {
        **cost,
        "threads": job["threads"],
        "seed": job["seed"],
        "device": device,
        "record": record,
        "inputs": inputs,
        "packages": machine.versions(record.get("versions", {})),
        "stepwarp": __version__,
        "commit": machine.commit(),
        "cpu": machine.cpu_name(),
        "cores": limits.processors(),
        "date": machine.today(),
        "load": machine.load(),
    }
    write_record(folder / RUN, run)


class Meter:
    """Wall seconds, processor seconds and memory from its making to `read`; programs that were called included."""

    def __init__(self) -> None:
        self._cpu, self._started = machine.cpu_seconds(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """{seconds, cpu_seconds, peak_mib}, and peak_gpu_mib where torch used a GPU.

        peak_mib is of the whole process, with images and libraries: the most that it, or one program that it called,
        held at a time."""
        seconds, cpu = time.perf_counter() - self._started, machine.cpu_seconds() - self._cpu
        torch = sys.modules.get("torch")
        gpu = torch.cuda.max_memory_reserved() / 2**20 if torch and torch.cuda.is_initialized() else None
        peak = max(machine.peak_mib(), machine.childrens_peak_mib())
        cost = {"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3), "peak_mib": peak}
        return cost if gpu is None else cost | {"peak_gpu_mib": round(gpu)}


def _refuse_foreign(folder: Path) -> None:
    """OutputError for a run's folder that holds what no run wrote: it would go with the old result."""
    from stepwarp.benchmark.places import RUN
    from stepwarp.layout import AFFINE, INVERSE_WARP, WARP

    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in (AFFINE, WARP, INVERSE_WARP, RUN) and not path.name.startswith(".partial-"):
            raise OutputError(f"{path}: is no part of the result that is to be replaced. Move it away.")


if __name__ == "__main__":
    child.report_errors(main)
