"""The kernels that read volumes at displaced positions. A value and its slopes are read in one pass, and what a read
image receives back is added up in slabs, each into memory of its own, so that no two threads write to one voxel.

Everywhere a position is `rows` (x, 1) + `vectors` u(x), rows (3, 4) and vectors (3, 3), for the voxels x of a grid."""

from __future__ import annotations

import numpy as np
from numba import prange

from stepwarp.kernels.cpu.cells import cell, trilinear, trilinear_with_slope
from stepwarp.kernels.cpu.compiled import F1, F2, F4, F5, PLACES2, TRUTH, WHOLE, compiled, inlined


@inlined
def _place_row(u, i, j, size, rows, vectors, border, shape, corners, parts, free):
    """Where row (i, j) of the grid reads: the first voxel of each cell, or -1 outside, and the parts of the way through
    it, (3, row). free: (3, row), whether the position may move along an axis without leaving the voxels' centres.

    A row at a time, because loops this simple become vector instructions, which those that follow then do as well."""
    m, v, zero, half, one = rows, vectors, np.float32(0), np.float32(0.5), np.float32(1)
    fi, fj = np.float32(i), np.float32(j)
    a0 = m[0, 0] * fi + m[0, 1] * fj + m[0, 3]
    a1 = m[1, 0] * fi + m[1, 1] * fj + m[1, 3]
    a2 = m[2, 0] * fi + m[2, 1] * fj + m[2, 3]
    z0, z1, z2 = size[0], size[1], size[2]
    s0, s1 = np.int32(shape[1] * shape[2]), np.int32(shape[2])
    for k in range(len(corners)):
        fk = np.float32(k)
        d0, d1, d2 = u[0, i, j, k], u[1, i, j, k], u[2, i, j, k]
        p0 = a0 + m[0, 2] * fk + v[0, 0] * d0 + v[0, 1] * d1 + v[0, 2] * d2
        p1 = a1 + m[1, 2] * fk + v[1, 0] * d0 + v[1, 1] * d1 + v[1, 2] * d2
        p2 = a2 + m[2, 2] * fk + v[2, 0] * d0 + v[2, 1] * d1 + v[2, 2] * d2
        low = (p0 >= -half) & (p1 >= -half) & (p2 >= -half)
        inside = border | (low & (p0 < z0 - half) & (p1 < z1 - half) & (p2 < z2 - half))
        q0, parts[0, k] = cell(p0, shape[0])
        q1, parts[1, k] = cell(p1, shape[1])
        q2, parts[2, k] = cell(p2, shape[2])
        corners[k] = q0 * s0 + q1 * s1 + q2 if inside else np.int32(-1)
        free[0, k] = (p0 > zero) & (p0 < z0 - one)
        free[1, k] = (p1 > zero) & (p1 < z1 - one)
        free[2, k] = (p2 > zero) & (p2 < z2 - one)


@compiled((F4, F4, F1, F2, F2, TRUTH, F4))
def read_values(image, u, size, rows, vectors, border, out):
    """out_c(x) = image_c(position of x)."""
    shape = image.shape[1:]
    s0, s1 = shape[1] * shape[2], shape[2]
    n2 = out.shape[3]
    for plane in prange(out.shape[1]):
        corners = np.empty(n2, np.int32)
        parts, free = np.empty((3, n2), np.float32), np.empty((3, n2), np.bool_)
        i = np.int64(plane)
        for j in range(out.shape[2]):
            _place_row(u, i, j, size, rows, vectors, border, shape, corners, parts, free)
            for c in range(out.shape[0]):
                flat, target = image[c].reshape(-1), out[c, i, j]
                for k in range(n2):
                    corner = max(corners[k], np.int32(0))
                    value = trilinear(flat, corner, s0, s1, parts[0, k], parts[1, k], parts[2, k])
                    target[k] = value if corners[k] >= 0 else np.float32(0)


@compiled((F4, F4, F1, F2, F2, TRUTH, F4, F4))
def read_slopes(image, u, size, rows, vectors, border, gradient, out):
    """out(x) = vectors^T sum_c gradient_c(x) slope_c(position of x)."""
    shape = image.shape[1:]
    s0, s1 = shape[1] * shape[2], shape[2]
    n2 = out.shape[3]
    v, zero = vectors, np.float32(0)
    for plane in prange(out.shape[1]):
        corners = np.empty(n2, np.int32)
        parts, free = np.empty((3, n2), np.float32), np.empty((3, n2), np.bool_)
        total = np.empty((3, n2), np.float32)
        i = np.int64(plane)
        for j in range(out.shape[2]):
            _place_row(u, i, j, size, rows, vectors, border, shape, corners, parts, free)
            total[:] = zero
            for c in range(gradient.shape[0]):
                flat, received = image[c].reshape(-1), gradient[c, i, j]
                for k in range(n2):
                    corner = max(corners[k], np.int32(0))
                    g = received[k] if corners[k] >= 0 else zero
                    _, e0, e1, e2 = trilinear_with_slope(flat, corner, s0, s1, parts[0, k], parts[1, k], parts[2, k])
                    total[0, k] += g * e0
                    total[1, k] += g * e1
                    total[2, k] += g * e2
            for k in range(n2):
                # Along an axis where the border's value is repeated there is no slope.
                e0 = total[0, k] if free[0, k] else zero
                e1 = total[1, k] if free[1, k] else zero
                e2 = total[2, k] if free[2, k] else zero
                out[0, i, j, k] = v[0, 0] * e0 + v[1, 0] * e1 + v[2, 0] * e2
                out[1, i, j, k] = v[0, 1] * e0 + v[1, 1] * e1 + v[2, 1] * e2
                out[2, i, j, k] = v[0, 2] * e0 + v[1, 2] * e1 + v[2, 2] * e2


@compiled((F4, F1, F2, F2, TRUTH, F4, WHOLE, F5, PLACES2))
def add_slabs(u, size, rows, vectors, border, gradient, slab, buffers, reach):
    """Each slab of planes of the gradient into its own buffer; reach: the first and last plane it wrote to."""
    shape = buffers.shape[2:]
    s0, s1 = np.uintp(shape[1] * shape[2]), np.uintp(shape[2])
    n2 = gradient.shape[3]
    one, following = np.float32(1), np.uintp(1)
    for s in prange(len(buffers)):
        corners = np.empty(n2, np.int32)
        parts, free = np.empty((3, n2), np.float32), np.empty((3, n2), np.bool_)
        lowest, highest = np.int32(shape[0] * shape[1] * shape[2]), np.int32(-1)
        for i in range(np.int64(s) * slab, min((np.int64(s) + 1) * slab, gradient.shape[1])):
            for j in range(gradient.shape[2]):
                _place_row(u, i, j, size, rows, vectors, border, shape, corners, parts, free)
                for k in range(n2):
                    lowest = min(lowest, corners[k]) if corners[k] >= 0 else lowest
                    highest = max(highest, corners[k])
                for c in range(buffers.shape[1]):
                    flat, received = buffers[s, c].reshape(-1), gradient[c, i, j]
                    for k in range(n2):
                        if corners[k] < 0:
                            continue
                        b = np.uintp(corners[k])
                        t0, t1 = parts[0, k], parts[1, k]
                        far = received[k] * parts[2, k]
                        near = received[k] - far
                        near1, far1 = near * t1, far * t1
                        near0, far0 = near - near1, far - far1
                        flat[b] += (one - t0) * near0
                        flat[b + following] += (one - t0) * far0
                        flat[b + s1] += (one - t0) * near1
                        flat[b + s1 + following] += (one - t0) * far1
                        flat[b + s0] += t0 * near0
                        flat[b + s0 + following] += t0 * far0
                        flat[b + s0 + s1] += t0 * near1
                        flat[b + s0 + s1 + following] += t0 * far1
        plane = np.int64(shape[1] * shape[2])
        reach[s, 0] = np.int64(lowest) // plane
        reach[s, 1] = np.int64(highest) // plane + 1 if highest >= 0 else -1


@compiled((F5, PLACES2, F4))
def sum_slabs(buffers, reach, out):
    """What `add_slabs` left in the buffers, added up."""
    for i in prange(out.shape[1]):
        for c in range(out.shape[0]):
            out[c, i] = np.float32(0)
            for s in range(len(buffers)):
                if reach[s, 0] <= i and i <= reach[s, 1]:
                    out[c, i] += buffers[s, c, i]
