"""Reading between voxels: the parts that kernels are made of."""

from __future__ import annotations

import numpy as np

from stepwarp.kernels.cpu.compiled import inlined


@inlined
def cell(position, size):
    """The lower of the two neighbours of a position along an axis of `size` voxels, and the way from it to the other.

    A position beyond the axis is moved to its end, and one that is no number to 0: an index must never be wild. The
    order of the operands of `max` matters for that."""
    inside = min(np.float32(size - 1), max(np.float32(0), position))
    lower = min(np.int32(inside), np.int32(size - 2))
    return lower, inside - np.float32(lower)


@inlined
def trilinear(flat, corner, s0, s1, t0, t1, t2):
    """Between the eight voxels whose first is `corner`; s0, s1: strides, t0, t1, t2: where in the cell."""
    b, one = np.uintp(corner), np.float32(1)
    c00 = flat[b] * (one - t2) + flat[b + np.uintp(1)] * t2
    c01 = flat[b + np.uintp(s1)] * (one - t2) + flat[b + np.uintp(s1 + 1)] * t2
    c10 = flat[b + np.uintp(s0)] * (one - t2) + flat[b + np.uintp(s0 + 1)] * t2
    c11 = flat[b + np.uintp(s0 + s1)] * (one - t2) + flat[b + np.uintp(s0 + s1 + 1)] * t2
    return (c00 * (one - t1) + c01 * t1) * (one - t0) + (c10 * (one - t1) + c11 * t1) * t0


@inlined
def trilinear_with_slope(flat, corner, s0, s1, t0, t1, t2):
    """The value in a cell and its derivatives along the three axes."""
    one = np.float32(1)
    a000, a001 = flat[np.uintp(corner)], flat[np.uintp(corner + 1)]
    a010, a011 = flat[np.uintp(corner + s1)], flat[np.uintp(corner + s1 + 1)]
    a100, a101 = flat[np.uintp(corner + s0)], flat[np.uintp(corner + s0 + 1)]
    a110, a111 = flat[np.uintp(corner + s0 + s1)], flat[np.uintp(corner + s0 + s1 + 1)]
    c00, c01 = a000 + (a001 - a000) * t2, a010 + (a011 - a010) * t2
    c10, c11 = a100 + (a101 - a100) * t2, a110 + (a111 - a110) * t2
    e0, e1 = c00 + (c01 - c00) * t1, c10 + (c11 - c10) * t1
    near = (a001 - a000) * (one - t1) + (a011 - a010) * t1
    far = (a101 - a100) * (one - t1) + (a111 - a110) * t1
    along1 = (c01 - c00) * (one - t0) + (c11 - c10) * t0
    return e0 + (e1 - e0) * t0, e1 - e0, along1, near * (one - t0) + far * t0
