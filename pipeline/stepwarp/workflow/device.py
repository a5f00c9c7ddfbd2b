"""Where to compute, and on how many threads."""

from __future__ import annotations

import os
import platform

import torch

from stepwarp.errors import InputError


def chosen_device(name: str) -> torch.device:
    """auto, cpu or cuda as a device. InputError for another name, and for cuda where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise InputError(f"device '{name}' does not exist; there are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """What the device is called, for a record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.processor() or platform.machine()})"


def use_threads(threads: int | None) -> int:
    """Tell both thread pools; the number in use, by default all that this process may use. InputError below 1."""
    import numba

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = available if threads is None else threads
    if wanted < 1:
        raise InputError(f"{wanted} threads cannot do anything; give at least 1")
    torch.set_num_threads(wanted)
    numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS))
    return wanted
