"""The compiled CPU kernel of the local normalised cross-correlation: its value and both of its gradients in two passes
over the images, a few planes at a time, so that the eleven maps in between never reach the main memory as a whole."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import get_num_threads, prange
from torch import Tensor

from stepwarp.geometry.cpu import array, compiled, inlined

#: Maps that the second pass needs, see `_coefficients`.
_MAPS = 5


def lncc(
    fixed: Tensor, moved: Tensor, weight: Tensor | None, radius: int, epsilon: float
) -> tuple[float, Tensor, Tensor]:
    """See `similarity.LNCC.value_and_gradients`; all tensors (1, 1, I, J, K)."""
    f, m = array(fixed)[0, 0], array(moved)[0, 0]
    weighted = weight is not None
    w = array(weight.float())[0, 0] if weight is not None else np.empty((1, 1, 1), np.float32)
    threads = get_num_threads()
    slab = math.ceil(f.shape[0] / threads)
    maps = np.empty((_MAPS, *f.shape), np.float32)
    total = np.zeros(threads, np.float64)
    _coefficients(f, m, w, weighted, radius, np.float32(epsilon), slab, maps, total)
    gradients = np.empty((2, *f.shape), np.float32)
    count = float(w.sum(dtype=np.float64) or np.nan) if weighted else float(f.size)
    _gradients(f, m, w, weighted, maps, radius, slab, np.float32(2 / count), gradients)
    to_fixed, to_moved = torch.from_numpy(gradients)[:, None, None]
    return 1 - float(total.sum()) / count, to_fixed, to_moved


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


@compiled
def _coefficients(f, m, w, weighted, radius, epsilon, slab, maps, total):
    """Window statistics -> the squared correlation (summed into `total`) and five coefficient maps.

    With s_fm, s_ff, s_mm the centred window sums, a = s_fm / (s_ff s_mm), b = a s_fm / s_mm, c = a s_fm / s_ff:
    maps = a, b, c, a mean_f - b mean_m, a mean_m - c mean_f."""
    n0, n1, n2 = f.shape
    stats = 6 if weighted else 5
    slots = 2 * radius + 1
    zero = np.float32(0)
    for chunk in prange(len(total)):
        start, stop = np.int64(chunk) * slab, min((np.int64(chunk) + 1) * slab, n0)
        ring = np.zeros((stats, slots, n1, n2), np.float32)
        rows = np.empty((stats, n1, n2), np.float32)
        padded = np.zeros(n2 + 2 * radius, np.float32)
        product = np.empty(n2, np.float32)
        sums = np.empty((6, n2), np.float32)
        # How much of a window lies inside the image along k.
        inside = np.empty(n2, np.float32)
        for k in range(n2):
            inside[k] = np.float32(min(k + radius, n2 - 1) - max(k - radius, 0) + 1)
        ready = max(start - radius, 0)
        value = 0.0
        for i in range(start, stop):
            low, high = max(i - radius, 0), min(i + radius, n0 - 1)
            while ready <= high:
                for j in range(n1):
                    fr, mr = f[ready, j], m[ready, j]
                    if weighted:
                        wr = w[ready, j]
                        _box_row(wr, radius, padded, rows[5, j])
                        for s in range(5):
                            for k in range(n2):
                                v = fr[k] if s == 0 or s == 2 or s == 4 else mr[k]
                                if s == 2:
                                    v *= fr[k]
                                elif s > 2:
                                    v *= mr[k]
                                product[k] = wr[k] * v
                            _box_row(product, radius, padded, rows[s, j])
                    else:
                        _box_row(fr, radius, padded, rows[0, j])
                        _box_row(mr, radius, padded, rows[1, j])
                        for k in range(n2):
                            product[k] = fr[k] * fr[k]
                        _box_row(product, radius, padded, rows[2, j])
                        for k in range(n2):
                            product[k] = mr[k] * mr[k]
                        _box_row(product, radius, padded, rows[3, j])
                        for k in range(n2):
                            product[k] = fr[k] * mr[k]
                        _box_row(product, radius, padded, rows[4, j])
                for s in range(stats):
                    _box_columns(rows[s], radius, ring[s, ready % slots])
                ready += 1
            for j in range(n1):
                for s in range(stats):
                    _sum_planes(ring[s], low, high, j, sums[s])
                if not weighted:
                    plane = np.float32((high - low + 1) * (min(j + radius, n1 - 1) - max(j - radius, 0) + 1))
                    for k in range(n2):
                        sums[5, k] = plane * inside[k]
                row_value = zero
                for k in range(n2):
                    size = max(sums[5, k], np.float32(1e-3))
                    mean_f, mean_m = sums[0, k] / size, sums[1, k] / size
                    ff = max(sums[2, k] - sums[0, k] * mean_f, zero) + epsilon * size
                    mm = max(sums[3, k] - sums[1, k] * mean_m, zero) + epsilon * size
                    fm = sums[4, k] - sums[0, k] * mean_m
                    here = w[i, j, k] if weighted else np.float32(1)
                    a = here * fm / (ff * mm)
                    b = a * fm / mm
                    c = a * fm / ff
                    maps[0, i, j, k] = a
                    maps[1, i, j, k] = b
                    maps[2, i, j, k] = c
                    maps[3, i, j, k] = a * mean_f - b * mean_m
                    maps[4, i, j, k] = a * mean_m - c * mean_f
                    row_value += a * fm
                value += row_value
        total[chunk] = value


@compiled
def _gradients(f, m, w, weighted, maps, radius, slab, scale, out):
    """The windows' coefficients summed back: d(1 - mean)/df into out[0] and d(1 - mean)/dm into out[1]."""
    n0, n1, n2 = f.shape
    slots = 2 * radius + 1
    for chunk in prange((n0 + slab - 1) // slab):
        start, stop = np.int64(chunk) * slab, min((np.int64(chunk) + 1) * slab, n0)
        ring = np.zeros((5, slots, n1, n2), np.float32)
        rows = np.empty((n1, n2), np.float32)
        padded = np.zeros(n2 + 2 * radius, np.float32)
        sums = np.empty((5, n2), np.float32)
        ready = max(start - radius, 0)
        for i in range(start, stop):
            low, high = max(i - radius, 0), min(i + radius, n0 - 1)
            while ready <= high:
                for s in range(5):
                    for j in range(n1):
                        _box_row(maps[s, ready, j], radius, padded, rows[j])
                    _box_columns(rows, radius, ring[s, ready % slots])
                ready += 1
            for j in range(n1):
                for s in range(5):
                    _sum_planes(ring[s], low, high, j, sums[s])
                for k in range(n2):
                    here = scale * w[i, j, k] if weighted else scale
                    out[0, i, j, k] = here * (f[i, j, k] * sums[2, k] + sums[4, k] - m[i, j, k] * sums[0, k])
                    out[1, i, j, k] = here * (m[i, j, k] * sums[1, k] + sums[3, k] - f[i, j, k] * sums[0, k])
