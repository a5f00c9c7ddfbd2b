"""How a kernel is started, and where its results go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stepwarp.errors import is_gpu_failure
from stepwarp.kernels import backend, buffers

#: Voxels that a program works on, unless the kernel says otherwise.
BLOCK = 256


def launch(kernel: Any, voxels: int, maps: int, /, *arguments: Any, block: int = BLOCK, **constants: Any) -> None:
    """Starts a kernel, a program for every `block` voxels of each of so many maps: those are the axes of its grid.

    Raises backend.UnusableError where it cannot be compiled or started."""
    first = next(each for each in arguments if isinstance(each, Tensor))
    try:
        with torch.cuda.device_of(first):
            # A product and a sum may be rounded once: said, because Triton is about to change what it does unasked.
            kernel[(programs(voxels, block), maps)](*arguments, **constants, block=block, enable_fp_fusion=True)
    except Exception as error:
        if is_gpu_failure(error):  # which is no fault of the kernel
            raise
        raise backend.UnusableError(f"the kernel {kernel.__name__}: {error}") from error


def programs(voxels: int, block: int = BLOCK) -> int:
    """How many programs work on one map."""
    return -(-voxels // block)


def room(out: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Where a result goes: `out`, or new memory."""
    if out is None:
        return torch.empty(shape, device=like.device)
    buffers.check(out, shape, torch.float32)
    return out


def beside(small: Tensor, large: Tensor) -> Tensor:
    """A few numbers, contiguous on the device of a volume; none are waited for."""
    return small.detach().to(large.device, non_blocking=True).contiguous()
