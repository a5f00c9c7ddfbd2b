"""Where numbers were taken: the machine, what else it did, and the versions of everything. No host names, no paths."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import stepwarp
from stepwarp import limits

#: Whose versions may change a result or its seconds.
_PACKAGES = (
    *("torch", "numba", "numpy", "scipy", "nibabel", "SimpleITK", "monai", "isal"),
    *("antspyx", "fireants", "convexAdam", "itk-elastix", "niftyreg"),
)


def environment(threads: int, device: str) -> dict[str, Any]:
    """`machine` with its load, the operating system and the versions of packages that are installed."""
    return {
        **machine(threads, device),
        "load": load(),
        "os": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "machine": platform.machine(),
        "memory_mib": _memory_mib(),
        "packages": installed(_PACKAGES),
    }


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Processor, cores that this process may use, threads, device, Python, stepwarp, commit and date."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": threads,
        "device": device,
        "python": platform.python_version(),
        "stepwarp": stepwarp.__version__,
        "commit": commit(),
        "date": today(),
    }


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def cores() -> int:
    """How many this process may use."""
    return limits.processors()


def load() -> float | None:
    """Processes that wanted to run, on average over the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def today() -> str:
    """The date, year first."""
    return time.strftime("%Y-%m-%d")


def device_name(use_gpu: bool) -> str:
    """The first GPU that torch sees, by its name; "cpu" without one, or if none shall be used."""
    import torch

    return torch.cuda.get_device_name(0) if use_gpu and torch.cuda.is_available() else "cpu"


def cpu_name() -> str:
    """The processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str | None:
    """The commit of a checkout of stepwarp, with -dirty where files differ from it; None for an installed package."""
    package = Path(stepwarp.__file__)
    # Only a repository that knows this very file: an environment may lie inside another project's checkout.
    known = _git(package.parent, "ls-files", "--error-unmatch", package.name)
    return known and _git(package.parent, "describe", "--always", "--dirty", "--exclude", "*")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _memory_mib() -> int | None:
    memory = limits.memory()
    return None if memory is None else memory // 2**20
