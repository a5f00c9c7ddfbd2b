"""Where to compute, and on how many threads."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from stepwarp import limits
from stepwarp.errors import InputError
from stepwarp.kernels.cpu import threading_layer

#: Of glibc's malloc.h: how many allocations may be mappings of their own, from how many free bytes on they are given
#: back, and how many are asked for beyond what is needed.
_M_MMAP_MAX, _M_TRIM_THRESHOLD, _M_TOP_PAD = -4, -1, -2
_SPARE_BYTES = 2**28
#: How torch says that an operation may have other bits the next time.
_UNSURE = re.compile(r"(\S+) does not have a deterministic implementation")
#: Bytes of the GPU that this process may take, where it shares it with others; None for all that are free.
_share: int | None = None
#: What torch has warned of within `same_bits`.
_met: ContextVar[list[warnings.WarningMessage] | None] = ContextVar("warnings within same_bits", default=None)


def chosen_device(name: str) -> torch.device:
    """auto, cpu or cuda as a device. InputError for another name, and for cuda where there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device '{name}' does not exist; there are auto, cpu and cuda")
    if name == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's of the driver, over several lines: it is said below in one
        if torch.cuda.is_available():
            return torch.device("cuda")
        old = _too_old_a_driver()
    if name == "cuda":
        raise InputError(f"device 'cuda' was asked for, but {old or 'torch sees no CUDA device'}; use --device cpu")
    if old:
        _say_once(f"the processor computes, because {old}")
    return torch.device("cpu")


def share_gpu(device: torch.device, share: int) -> None:
    """Have this process take no more than so many bytes of a GPU's memory: others work there as well."""
    global _share
    _share = share
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, share / total), device)


def free_gpu_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory that new work may take: what is free and what torch keeps for it, or what is left of this
    process's share."""
    free, _ = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    free += torch.cuda.memory_reserved(device) - used
    return free if _share is None else min(free, _share - used)


def _too_old_a_driver() -> str | None:
    """What is wrong with the driver and what helps, if that is why torch sees no GPU."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        found = re.search(r"driver on your system is too old(?: \(found version (\d+)\))?", str(error))
        if found is None:
            return None
        version = int(found[1] or 0)
        serves = f"it serves CUDA {version // 1000}.{version % 1000 // 10}, " if version else ""
        return (
            f"the NVIDIA driver is too old ({serves}torch {torch.__version__} is made for CUDA {torch.version.cuda}): "
            "update the driver, or install a build of torch for an older CUDA"
        )
    return None


@functools.cache
def _say_once(text: str) -> None:
    warnings.warn(text, stacklevel=3)


@contextmanager
def same_bits() -> Iterator[list[str]]:
    """Within it, torch takes kernels that give the same bits each time, where it has them.

    Processors give the same bits for the same number of threads anyhow, so this changes only GPUs. Yields a list that
    holds, afterwards, the operations that ran on one without such a kernel. cuBLAS is told by the environment, which
    it reads once: enter before anything has run on a GPU. `determinism` says within it what has been met so far."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    unsure: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        token = _met.set(caught)
        try:
            yield unsure
        finally:
            _met.reset(token)
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    unsure += _named(caught)
    for warning in caught:
        if not _UNSURE.match(str(warning.message)):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def determinism(device: torch.device) -> dict[str, Any]:
    """For a record: whether the same work has the same bits again on a device, as far as it has come, and which
    operations have added up there in any order in spite of `same_bits`."""
    if device.type == "cpu":
        return {"deterministic": True, "any_order": []}
    caught = _met.get()
    if caught is not None:
        unsure = _named(caught)
        return {"deterministic": not unsure, "any_order": unsure}
    # By somebody else's order: torch then stops at such an operation, unless it is told to warn of it alone.
    sure = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    return {"deterministic": sure, "any_order": []}


def _named(caught: list[warnings.WarningMessage]) -> list[str]:
    """The operations that torch has warned of, each once."""
    found = (_UNSURE.match(str(warning.message)) for warning in caught)
    return list(dict.fromkeys(match[1] for match in found if match))


def use_threads(threads: int | None) -> int:
    """Tell both thread pools; the number in use, by default all that this process may use, and 1 as
    `threading_layer.leave_dead_threads` says.

    Raises InputError below 1, and ForkedError as `threading_layer.start`."""
    import numba

    threading_layer.start()
    wanted = limits.processors() if threads is None else threads
    if wanted < 1:
        raise InputError(f"{wanted} threads cannot do anything; give at least 1")
    wanted = threading_layer.leave_dead_threads(wanted)
    numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS))
    return wanted


def reuse_memory() -> None:
    """Have this process keep the memory that it frees, for what it asks for next; where the C library is not glibc, do
    nothing.

    An iteration of a training asks for the same hundreds of MiB as the one before. To give them back and have them
    cleared by the system anew can take as long as the convolutions."""
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    library.mallopt(_M_TOP_PAD, _SPARE_BYTES)
