"""Where numbers were taken: the machine, what else it did, what a process used, and the versions of everything. No host
names, no paths."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from stepwarp import limits
from stepwarp.version import __version__

if TYPE_CHECKING:
    import torch

try:
    import resource
except ImportError:  # Windows, where psutil knows as much
    resource = None  # type: ignore[assignment]

_MIB = 2**20
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
        "memory_mib": limits.memory() // _MIB,
        "packages": versions(_PACKAGES),
    }


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Processor, cores that this process may use, threads, device, Python, stepwarp, commit and date."""
    return {
        "cpu": cpu_name(),
        "cores": limits.processors(),
        "threads": threads,
        "device": device,
        "python": platform.python_version(),
        "stepwarp": __version__,
        "commit": commit(),
        "date": today(),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those distributions that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def cpu_name() -> str:
    """The processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_name(device: torch.device) -> str:
    """What a device is called, for a record."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.processor() or platform.machine()})"


def gpu_name() -> str | None:
    """The first GPU that torch sees."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def is_environment(path: Path) -> bool:
    """Whether a file holds an `environment`, as a benchmark and a batch leave it in their folders."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"stepwarp", "cpu", "threads"} <= content.keys()


def load() -> float | None:
    """Processes that wanted to run, on average over the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def today() -> str:
    """The date, year first."""
    return time.strftime("%Y-%m-%d")


def commit() -> str | None:
    """The commit of a checkout of stepwarp, with -dirty where files differ from it; None for an installed package."""
    here = Path(__file__)
    # Only a repository that knows this very file: an environment may lie inside another project's checkout.
    known = _git(here.parent, "ls-files", "--error-unmatch", here.name)
    return known and _git(here.parent, "describe", "--always", "--dirty", "--exclude", "*")


def cpu_seconds() -> float:
    """What this process and those it has waited for have used of all processors so far."""
    used = psutil.Process().cpu_times()
    return used.user + used.system + used.children_user + used.children_system


def peak_mib(device: torch.device | None = None) -> int:
    """The most memory that this process has held at a time; of a GPU, if `device` is one, what torch had in use."""
    if device is not None and device.type == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated(device) / _MIB)
    return round(_peak_bytes() / _MIB)


def childrens_peak_mib() -> int:
    """The most memory that one process which this one has waited for held at a time; 0 where the system forgets it."""
    return 0 if resource is None else round(_maximum_bytes(resource.RUSAGE_CHILDREN) / _MIB)


def _peak_bytes() -> int:
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    try:
        # What getrusage says of a process starts with what its parent had; this does not.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        return _maximum_bytes(resource.RUSAGE_SELF)


def _maximum_bytes(who: int) -> int:
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
