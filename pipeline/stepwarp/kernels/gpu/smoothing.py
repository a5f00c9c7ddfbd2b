"""See `kernels.smoothing`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stepwarp.kernels.gpu.cells import channel
from stepwarp.kernels.gpu.launching import beside, launch, room


def convolve_axes(field: Tensor, kernel: Tensor, *, out: Tensor | None = None) -> Tensor:
    """An axis after the other."""
    result = room(out, tuple(field.shape), field)
    return _along_axes(_convolve, field.contiguous(), (beside(kernel.float(), field),), result)


def convolve_axes_adjoint(gradient: Tensor, wanted: tuple[bool, ...], field: None, kernel: Tensor) -> tuple[Tensor]:
    """What is read beyond the border is read at the border: there a voxel receives by the sums of the weights from
    each to the last."""
    kernel = kernel.float()
    last = kernel[len(kernel) // 2 :].flip(0).cumsum(0).flip(0)
    weights = (beside(kernel, gradient), beside(last, gradient))
    return (_along_axes(_convolve_back, gradient.contiguous(), weights, torch.empty_like(gradient)),)


def _along_axes(kernel: Any, source: Tensor, weights: tuple[Tensor, ...], result: Tensor) -> Tensor:
    """The result and a scratch hold in turn what there is after each axis."""
    voxels, maps = source.shape[2:].numel(), source.shape[0] * source.shape[1]
    stride, scratch = 1, torch.empty_like(result)
    for axis, target in ((4, result), (3, scratch), (2, result)):
        size = source.shape[axis]
        launch(kernel, voxels, maps, source, *weights, target, size, stride, voxels, radius=len(weights[0]) // 2)
        source, stride = target, stride * size
    return result


@triton.jit
def _convolve(source, weights, out, size, stride, voxels, radius: tl.constexpr, block: tl.constexpr):
    """Along one axis, border values repeated."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    source, out = channel(source, tl.program_id(1), voxels), channel(out, tl.program_id(1), voxels)
    wanted = x < voxels
    place = (x // stride) % size
    first = x - place * stride
    value = tl.load(weights + radius) * tl.load(source + x, wanted, 0.0)
    for d in tl.static_range(1, radius + 1):
        below = tl.load(source + (first + tl.maximum(place - d, 0) * stride), wanted, 0.0)
        above = tl.load(source + (first + tl.minimum(place + d, size - 1) * stride), wanted, 0.0)
        value += tl.load(weights + (radius + d)) * (below + above)
    tl.store(out + x, value, wanted)


@triton.jit
def _convolve_back(source, weights, last, out, size, stride, voxels, radius: tl.constexpr, block: tl.constexpr):
    """The adjoint of that. last: for d from 0 on, the sum of the weights from the one at distance d to the last."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    source, out = channel(source, tl.program_id(1), voxels), channel(out, tl.program_id(1), voxels)
    wanted = x < voxels
    place = (x // stride) % size
    at_start, at_end = place == 0, place == size - 1
    here, to_last = tl.load(weights + radius), tl.load(last)
    # A voxel that is its axis has both borders.
    weight = tl.where(at_start & at_end, 2 * to_last - here, tl.where(at_start | at_end, to_last, here))
    value = weight * tl.load(source + x, wanted, 0.0)
    for d in tl.static_range(1, radius + 1):
        one, to_last = tl.load(weights + (radius + d)), tl.load(last + d)
        below = tl.load(source + (x - d * stride), wanted & (place >= d), 0.0)
        above = tl.load(source + (x + d * stride), wanted & (place + d < size), 0.0)
        value += tl.where(at_end, to_last, one) * below + tl.where(at_start, to_last, one) * above
    tl.store(out + x, value, wanted)
