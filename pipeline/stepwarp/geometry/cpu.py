"""Compiled CPU kernels (numba) for the functions of `smoothing` and `jacobian`, and what all kernels share: 3D float32.

They exist because registration is bound by memory traffic: each reads its inputs once, keeps nothing in between, and
uses every core for one sample of a batch after the other. The plain torch implementations are the reference they are
tested against."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from stepwarp.geometry.kernels import F1, F3, F4, SINGLE, WHOLE, compiled, inlined


def array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as a C-contiguous array; copies only what is not contiguous."""
    return tensor.detach().contiguous().numpy()


class Smooth(torch.autograd.Function):
    """See `smoothing.convolve_axes`: the same odd, symmetric kernel along the three axes, border values repeated."""

    @staticmethod
    def forward(ctx, field: Tensor, kernel: Tensor) -> Tensor:
        ctx.kernel = kernel
        return _smooth(field, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        # The adjoint of repeating the border is to add up what went beyond it.
        radius = len(ctx.kernel) // 2
        wide = _smooth(torch.nn.functional.pad(gradient, [radius] * 6), ctx.kernel)
        for axis in range(2, 5):
            n = wide.shape[axis] - 2 * radius
            beyond = [wide.narrow(axis, start, radius).sum(axis) for start in (0, n + radius)]
            wide = wide.narrow(axis, radius, n)
            wide.select(axis, 0).add_(beyond[0])
            wide.select(axis, n - 1).add_(beyond[1])
        return wide, None


def _smooth(field: Tensor, kernel: Tensor) -> Tensor:
    weights = array(kernel.float())
    source = array(field.flatten(0, 1))
    planes = np.empty_like(source)
    _smooth_planes(source, weights, planes)
    out = np.empty_like(source)
    _smooth_across(planes, weights, out)
    return torch.from_numpy(out).view(field.shape)


def scaled_gradient(factor: Tensor, image: Tensor) -> Tensor:
    """See `sampling.scaled_gradient`."""
    out = np.empty((len(image), 3, *image.shape[2:]), np.float32)
    for f, values, target in zip(array(factor), array(image), out, strict=True):
        _scaled_gradient(f[0], values[0], target)
    return torch.from_numpy(out)


def determinant(displacement: Tensor) -> Tensor:
    """See `jacobian.determinant`."""
    out = np.empty((len(displacement), *displacement.shape[2:]), np.float32)
    for u, target in zip(array(displacement), out, strict=True):
        _determinant(u, target)
    return torch.from_numpy(out)


def smallest_corner_determinant(displacement: Tensor) -> Tensor:
    """See `jacobian.smallest_corner_determinant`."""
    out = np.empty((len(displacement), *displacement.shape[2:]), np.float32)
    for u, target in zip(array(displacement), out, strict=True):
        _smallest_corner_determinant(u, target)
    return torch.from_numpy(out)


def invert(displacement: Tensor, start: Tensor, iterations: int, tolerance: float) -> Tensor:
    """See `jacobian.invert`; here by Newton's method at each voxel, which also converges where space is stretched."""
    out = np.array(array(start))
    for u, inverse in zip(array(at_least_two(displacement)), out, strict=True):
        _invert(u, iterations, np.float32(tolerance), inverse)
    return torch.from_numpy(out)


def at_least_two(tensor: Tensor) -> Tensor:
    """Repeats the voxel of an axis of one, because the kernels read the two neighbours of every position."""
    for axis in range(2, tensor.ndim):
        if tensor.shape[axis] == 1:
            tensor = tensor.repeat_interleave(2, axis)
    return tensor


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


@compiled((F3, F3, F4))
def _scaled_gradient(factor, image, out):
    """factor(x) times the central difference of the image, one-sided at the border."""
    n0, n1, n2 = image.shape
    half = np.float32(0.5)
    for i in prange(n0):
        i0, i1 = max(i - 1, 0), min(i + 1, n0 - 1)
        hi = half if i1 - i0 == 2 else np.float32(1)
        for j in range(n1):
            j0, j1 = max(j - 1, 0), min(j + 1, n1 - 1)
            hj = half if j1 - j0 == 2 else np.float32(1)
            for k in range(n2):
                out[0, i, j, k] = factor[i, j, k] * (image[i1, j, k] - image[i0, j, k]) * hi
                out[1, i, j, k] = factor[i, j, k] * (image[i, j1, k] - image[i, j0, k]) * hj
            for k in range(1, n2 - 1):
                out[2, i, j, k] = factor[i, j, k] * (image[i, j, k + 1] - image[i, j, k - 1]) * half
            last = n2 - 1
            out[2, i, j, 0] = factor[i, j, 0] * (image[i, j, min(1, last)] - image[i, j, 0])
            out[2, i, j, last] = factor[i, j, last] * (image[i, j, last] - image[i, j, max(last - 1, 0)])


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
