"""See `kernels.smoothing`."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from stepwarp.kernels.cpu.arrays import array, room
from stepwarp.kernels.cpu.compiled import F1, F4, compiled


def convolve_axes(field: Tensor, kernel: Tensor, *, out: Tensor | None = None) -> Tensor:
    """A plane at a time along its two axes, and then across the planes."""
    weights, source = array(kernel.float()), array(field.flatten(0, 1))
    planes = np.empty_like(source)
    result, target = room(out, tuple(field.shape))
    _smooth_planes(source, weights, planes)
    _smooth_across(planes, weights, target.reshape(source.shape))
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


@compiled((F4, F1, F4))
def _smooth_planes(source, weights, out):
    """Along k and then j, one (j, k) plane at a time, so that the row between the two stays in the cache."""
    channels, n0, n1, n2 = source.shape
    r = len(weights) // 2
    for plane in prange(channels * n0):
        c, i = plane // n0, plane % n0
        rows = np.empty((n1, n2), np.float32)
        padded = np.empty(n2 + 2 * r, np.float32)
        for j in range(n1):
            for k in range(n2):
                padded[r + k] = source[c, i, j, k]
            for k in range(r):
                padded[k] = source[c, i, j, 0]
                padded[r + n2 + k] = source[c, i, j, n2 - 1]
            for k in range(n2):
                rows[j, k] = weights[r] * padded[r + k]
            for d in range(1, r + 1):
                w = weights[r + d]
                for k in range(n2):
                    rows[j, k] += w * (padded[r + k - d] + padded[r + k + d])
        for j in range(n1):
            target = out[c, i, j]
            for k in range(n2):
                target[k] = weights[r] * rows[j, k]
            for d in range(1, r + 1):
                w = weights[r + d]
                below, above = rows[max(j - d, 0)], rows[min(j + d, n1 - 1)]
                for k in range(n2):
                    target[k] += w * (below[k] + above[k])


@compiled((F4, F1, F4))
def _smooth_across(source, weights, out):
    """Along i, row by row."""
    channels, n0, n1, n2 = source.shape
    r = len(weights) // 2
    for line in prange(channels * n1):
        c, j = line // n1, line % n1
        for i in range(n0):
            target, centre = out[c, i, j], source[c, i, j]
            for k in range(n2):
                target[k] = weights[r] * centre[k]
            for d in range(1, r + 1):
                w = weights[r + d]
                below, above = source[c, max(i - d, 0), j], source[c, min(i + d, n0 - 1), j]
                for k in range(n2):
                    target[k] += w * (below[k] + above[k])
