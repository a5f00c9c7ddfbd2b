"""Tensors as the kernels take them: contiguous arrays of numpy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stepwarp.kernels import buffers


def array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as a C-contiguous array; copies only what is not contiguous."""
    return tensor.detach().contiguous().numpy()


def room(out: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor, np.ndarray]:
    """Where a result goes, as a tensor and as an array: `out`, or new memory, as numpy allots it, in large pages."""
    if out is None:
        out = torch.from_numpy(np.empty(shape, np.float32))
    buffers.check(out, shape, torch.float32)
    return out, out.numpy()


def at_least_two(tensor: Tensor) -> Tensor:
    """Repeats the voxel of an axis of one, because the kernels read the two neighbours of every position."""
    for axis in range(2, tensor.ndim):
        if tensor.shape[axis] == 1:
            tensor = tensor.repeat_interleave(2, axis)
    return tensor
