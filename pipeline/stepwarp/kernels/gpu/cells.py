"""Where a voxel lies and what lies around a position: the parts that kernels are made of."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def index(x, n1, n2):
    """The voxel's place along the three axes of a grid, whose last two have so many voxels."""
    row = x // n2
    return row // n1, row % n1, x % n2


@triton.jit
def channel(pointer, c, voxels):
    """Where a channel begins: in 64 bits, because a tensor may have more values than 32 bits can count."""
    return pointer + tl.cast(c, tl.int64) * voxels


@triton.jit
def entry(matrix, row, column):
    """Of a (4, 4) matrix in memory."""
    return tl.load(matrix + 4 * row + column).to(tl.float32)


@triton.jit
def cell(position, size):
    """The lower of the two neighbours of a position along an axis of `size` voxels, and the way from it to the other.

    A position beyond the axis is moved to its end, and one that is no number to 0, because `maximum` drops it: an
    index must never be wild."""
    inside = tl.minimum(tl.maximum(position, 0.0), size - 1.0)
    lower = tl.minimum(tl.floor(inside), tl.maximum(size - 2.0, 0.0))
    return lower.to(tl.int32), inside - lower


@triton.jit
def corners(flat, corner, n0, n1, n2, wanted):
    """The eight values of a cell whose first voxel is `corner`. On an axis of one voxel, that voxel twice."""
    up, along = tl.minimum(n1 - 1, 1) * n2, tl.minimum(n2 - 1, 1)
    far = corner + tl.minimum(n0 - 1, 1) * (n1 * n2)
    a000 = tl.load(flat + corner, wanted, 0.0)
    a001 = tl.load(flat + (corner + along), wanted, 0.0)
    a010 = tl.load(flat + (corner + up), wanted, 0.0)
    a011 = tl.load(flat + (corner + up + along), wanted, 0.0)
    a100 = tl.load(flat + far, wanted, 0.0)
    a101 = tl.load(flat + (far + along), wanted, 0.0)
    a110 = tl.load(flat + (far + up), wanted, 0.0)
    a111 = tl.load(flat + (far + up + along), wanted, 0.0)
    return a000, a001, a010, a011, a100, a101, a110, a111


@triton.jit
def trilinear(flat, corner, n0, n1, n2, t0, t1, t2, wanted):
    """The value in a cell; t0, t1, t2: where in it."""
    a000, a001, a010, a011, a100, a101, a110, a111 = corners(flat, corner, n0, n1, n2, wanted)
    c00, c01 = a000 + (a001 - a000) * t2, a010 + (a011 - a010) * t2
    c10, c11 = a100 + (a101 - a100) * t2, a110 + (a111 - a110) * t2
    e0, e1 = c00 + (c01 - c00) * t1, c10 + (c11 - c10) * t1
    return e0 + (e1 - e0) * t0


@triton.jit
def trilinear_with_slope(flat, corner, n0, n1, n2, t0, t1, t2, wanted):
    """The value in a cell and its derivatives along the three axes."""
    a000, a001, a010, a011, a100, a101, a110, a111 = corners(flat, corner, n0, n1, n2, wanted)
    c00, c01 = a000 + (a001 - a000) * t2, a010 + (a011 - a010) * t2
    c10, c11 = a100 + (a101 - a100) * t2, a110 + (a111 - a110) * t2
    e0, e1 = c00 + (c01 - c00) * t1, c10 + (c11 - c10) * t1
    near = (a001 - a000) + ((a011 - a010) - (a001 - a000)) * t1
    far = (a101 - a100) + ((a111 - a110) - (a101 - a100)) * t1
    along1 = (c01 - c00) + ((c11 - c10) - (c01 - c00)) * t0
    return e0 + (e1 - e0) * t0, e1 - e0, along1, near + (far - near) * t0


@triton.jit
def slope(image, x, place, size, stride, wanted):
    """The central difference along an axis on which voxel x has that place, one-sided at the border."""
    ahead = tl.load(image + (x + tl.where(place + 1 < size, stride, 0)), wanted, 0.0)
    behind = tl.load(image + (x - tl.where(place > 0, stride, 0)), wanted, 0.0)
    return (ahead - behind) * tl.where((place > 0) & (place + 1 < size), 0.5, 1.0)
