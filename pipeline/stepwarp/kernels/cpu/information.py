"""See `kernels.information`. Shares of the voxels are counted each into a histogram of its own. There are as many of
them however many threads there are, so that what is added up is the same."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from stepwarp.kernels.buffers import into
from stepwarp.kernels.cpu.arrays import array
from stepwarp.kernels.cpu.compiled import F2, F3, SUMS3, WHOLE, compiled, inlined

#: Of each sample.
_SHARES = 16


def joint_histogram(
    fixed: Tensor, moved: Tensor, weight: Tensor | None, bins: int, *, out: Tensor | None = None
) -> Tensor:
    """Samples and shares at once."""
    parts = np.zeros((len(fixed) * _SHARES, bins, bins))
    _count(*_laid(fixed, moved, weight), parts)
    joint = torch.from_numpy(parts.reshape(len(fixed), _SHARES, bins, bins).sum(1))
    return into(out, joint / joint.sum((1, 2), keepdim=True))


def joint_histogram_adjoint(
    gradient: Tensor, wanted: tuple[bool, ...], fixed: Tensor, moved: Tensor, weight: Tensor | None, bins: int
) -> tuple[Tensor | None, Tensor | None]:
    """To both images. A voxel counts as much as before wherever it moves, so that the sum of all stays."""
    f, m, w = _laid(fixed, moved, weight)
    total = torch.from_numpy(w.sum(1, dtype=np.float64)) if len(w) else torch.tensor(float(f.shape[1]))
    table = array((gradient * (bins - 1) / total.view(-1, 1, 1)).float())
    to_fixed, to_moved = (np.empty(f.shape if each else (0, 0), np.float32) for each in wanted[:2])
    _count_back(f, m, w, table, _SHARES, to_fixed, to_moved)
    return (
        torch.from_numpy(to_fixed).view(fixed.shape) if wanted[0] else None,
        torch.from_numpy(to_moved).view(moved.shape) if wanted[1] else None,
    )


def _laid(fixed: Tensor, moved: Tensor, weight: Tensor | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values of each sample in a row; nothing for no weights."""
    w = np.empty((0, 0), np.float32) if weight is None else array(weight.float().flatten(1))
    return array(fixed.flatten(1)), array(moved.flatten(1)), w


@inlined
def _bin(value, bins):
    """The lower of the two bins between whose centres a value lies, and the way from it to the other. What is no number
    counts as 0: an index must never be wild."""
    position = min(np.float32(1), max(np.float32(0), value)) * np.float32(bins - 1)
    low = min(np.int64(position), bins - 2)
    return low, position - np.float32(low)


@compiled((F2, F2, F2, SUMS3))
def _count(f, m, w, parts):
    """Of each share of each sample the histogram, into parts, which are 0: (samples times shares, bins, bins)."""
    weighted, one = len(w) > 0, np.float32(1)
    shares, bins, voxels = len(parts) // len(f), parts.shape[1], f.shape[1]
    length = (voxels + shares - 1) // shares
    for part in prange(len(parts)):
        n, first = np.int64(part) // shares, np.int64(part) % shares * length
        joint = parts[part]
        for x in range(first, min(first + length, voxels)):
            i, s = _bin(f[n, x], bins)
            j, t = _bin(m[n, x], bins)
            here = w[n, x] if weighted else one
            joint[i, j] += (one - s) * (one - t) * here
            joint[i, j + 1] += (one - s) * t * here
            joint[i + 1, j] += s * (one - t) * here
            joint[i + 1, j + 1] += s * t * here


@compiled((F2, F2, F2, F3, WHOLE, F2, F2))
def _count_back(f, m, w, table, shares, to_f, to_m):
    """What each value receives for moving on by one, of a table of what the bins receive; to those with room."""
    weighted, zero, one = len(w) > 0, np.float32(0), np.float32(1)
    bins, voxels = table.shape[1], f.shape[1]
    length = (voxels + shares - 1) // shares
    for part in prange(len(f) * shares):
        n, first = np.int64(part) // shares, np.int64(part) % shares * length
        for x in range(first, min(first + length, voxels)):
            i, s = _bin(f[n, x], bins)
            j, t = _bin(m[n, x], bins)
            here = w[n, x] if weighted else one
            g00, g01, g10, g11 = table[n, i, j], table[n, i, j + 1], table[n, i + 1, j], table[n, i + 1, j + 1]
            if len(to_f) > 0:
                moves = (f[n, x] > zero) & (f[n, x] < one)
                to_f[n, x] = here * ((one - t) * (g10 - g00) + t * (g11 - g01)) if moves else zero
            if len(to_m) > 0:
                moves = (m[n, x] > zero) & (m[n, x] < one)
                to_m[n, x] = here * ((one - s) * (g01 - g00) + s * (g11 - g10)) if moves else zero
