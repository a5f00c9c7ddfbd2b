"""See `kernels.jacobian`."""

from __future__ import annotations

import numpy as np
from numba import prange
from torch import Tensor

from stepwarp.kernels.cpu.arrays import array, at_least_two, room
from stepwarp.kernels.cpu.cells import cell, trilinear_with_slope
from stepwarp.kernels.cpu.compiled import F3, F4, SINGLE, WHOLE, compiled, inlined
from stepwarp.kernels.cpu.threading_layer import slab
from stepwarp.kernels.jacobian import LEAST_VOLUME

#: The fewest planes that a thread is given at a time: it computes two more.
_SMALLEST_SLAB = 4


def determinant(displacement: Tensor, *, out: Tensor | None = None) -> Tensor:
    """A sample at a time."""
    result, target = room(out, (len(displacement), *displacement.shape[2:]))
    for u, values in zip(array(displacement), target, strict=True):
        _determinant(u, values)
    return result


def smallest_corner_determinant(displacement: Tensor, *, out: Tensor | None = None) -> Tensor:
    """A sample at a time."""
    result, target = room(out, (len(displacement), *displacement.shape[2:]))
    for u, values in zip(array(displacement), target, strict=True):
        _smallest_corner_determinant(u, values)
    return result


def volume_change_gradient(displacement: Tensor, *, out: Tensor | None = None) -> Tensor:
    """A sample at a time, in slabs of planes, so that the nine maps in between never reach the main memory."""
    result, target = room(out, tuple(displacement.shape))
    share = slab(displacement.shape[2], _SMALLEST_SLAB)
    for u, values in zip(array(displacement), target, strict=True):
        _volume_change_gradient(u, share, np.float32(LEAST_VOLUME), values)
    return result


def invert(
    displacement: Tensor,
    start: Tensor | None = None,
    iterations: int = 30,
    tolerance: float = 1e-3,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """By Newton's method at each voxel, which also converges where space is stretched."""
    result, target = room(out, tuple(displacement.shape))
    if start is None:
        np.negative(array(displacement), out=target)
    else:
        np.copyto(target, array(start))
    for u, inverse in zip(array(at_least_two(displacement)), target, strict=True):
        _invert(u, iterations, np.float32(tolerance), inverse)
    return result


@inlined
def _det3(a0, a1, a2, b0, b1, b2, c0, c1, c2):
    return a0 * (b1 * c2 - b2 * c1) - a1 * (b0 * c2 - b2 * c0) + a2 * (b0 * c1 - b1 * c0)


@compiled((F4, F3))
def _determinant(u, out):
    n0, n1, n2 = out.shape
    one = np.float32(1)
    for i in prange(n0):
        i0, i1 = max(i - 1, 0), min(i + 1, n0 - 1)
        hi = one / np.float32(max(i1 - i0, 1))
        for j in range(n1):
            j0, j1 = max(j - 1, 0), min(j + 1, n1 - 1)
            hj = one / np.float32(max(j1 - j0, 1))
            for k in range(n2):
                k0, k1 = max(k - 1, 0), min(k + 1, n2 - 1)
                hk = one / np.float32(max(k1 - k0, 1))
                out[i, j, k] = _det3(
                    one + (u[0, i1, j, k] - u[0, i0, j, k]) * hi,
                    (u[0, i, j1, k] - u[0, i, j0, k]) * hj,
                    (u[0, i, j, k1] - u[0, i, j, k0]) * hk,
                    (u[1, i1, j, k] - u[1, i0, j, k]) * hi,
                    one + (u[1, i, j1, k] - u[1, i, j0, k]) * hj,
                    (u[1, i, j, k1] - u[1, i, j, k0]) * hk,
                    (u[2, i1, j, k] - u[2, i0, j, k]) * hi,
                    (u[2, i, j1, k] - u[2, i, j0, k]) * hj,
                    one + (u[2, i, j, k1] - u[2, i, j, k0]) * hk,
                )


@compiled((F4, F3))
def _smallest_corner_determinant(u, out):
    n0, n1, n2 = out.shape
    one = np.float32(1)
    for plane in prange(n0):
        i = np.int64(plane)
        for j in range(n1):
            for k in range(n2):
                smallest, total = np.float32(np.inf), np.float32(0)
                for a in range(2):
                    # The step towards i + 1 (a = 1) or i - 1 (a = 0); at the border, the only one there is.
                    i0 = i if (a == 1 and i < n0 - 1) or i == 0 else i - 1
                    i1 = min(i0 + 1, n0 - 1)
                    for b in range(2):
                        j0 = j if (b == 1 and j < n1 - 1) or j == 0 else j - 1
                        j1 = min(j0 + 1, n1 - 1)
                        for c in range(2):
                            k0 = k if (c == 1 and k < n2 - 1) or k == 0 else k - 1
                            k1 = min(k0 + 1, n2 - 1)
                            value = _det3(
                                one + u[0, i1, j, k] - u[0, i0, j, k],
                                u[0, i, j1, k] - u[0, i, j0, k],
                                u[0, i, j, k1] - u[0, i, j, k0],
                                u[1, i1, j, k] - u[1, i0, j, k],
                                one + u[1, i, j1, k] - u[1, i, j0, k],
                                u[1, i, j, k1] - u[1, i, j, k0],
                                u[2, i1, j, k] - u[2, i0, j, k],
                                u[2, i, j1, k] - u[2, i, j0, k],
                                one + u[2, i, j, k1] - u[2, i, j, k0],
                            )
                            smallest = min(smallest, value)
                            total += value
                # A minimum drops what is not a number; a sum keeps it.
                out[i, j, k] = smallest if total == total else total


@inlined
def _flux(u, i, i0, i1, hi, j, j0, j1, hj, k, k0, k1, hk, least, out):
    """What a voxel's change of volume costs per unit of each difference in it: (1 - 1 / det^2) / 2 times the cofactor,
    with the difference's own factor."""
    one = np.float32(1)
    a0 = one + (u[0, i1, j, k] - u[0, i0, j, k]) * hi
    a1 = (u[0, i, j1, k] - u[0, i, j0, k]) * hj
    a2 = (u[0, i, j, k1] - u[0, i, j, k0]) * hk
    b0 = (u[1, i1, j, k] - u[1, i0, j, k]) * hi
    b1 = one + (u[1, i, j1, k] - u[1, i, j0, k]) * hj
    b2 = (u[1, i, j, k1] - u[1, i, j, k0]) * hk
    c0 = (u[2, i1, j, k] - u[2, i0, j, k]) * hi
    c1 = (u[2, i, j1, k] - u[2, i, j0, k]) * hj
    c2 = one + (u[2, i, j, k1] - u[2, i, j, k0]) * hk
    cofactor0, cofactor1, cofactor2 = b1 * c2 - b2 * c1, b2 * c0 - b0 * c2, b0 * c1 - b1 * c0
    det = max(a0 * cofactor0 + a1 * cofactor1 + a2 * cofactor2, least)
    weight = np.float32(0.5) * (one - one / (det * det))
    wi, wj, wk = weight * hi, weight * hj, weight * hk
    out[0, j, k], out[1, j, k], out[2, j, k] = wi * cofactor0, wj * cofactor1, wk * cofactor2
    out[3, j, k] = wi * (a2 * c1 - a1 * c2)
    out[4, j, k] = wj * (a0 * c2 - a2 * c0)
    out[5, j, k] = wk * (a1 * c0 - a0 * c1)
    out[6, j, k] = wi * (a1 * b2 - a2 * b1)
    out[7, j, k] = wj * (a2 * b0 - a0 * b2)
    out[8, j, k] = wk * (a0 * b1 - a1 * b0)


@inlined
def _flux_plane(u, i, least, out):
    n0, n1, n2 = u.shape[1:]
    one, half = np.float32(1), np.float32(0.5)
    i0, i1 = max(i - 1, 0), min(i + 1, n0 - 1)
    hi = one / np.float32(max(i1 - i0, 1))
    for j in range(n1):
        j0, j1 = max(j - 1, 0), min(j + 1, n1 - 1)
        hj = one / np.float32(max(j1 - j0, 1))
        _flux(u, i, i0, i1, hi, j, j0, j1, hj, 0, 0, min(1, n2 - 1), one, least, out)
        for k in range(1, n2 - 1):
            _flux(u, i, i0, i1, hi, j, j0, j1, hj, k, k - 1, k + 1, half, least, out)
        if n2 > 1:
            _flux(u, i, i0, i1, hi, j, j0, j1, hj, n2 - 1, n2 - 2, n2 - 1, one, least, out)


@inlined
def _gather_plane(ring, i, n0, out):
    """The adjoint of the differences: at a border they read its own voxel in place of the one beyond."""
    n1, n2 = out.shape[2:]
    one = np.float32(1)
    behind, here, ahead = ring[max(i - 1, 0) % 3], ring[i % 3], ring[min(i + 1, n0 - 1) % 3]
    sign_behind, sign_ahead = one if i > 0 else -one, -one if i < n0 - 1 else one
    for j in range(n1):
        sign_left, sign_right = one if j > 0 else -one, -one if j < n1 - 1 else one
        for c in range(3):
            target, row = out[c, i, j], here[3 * c + 2, j]
            back, front = behind[3 * c, j], ahead[3 * c, j]
            left, right = here[3 * c + 1, max(j - 1, 0)], here[3 * c + 1, min(j + 1, n1 - 1)]
            for k in range(n2):
                target[k] = sign_behind * back[k] + sign_ahead * front[k] + sign_left * left[k] + sign_right * right[k]
            for k in range(1, n2 - 1):
                target[k] += row[k - 1] - row[k + 1]
            target[0] -= row[0] + row[min(1, n2 - 1)]
            target[n2 - 1] += row[n2 - 1] + row[max(n2 - 2, 0)]


@compiled((F4, WHOLE, SINGLE, F4))
def _volume_change_gradient(u, share, least, out):
    n0, n1, n2 = u.shape[1:]
    for part in prange((n0 + share - 1) // share):
        first, last = part * share, min((part + 1) * share, n0)
        ring = np.empty((3, 9, n1, n2), np.float32)
        for i in range(max(first - 1, 0), last + 1):
            if i < n0:
                _flux_plane(u, i, least, ring[i % 3])
            if i > first:
                _gather_plane(ring, i - 1, n0, out)


@compiled((F4, WHOLE, SINGLE, F4))
def _invert(u, iterations, tolerance, v):
    """Solves v(x) + u(x + v(x)) = 0 for v in place, using the derivative of the trilinear interpolant."""
    n0, n1, n2 = u.shape[1:]
    flat = u.reshape(-1)
    s0, s1 = n1 * n2, n2
    channel = n0 * s0
    one, smallest = np.float32(1), np.float32(0.05)
    for i in prange(v.shape[1]):
        for j in range(v.shape[2]):
            for k in range(v.shape[3]):
                v0, v1, v2 = v[0, i, j, k], v[1, i, j, k], v[2, i, j, k]
                for _ in range(iterations):
                    q0, t0 = cell(np.float32(i) + v0, n0)
                    q1, t1 = cell(np.float32(j) + v1, n1)
                    q2, t2 = cell(np.float32(k) + v2, n2)
                    b = q0 * s0 + q1 * s1 + q2
                    u0, a, a1, a2 = trilinear_with_slope(flat, b, s0, s1, t0, t1, t2)
                    u1, e0, e, e2 = trilinear_with_slope(flat, b + channel, s0, s1, t0, t1, t2)
                    u2, g0, g1, g = trilinear_with_slope(flat, b + 2 * channel, s0, s1, t0, t1, t2)
                    r0, r1, r2 = v0 + u0, v1 + u1, v2 + u2
                    if max(abs(r0), abs(r1), abs(r2)) < tolerance:
                        break
                    a, e, g = a + one, e + one, g + one
                    det = _det3(a, a1, a2, e0, e, e2, g0, g1, g)
                    if det > smallest:
                        d0 = _det3(r0, a1, a2, r1, e, e2, r2, g1, g) / det
                        d1 = _det3(a, r0, a2, e0, r1, e2, g0, r2, g) / det
                        d2 = _det3(a, a1, r0, e0, e, r1, g0, g1, r2) / det
                    else:
                        d0, d1, d2 = r0, r1, r2
                    # Beyond one cell the derivative says nothing.
                    shorten = one / max(one, abs(d0), abs(d1), abs(d2))
                    v0, v1, v2 = v0 - d0 * shorten, v1 - d1 * shorten, v2 - d2 * shorten
                v[0, i, j, k], v[1, i, j, k], v[2, i, j, k] = v0, v1, v2
