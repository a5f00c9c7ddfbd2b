"""One method on one pair: the process in which it is timed.

Started by the runner with the two images, the method, threads and seed. What is read, imported and said to the thread
pools comes before the clock; what is written comes after it."""

from __future__ import annotations

import importlib
import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import stepwarp
from stepwarp.errors import OutputError
from stepwarp.workflow.benchmark import child

#: What methods import when they are called, by the beginning of their name: importing is not registering.
_IMPORTS = {
    "stepwarp-": ("stepwarp.workflow.register",),
    "ants-": ("ants",),
    "simpleitk-": ("SimpleITK",),
    "fireants": ("fireants",),
    "convexadam": ("convexAdam",),
}


def main(job: dict[str, Any]) -> None:
    """Run a job: {pair, method, fixed, moving, folder, threads, seed}. The folder is made anew, run.json comes last."""
    import torch

    from stepwarp.files import read_image, sha256
    from stepwarp.workflow.benchmark import environment, results
    from stepwarp.workflow.benchmark.places import RUN, write_json
    from stepwarp.workflow.methods import find_method

    method = find_method(job["method"])
    _import_for(method.name)
    torch.set_num_threads(job["threads"])
    folder = Path(job["folder"])
    _refuse_foreign(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = {role: Path(job[role]) for role in ("fixed", "moving")}
    fixed, moving = (read_image(path) for path in paths.values())
    inputs = {role: sha256(path) for role, path in paths.items()}
    device = environment.device_name(use_gpu=True)
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
        "packages": environment.installed(record.get("versions", {})),
        "stepwarp": stepwarp.__version__,
        "commit": environment.commit(),
        "cpu": environment.cpu_name(),
        "cores": environment.cores(),
        "date": environment.today(),
        "load": environment.load(),
    }
    write_json(folder / RUN, run)


class Meter:
    """Wall seconds, processor seconds and memory from its making to `read`; programs that were called included."""

    def __init__(self) -> None:
        self._cpu, self._started = _cpu_seconds(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """{seconds, cpu_seconds, peak_mib}, and peak_gpu_mib where torch used a GPU.

        peak_mib is of the whole process, with images and libraries: the most that it, or one program that it called,
        held at a time."""
        seconds, cpu = time.perf_counter() - self._started, _cpu_seconds() - self._cpu
        torch = sys.modules.get("torch")
        gpu = torch.cuda.max_memory_reserved() / 2**20 if torch and torch.cuda.is_initialized() else None
        cost = {"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3), "peak_mib": round(_peak_mib())}
        return cost if gpu is None else cost | {"peak_gpu_mib": round(gpu)}


def _refuse_foreign(folder: Path) -> None:
    """OutputError for a run's folder that holds what no run wrote: it would go with the old result."""
    from stepwarp.workflow.benchmark.places import RUN
    from stepwarp.workflow.outputs import AFFINE, INVERSE_WARP, WARP

    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in (AFFINE, WARP, INVERSE_WARP, RUN) and not path.name.startswith(".partial-"):
            raise OutputError(f"{path}: is no part of the result that is to be replaced. Move it away.")


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _peak_mib() -> float:
    children = _maximum_mib(resource.RUSAGE_CHILDREN)
    try:
        # ru_maxrss of a process starts with what its parent had; this does not.
        lines = Path("/proc/self/status").read_text().splitlines()
        own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        own = _maximum_mib(resource.RUSAGE_SELF)
    return max(own, children)


def _maximum_mib(who: int) -> float:
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(who).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _import_for(method: str) -> None:
    for beginning, modules in _IMPORTS.items():
        if method.startswith(beginning):
            for module in modules:
                importlib.import_module(module)


if __name__ == "__main__":
    child.report_errors(main)
