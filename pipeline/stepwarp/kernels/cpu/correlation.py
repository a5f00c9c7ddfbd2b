"""See `kernels.correlation`. The value and its gradients are found in two passes over the images, a few planes at a
time, so that the eleven maps in between never reach the main memory as a whole."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import prange
from torch import Tensor

from stepwarp.kernels.buffers import into
from stepwarp.kernels.cpu.arrays import array, room
from stepwarp.kernels.cpu.compiled import F3, F4, SINGLE, STRIDED4, SUMS1, WHOLE, compiled, inlined
from stepwarp.kernels.cpu.threading_layer import slab


def box_sum(image: Tensor, radius: int, *, out: Tensor | None = None) -> Tensor:
    """A channel at a time, in slabs of planes."""
    source = array(image.flatten(0, 1))
    result, target = room(out, tuple(image.shape))
    share = slab(source.shape[1])
    for values, sums in zip(source, target.reshape(source.shape), strict=True):
        _box_sum(values, radius, share, sums)
    return result


def correlation(
    fixed: Tensor,
    moved: Tensor,
    weight: Tensor | None,
    known: Tensor | None,
    radius: int,
    epsilon: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """The first pass alone."""
    return into(out, _with_gradients(0, fixed, moved, weight, known, radius, epsilon)[0])


def correlation_with_gradients(
    wanted: tuple[bool, ...],
    fixed: Tensor,
    moved: Tensor,
    weight: Tensor | None,
    known: Tensor | None,
    radius: int,
    epsilon: float,
) -> tuple[Tensor | None, ...]:
    """Both passes; the gradient of the fixed image costs the least of them."""
    value, to_moved, *to_fixed = _with_gradients(2 if wanted[0] else 1, fixed, moved, weight, known, radius, epsilon)
    return value, to_fixed[0] if to_fixed else None, to_moved


def _with_gradients(
    count: int,
    fixed: Tensor,
    moved: Tensor,
    weight: Tensor | None,
    known: Tensor | None,
    radius: int,
    epsilon: float,
) -> tuple[Tensor, ...]:
    """The values (B,) and so many gradients (B, C, I, J, K): of the moved, then of the fixed images."""
    nothing = np.empty((0, 0, 0), np.float32)
    f, m = array(fixed.flatten(0, 1)), array(moved.flatten(0, 1))
    w = [nothing] * len(f) if weight is None else array(weight.float().flatten(0, 1))
    k = np.empty((len(f), 0, 0, 0, 0), np.float32) if known is None else array(known.flatten(0, 1))
    gradients = np.empty((count, *f.shape), np.float32)
    samples = zip(f, m, w, k, strict=True)
    values = [_lncc(*images, radius, epsilon, gradients[:, n]) for n, images in enumerate(samples)]
    # A sample's value is the mean over its channels.
    return torch.tensor(values).view(fixed.shape[:2]).mean(1), *torch.from_numpy(gradients).unflatten(
        1, fixed.shape[:2]
    )


def _lncc(
    f: np.ndarray, m: np.ndarray, w: np.ndarray, known: np.ndarray, radius: int, epsilon: float, gradients: np.ndarray
) -> float:
    """The value of one pair of images, and the gradients with respect to the moved and the fixed one, as many as there
    is room for."""
    share = slab(f.shape[0])
    maps = np.empty(((0, 3, 5)[len(gradients)], *f.shape), np.float32)
    total = np.zeros(math.ceil(f.shape[0] / share), np.float64)
    _coefficients(f, m, w, known, radius, np.float32(epsilon), share, maps, total)
    count = float(w.sum(dtype=np.float64) or np.nan) if len(w) else float(f.size)
    if len(gradients):
        _gradients(f, m, w, maps, radius, share, np.float32(2 / count), gradients)
    return 1 - float(total.sum()) / count


@inlined
def _box_row(source, radius, padded, out):
    """Sums of 2 radius + 1 neighbours along a row; zeros beyond its ends, which `padded` already holds."""
    n = len(out)
    for k in range(n):
        padded[radius + k] = source[k]
    for k in range(n):
        out[k] = padded[k]
    for d in range(1, 2 * radius + 1):
        for k in range(n):
            out[k] += padded[k + d]


@inlined
def _sum_planes(ring, first, last, j, row):
    """Adds up row j of the planes first..last that the ring holds."""
    slots = len(ring)
    n = len(row)
    row[:] = np.float32(0)
    for p in range(first, last + 1):
        plane = ring[p % slots]
        for k in range(n):
            row[k] += plane[j, k]


@inlined
def _box_columns(rows, radius, out):
    """Sums of 2 radius + 1 neighbours along the first axis; zeros beyond."""
    n1, n2 = rows.shape
    for j in range(n1):
        target = out[j]
        low, high = max(j - radius, 0), min(j + radius, n1 - 1)
        first = rows[low]
        for k in range(n2):
            target[k] = first[k]
        for jj in range(low + 1, high + 1):
            line = rows[jj]
            for k in range(n2):
                target[k] += line[k]


@inlined
def _times(one, other, out):
    for k in range(len(out)):
        out[k] = one[k] * other[k]


@inlined
def _row_sums(stat, fr, mr, wr, weighted, radius, product, padded, out):
    """Sums along a row of one of: m, m m, f m, f, f f, 1; each times the weight."""
    if stat == 1:
        _times(mr, mr, product)
    elif stat == 2:
        _times(fr, mr, product)
    elif stat == 4:
        _times(fr, fr, product)
    plain = mr if stat == 0 else (fr if stat == 3 else (wr if stat == 5 else product))
    if weighted and stat < 5:
        _times(plain, wr, product)
        _box_row(product, radius, padded, out)
    else:
        _box_row(plain, radius, padded, out)


@compiled((F3, F3, F3, F4, WHOLE, SINGLE, WHOLE, F4, SUMS1))
def _coefficients(f, m, w, known, radius, epsilon, share, maps, total):
    """Window statistics -> the squared correlation (summed into `total`) and the coefficient maps there is room for.

    With s_fm, s_ff, s_mm the centred window sums, a = s_fm / (s_ff s_mm), b = a s_fm / s_mm, c = a s_fm / s_ff:
    maps = a, b, a mean_f - b mean_m for the gradient of the moved image, c, a mean_m - c mean_f for that of the fixed.
    w: the weights, or empty. known: mean_f, s_ff and with weights the windows' sizes, or empty."""
    n0, n1, n2 = f.shape
    weighted, prepared = len(w) > 0, len(known) > 0
    stats = 3 if prepared else (6 if weighted else 5)
    slots = 2 * radius + 1
    zero, one = np.float32(0), np.float32(1)
    for chunk in prange(len(total)):
        start, stop = np.int64(chunk) * share, min((np.int64(chunk) + 1) * share, n0)
        ring = np.zeros((stats, slots, n1, n2), np.float32)
        rows = np.empty((stats, n1, n2), np.float32)
        padded = np.zeros(n2 + 2 * radius, np.float32)
        product = np.empty(n2, np.float32)
        sums, correlation = np.empty((6, n2), np.float32), np.empty((4, n2), np.float32)
        # The sizes of windows along k that are cut off by the image's border.
        inside = np.empty(n2, np.float32)
        for k in range(n2):
            inside[k] = np.float32(min(k + radius, n2 - 1) - max(k - radius, 0) + 1)
        ready = max(start - radius, 0)
        value = 0.0
        for i in range(start, stop):
            low, high = max(i - radius, 0), min(i + radius, n0 - 1)
            while ready <= high:
                for s in range(stats):
                    for j in range(n1):
                        wr = w[ready, j] if weighted else product
                        _row_sums(s, f[ready, j], m[ready, j], wr, weighted, radius, product, padded, rows[s, j])
                    _box_columns(rows[s], radius, ring[s, ready % slots])
                ready += 1
            for j in range(n1):
                for s in range(stats):
                    _sum_planes(ring[s], low, high, j, sums[s])
                if prepared:
                    # In place of the sums 3 and 4: mean_f and s_ff themselves.
                    sums[3], sums[4] = known[0, i, j], known[1, i, j]
                if not weighted:
                    plane = np.float32((high - low + 1) * (min(j + radius, n1 - 1) - max(j - radius, 0) + 1))
                    for k in range(n2):
                        sums[5, k] = plane * inside[k]
                else:
                    if prepared:
                        sums[5] = known[2, i, j]
                    for k in range(n2):
                        sums[5, k] = max(sums[5, k], np.float32(1e-3))
                if not prepared:
                    for k in range(n2):
                        mean_f = sums[3, k] / sums[5, k]
                        sums[4, k] = max(sums[4, k] - sums[3, k] * mean_f, zero) + epsilon * sums[5, k]
                        sums[3, k] = mean_f
                row_value = zero
                for k in range(n2):
                    size, mean_f, ff = sums[5, k], sums[3, k], sums[4, k]
                    mean_m = sums[0, k] / size
                    mm = max(sums[1, k] - sums[0, k] * mean_m, zero) + epsilon * size
                    fm = sums[2, k] - sums[0, k] * mean_f
                    here = w[i, j, k] if weighted else one
                    a = here * fm / (ff * mm)
                    row_value += a * fm
                    correlation[0, k], correlation[1, k], correlation[2, k] = a, a * fm / mm, mean_m
                    correlation[3, k] = a * fm / ff
                if len(maps) > 0:
                    for k in range(n2):
                        a, b = correlation[0, k], correlation[1, k]
                        maps[0, i, j, k] = a
                        maps[1, i, j, k] = b
                        maps[2, i, j, k] = a * sums[3, k] - b * correlation[2, k]
                if len(maps) > 3:
                    for k in range(n2):
                        a, c = correlation[0, k], correlation[3, k]
                        maps[3, i, j, k] = c
                        maps[4, i, j, k] = a * correlation[2, k] - c * sums[3, k]
                value += row_value
        total[chunk] = value


@compiled(*((F3, F3, F3, F4, WHOLE, WHOLE, SINGLE, out) for out in (F4, STRIDED4)))
def _gradients(f, m, w, maps, radius, share, scale, out):
    """The windows' coefficients summed back: d(1 - mean)/dm into out[0], d(1 - mean)/df into out[1] if it is there."""
    n0, n1, n2 = f.shape
    weighted = len(w) > 0
    slots = 2 * radius + 1
    for chunk in prange((n0 + share - 1) // share):
        start, stop = np.int64(chunk) * share, min((np.int64(chunk) + 1) * share, n0)
        ring = np.zeros((len(maps), slots, n1, n2), np.float32)
        rows = np.empty((n1, n2), np.float32)
        padded = np.zeros(n2 + 2 * radius, np.float32)
        sums = np.empty((len(maps), n2), np.float32)
        ready = max(start - radius, 0)
        for i in range(start, stop):
            low, high = max(i - radius, 0), min(i + radius, n0 - 1)
            while ready <= high:
                for s in range(len(maps)):
                    for j in range(n1):
                        _box_row(maps[s, ready, j], radius, padded, rows[j])
                    _box_columns(rows, radius, ring[s, ready % slots])
                ready += 1
            for j in range(n1):
                for s in range(len(maps)):
                    _sum_planes(ring[s], low, high, j, sums[s])
                for k in range(n2):
                    here = scale * w[i, j, k] if weighted else scale
                    out[0, i, j, k] = here * (m[i, j, k] * sums[1, k] + sums[2, k] - f[i, j, k] * sums[0, k])
                if len(out) > 1:
                    for k in range(n2):
                        here = scale * w[i, j, k] if weighted else scale
                        out[1, i, j, k] = here * (f[i, j, k] * sums[3, k] + sums[4, k] - m[i, j, k] * sums[0, k])


@compiled((F3, WHOLE, WHOLE, F3))
def _box_sum(source, radius, share, out):
    n0, n1, n2 = source.shape
    slots = 2 * radius + 1
    for chunk in prange((n0 + share - 1) // share):
        start, stop = np.int64(chunk) * share, min((np.int64(chunk) + 1) * share, n0)
        ring = np.zeros((slots, n1, n2), np.float32)
        rows = np.empty((n1, n2), np.float32)
        padded = np.zeros(n2 + 2 * radius, np.float32)
        ready = max(start - radius, 0)
        for i in range(start, stop):
            low, high = max(i - radius, 0), min(i + radius, n0 - 1)
            while ready <= high:
                for j in range(n1):
                    _box_row(source[ready, j], radius, padded, rows[j])
                _box_columns(rows, radius, ring[ready % slots])
                ready += 1
            for j in range(n1):
                _sum_planes(ring, low, high, j, out[i, j])
