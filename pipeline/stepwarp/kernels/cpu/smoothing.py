"""See `kernels.smoothing`."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from stepwarp.kernels.cpu.arrays import array, room
from stepwarp.kernels.cpu.compiled import F1, F4, WHOLE, compiled, inlined
from stepwarp.kernels.cpu.threading_layer import slab

#: Values that are worked on at a time: they stay in the nearest cache.
_STRETCH = 4096
#: The fewest planes that a thread is given at a time: it works on as many more as the kernel is wide.
_SMALLEST_SLAB = 8


def convolve_axes(field: Tensor, kernel: Tensor, *, out: Tensor | None = None) -> Tensor:
    """In slabs of planes, so that what lies between the passes along the three axes never reaches the main memory."""
    weights, source = array(kernel.float()), array(field.flatten(0, 1))
    if len(weights) == 1:
        weights = np.pad(weights, 1)
    channels, planes = source.shape[:2]
    result, target = room(out, tuple(field.shape))
    _smooth(source, weights, slab(planes, _SMALLEST_SLAB, channels), target.reshape(source.shape))
    return result


def convolve_axes_adjoint(gradient: Tensor, wanted: tuple[bool, ...], field: None, kernel: Tensor) -> tuple[Tensor]:
    """The adjoint of repeating the border is to add up what went beyond it."""
    radius = len(kernel) // 2
    wide = convolve_axes(torch.nn.functional.pad(gradient, [radius] * 6), kernel)
    for axis in range(2, 5):
        n = wide.shape[axis] - 2 * radius
        beyond = [wide.narrow(axis, start, radius).sum(axis) for start in (0, n + radius)]
        wide = wide.narrow(axis, radius, n)
        wide.select(axis, 0).add_(beyond[0])
        wide.select(axis, n - 1).add_(beyond[1])
    return (wide,)


@inlined
def _weighted(centre, below, above, weight_here, weight, out):
    for n in range(len(out)):
        out[n] = weight_here * centre[n] + weight * (below[n] + above[n])


@inlined
def _add_weighted(below, above, weight, out):
    for n in range(len(out)):
        out[n] += weight * (below[n] + above[n])


@inlined
def _smooth_along(source, at, stride, weights, out):
    """What lies from `at` on, with its neighbours at multiples of `stride`. Views that begin at 0 and are longer than a
    row are what makes the compiler use vectors throughout."""
    r = len(weights) // 2
    for start in range(0, len(out), _STRETCH):
        n = min(_STRETCH, len(out) - start)
        x, target = at + start, out[start : start + n]
        below, above = source[x - stride : x - stride + n], source[x + stride : x + stride + n]
        _weighted(source[x : x + n], below, above, weights[r], weights[r + 1], target)
        for d in range(2, r + 1):
            low, high = x - d * stride, x + d * stride
            _add_weighted(source[low : low + n], source[high : high + n], weights[r + d], target)


@inlined
def _widened(plane, r, out):
    """Rows with their first and last value repeated on both sides, one after the other, behind r values."""
    n1, n2 = plane.shape
    for j in range(n1):
        row = out[r + j * (n2 + 2 * r) :]
        for k in range(n2):
            row[r + k] = plane[j, k]
        for k in range(r):
            row[k], row[r + n2 + k] = plane[j, 0], plane[j, n2 - 1]


@inlined
def _heightened(rows, r, width):
    """The first and the last row repeated on both sides."""
    last = len(rows) - (r + 1) * width
    for d in range(r):
        for k in range(width):
            rows[d * width + k] = rows[r * width + k]
            rows[last + (d + 1) * width + k] = rows[last + k]


@inlined
def _smooth_across(ring, i, n0, weights, out):
    r, size = len(weights) // 2, len(weights)
    here, below, above = ring[i % size], ring[max(i - 1, 0) % size], ring[min(i + 1, n0 - 1) % size]
    for start in range(0, len(out), _STRETCH):
        stop = min(start + _STRETCH, len(out))
        target = out[start:stop]
        _weighted(here[start:stop], below[start:stop], above[start:stop], weights[r], weights[r + 1], target)
        for d in range(2, r + 1):
            low, high = ring[max(i - d, 0) % size, start:stop], ring[min(i + d, n0 - 1) % size, start:stop]
            _add_weighted(low, high, weights[r + d], target)


@compiled((F4, F1, WHOLE, F4))
def _smooth(source, weights, share, out):
    """Plane by plane along its two axes; the last few planes are kept, for the third."""
    channels, n0, n1, n2 = source.shape
    r = len(weights) // 2
    width = n2 + 2 * r
    shares = (n0 + share - 1) // share
    for part in prange(channels * shares):
        c, first = part // shares, part % shares * share
        last = min(first + share, n0)
        plane = np.zeros(n1 * width + 2 * r, np.float32)
        rows = np.empty((n1 + 2 * r) * width, np.float32)
        ring = np.empty((2 * r + 1, n1 * width), np.float32)
        smoothed = np.empty(n1 * width, np.float32)
        for i in range(max(first - r, 0), last + r):
            if i < n0:
                _widened(source[c, i], r, plane)
                _smooth_along(plane, r, 1, weights, rows[r * width : (r + n1) * width])
                _heightened(rows, r, width)
                _smooth_along(rows, r * width, width, weights, ring[i % (2 * r + 1)])
            if i - r >= first:
                _smooth_across(ring, i - r, n0, weights, smoothed)
                for j in range(n1):
                    for k in range(n2):
                        out[c, i - r, j, k] = smoothed[j * width + r + k]
