"""This machine: what is installed, what is free, and whether a small registration comes out right on it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepwarp import limits
from stepwarp.config import Preset
from stepwarp.doctor.findings import DoctorReport, Finding
from stepwarp.errors import StepwarpError
from stepwarp.geometry import Affine, Grid, Image
from stepwarp.kernels.cpu import kernel_files
from stepwarp.kernels.smoothing import gaussian
from stepwarp.machine import cpu_name, environment, gpu_name, versions
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.workflow.register import register
from stepwarp.workflow.registration import Registration

#: Below this there is no room for a registration of two brains at 1 mm, or for what it writes.
_LEAST_MEMORY, _LEAST_DISK = 2 * 2**30, 2**30
_PACKAGES = ("h5py", "pydantic", "safetensors", "lightning-fabric", "rich", "typer", "matplotlib")
_HERE = "this machine"

#: The self-test: two blobs in a cube, one turned, scaled and moved, found again within so many mm on average.
_VOXELS, _TURN, _SCALE, _SHIFT = 40, 0.15, 1.05, (3.0, -2.0, 1.0)
_ACCURATE_MM = 0.5
_RECIPE = Preset.model_validate(
    {
        "affine": {"across": 8, "refine_across": (16,), "candidates": 2},
        "deformable": {"levels": [{"across": 8, "iterations": 5}, {"across": 16, "iterations": 5}]},
    }
)


def examine_machine(progress: Progress = silent) -> DoctorReport:
    """Versions, processor, memory, disk and GPU, and the self-test, as facts with findings."""
    progress(ProgressReport("machine", 0, 2))
    gpu = _gpu()
    facts: dict[str, Any] = environment(limits.processors(), gpu["name"] if gpu else cpu_name())
    facts["packages"] |= versions(_PACKAGES)
    memory = limits.free_memory()
    facts |= {"memory_free_mib": memory >> 20, "gpu": gpu}
    places = {"working directory": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    facts["disk_free_mib"] = {name: shutil.disk_usage(place).free >> 20 for name, place in places.items()}
    facts["kernels"] = _kernels()
    progress(ProgressReport("machine", 1, 2))
    facts["self_test"] = _self_test()
    progress(ProgressReport("machine", 2, 2))
    return DoctorReport(together=tuple(_findings(facts)), machine=facts)


def _findings(facts: dict[str, Any]) -> Iterator[Finding]:
    test = facts["self_test"]
    if test["error"] is not None:
        yield Finding(
            "error", "self-test", _HERE, f"A small registration fails: {test['error']}.", "Install stepwarp again."
        )
    elif test["mean_error_mm"] > _ACCURATE_MM:
        yield Finding(
            "error",
            "self-test",
            _HERE,
            f"A small registration is {test['mean_error_mm']:.2f} mm off; it should be below {_ACCURATE_MM} mm.",
            "Install torch and numba in the versions that stepwarp asks for, and tell us about this machine.",
        )
    memory = facts["memory_free_mib"]
    if memory << 20 < _LEAST_MEMORY:
        text = f"Only {memory} MiB of memory are free."
        yield Finding("warning", "memory", _HERE, text, "End other programs; two brains at 1 mm need about 1.5 GiB.")
    for place, free in facts["disk_free_mib"].items():
        if free << 20 < _LEAST_DISK:
            text = f"Only {free} MiB are free on the disk of the {place}."
            yield Finding("warning", "disk", _HERE, text, "Free some; a registration writes about 100 MiB.")
    if facts["kernels"]["folder"] is None:
        text = "There is no folder for the compiled kernels, so every run compiles them, for a minute."
        yield Finding("warning", "kernels", _HERE, text, "Set NUMBA_CACHE_DIR to a folder that you may write to.")
    if facts["gpu"] is None and Path("/proc/driver/nvidia/version").exists():
        text = "There is an NVIDIA driver, but torch sees no GPU, so everything runs on the processor."
        yield Finding("warning", "device", _HERE, text, "Install a build of torch for CUDA that fits the driver.")


def _gpu() -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return {"name": gpu_name(), "memory_mib": total >> 20, "memory_free_mib": free >> 20}


def _kernels() -> dict[str, Any]:
    """Where the compiled kernels are or will be, and whether they are there already."""
    folder, filled = kernel_files.where()
    return {"folder": None if folder is None else str(folder), "compiled": filled}


def _self_test() -> dict[str, Any]:
    """Register a pair of which the answer is known, write the files, and have SimpleITK read them back."""
    started = time.perf_counter()
    fixed, moving, truth = _pair()
    try:
        found = register(fixed, moving, preset=_RECIPE)
        with tempfile.TemporaryDirectory() as folder:
            found.save(Path(folder) / "result")
    except (StepwarpError, RuntimeError, OSError, ImportError) as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return {"seconds": round(time.perf_counter() - started, 2), "error": message, "mean_error_mm": None}
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "error": None,
        "mean_error_mm": round(_error(found, fixed, truth), 4),
    }


def _pair() -> tuple[Image, Image, Affine]:
    """An image with structure everywhere inside, and what a known affine makes of it."""
    grid = Grid.isotropic((_VOXELS,) * 3, 2.0)
    noise = torch.randn((1, 1, *grid.shape), generator=torch.Generator().manual_seed(0))
    texture = gaussian(noise, 2.0)[0, 0]
    index = grid.indices()[0] - (_VOXELS - 1) / 2
    inside = (index.square() / torch.tensor([15.0, 12.0, 10.0])[:, None, None, None].square()).sum(0) < 1
    moving = Image(torch.where(inside, 1 + texture / texture.std() * 0.3, 0.0), grid, "the self-test's moving image")
    linear = np.array([[np.cos(_TURN), -np.sin(_TURN), 0], [np.sin(_TURN), np.cos(_TURN), 0], [0, 0, 1]]) * _SCALE
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = grid.centre - linear @ grid.centre + _SHIFT
    truth = Affine(matrix)
    fixed = moving.warp(truth, grid)
    return Image(fixed.data, grid, "the self-test's fixed image"), moving, truth


def _error(found: Registration, fixed: Image, truth: Affine) -> float:
    inside = (fixed.data > 0.5).nonzero()[::10].numpy()
    points = fixed.grid.world(inside)
    return float(np.linalg.norm(found.transform(points) - truth(points), axis=1).mean())
