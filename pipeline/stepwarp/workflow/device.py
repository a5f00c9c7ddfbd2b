"""Where to compute, and on how many threads."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stepwarp import limits
from stepwarp.errors import InputError
from stepwarp.kernels.cpu import threading_layer

#: Of glibc's malloc.h: how many allocations may be mappings of their own, from how many free bytes on they are given
#: back, and how many are asked for beyond what is needed.
_M_MMAP_MAX, _M_TRIM_THRESHOLD, _M_TOP_PAD = -4, -1, -2
_SPARE_BYTES = 2**28


def chosen_device(name: str) -> torch.device:
    """auto, cpu or cuda as a device. InputError for another name, and for cuda where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise InputError(f"device '{name}' does not exist; there are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu")
    return torch.device(name)


@contextmanager
def same_bits() -> Iterator[list[str]]:
    """Within it, torch takes kernels that give the same bits each time, where it has them.

    Processors give the same bits for the same number of threads anyhow, so this changes only GPUs. Yields a list that
    holds, afterwards, the operations that ran on one without such a kernel. cuBLAS is told by the environment, which
    it reads once: enter before anything has run on a GPU."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    unsure: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield unsure
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    for warning in caught:
        operation = re.match(r"(\S+) does not have a deterministic implementation", str(warning.message))
        if operation is None:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif operation[1] not in unsure:
            unsure.append(operation[1])


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
