"""See `kernels.sampling`. A value and its slopes are read in one pass, and what a read image receives back is added up
in slabs, each into memory of its own, so that no two threads write to one voxel.

Everywhere a position is `rows` (x, 1) + `vectors` u(x), rows (3, 4) and vectors (3, 3), for the voxels x of a grid."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numba import get_num_threads, prange
from torch import Tensor

from stepwarp.kernels.buffers import into
from stepwarp.kernels.cpu.arrays import array, at_least_two, room
from stepwarp.kernels.cpu.cells import cell, trilinear, trilinear_with_slope
from stepwarp.kernels.cpu.compiled import F1, F2, F3, F4, F5, PLACES2, SINGLE, SUMS3, TRUTH, WHOLE, compiled, inlined

#: Into so many rows a list of points is laid out, for the threads to share.
_ROWS = 64


class _Placing(NamedTuple):
    """How positions follow from a displacement, and where the image that is read ends: its size, or never."""

    size: np.ndarray
    rows: np.ndarray
    vectors: np.ndarray
    border: bool


def warp(
    image: Tensor,
    displacement: Tensor,
    matrix: Tensor,
    mode: str = "linear",
    outside: str = "zero",
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Positions are placed a row at a time."""
    return _read(image, displacement, _warping(image, matrix, outside), out)


def warp_adjoint(
    gradient: Tensor,
    wanted: tuple[bool, ...],
    image: Tensor,
    displacement: Tensor,
    matrix: Tensor,
    mode: str,
    outside: str,
) -> tuple[Tensor | None, Tensor | None]:
    """To the image and to the displacement."""
    return _read_adjoint(gradient, wanted, image, displacement, _warping(image, matrix, outside))


def sample(
    image: Tensor, coords: Tensor, mode: str = "linear", outside: str = "zero", *, out: Tensor | None = None
) -> Tensor:
    """Coordinates are a displacement of the origin; a list of them is laid out as a volume."""
    placing = _as_they_are(image, outside)
    if coords.ndim == 5:
        return _read(image, coords, placing, out)
    return into(out, _as_list(_read(image, _laid_out(coords), placing, None), coords))


def sample_adjoint(
    gradient: Tensor, wanted: tuple[bool, ...], image: Tensor, coords: Tensor, mode: str, outside: str
) -> tuple[Tensor | None, Tensor | None]:
    """To the image and to the coordinates."""
    placing = _as_they_are(image, outside)
    if coords.ndim == 5:
        return _read_adjoint(gradient, wanted, image, coords, placing)
    to_image, to_coords = _read_adjoint(_laid_out(gradient), wanted, image, _laid_out(coords), placing)
    return to_image, None if to_coords is None else _as_list(to_coords, coords)


def warp_linear(image: Tensor, matrix: Tensor, shape: tuple[int, ...], *, out: Tensor | None = None) -> Tensor:
    """As with a displacement of nothing."""
    return warp(image, torch.zeros(1, 3, *shape), matrix.detach(), out=out)


def warp_linear_adjoint(
    gradient: Tensor, wanted: tuple[bool, ...], image: Tensor, matrix: Tensor, shape: tuple[int, ...]
) -> tuple[None, Tensor]:
    """To the matrix."""
    placing = _warping(image, matrix, "zero")
    planes = np.empty((gradient.shape[2], 3, 4))
    _matrix_gradient(array(at_least_two(image))[0, 0], placing.size, placing.rows, array(gradient)[0, 0], planes)
    result = torch.zeros_like(matrix)
    result[:3] = torch.from_numpy(planes.sum(0))
    return None, result


def compose_step(
    displacement: Tensor, step: Tensor, scale: Tensor | float, longest: float, *, out: Tensor | None = None
) -> Tensor:
    """A sample at a time."""
    result, target = room(out, tuple(step.shape))
    for u, v, values in zip(array(at_least_two(displacement)), array(step), target, strict=True):
        _compose_step(u, v, np.float32(float(scale)), np.float32(longest), values)
    return result


def scaled_gradient(factor: Tensor, image: Tensor, *, out: Tensor | None = None) -> Tensor:
    """A sample at a time."""
    result, target = room(out, (len(image), 3, *image.shape[2:]))
    for f, values, slopes in zip(array(factor), array(image), target, strict=True):
        _scaled_gradient(f[0], values[0], slopes)
    return result


def _warping(image: Tensor, matrix: Tensor, outside: str) -> _Placing:
    rows = array(matrix.double())[:3].astype(np.float32)
    size = np.array(image.shape[2:], np.float32)
    return _Placing(size, rows, np.ascontiguousarray(rows[:, :3]), outside == "border")


def _as_they_are(image: Tensor, outside: str) -> _Placing:
    size = np.array(image.shape[2:], np.float32)
    return _Placing(size, np.zeros((3, 4), np.float32), np.eye(3, dtype=np.float32), outside == "border")


def _laid_out(points: Tensor) -> Tensor:
    """(B, C, *any) -> (B, C, rows, 1, points of a row), with zeros at the end."""
    flat = points.flatten(2)
    return torch.nn.functional.pad(flat, (0, -flat.shape[2] % _ROWS)).unflatten(2, (_ROWS, 1, -1))


def _as_list(values: Tensor, points: Tensor) -> Tensor:
    """Back from there: (B, C, rows, 1, n) -> (B, C, *any)."""
    shape = points.shape[2:]
    return values.flatten(2)[..., : shape.numel()].unflatten(2, shape)


def _both(image: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
    """A batch of one on either side serves all of the other."""
    batch = max(len(image), len(displacement))
    image, displacement = (t.expand(batch, *t.shape[1:]) for t in (at_least_two(image), displacement))
    return image, displacement


def _read(image: Tensor, displacement: Tensor, placing: _Placing, out: Tensor | None) -> Tensor:
    """Images (B, C, *grid) at the displaced positions of another grid, (B, C, *out)."""
    image, displacement = _both(image, displacement)
    result, target = room(out, (*image.shape[:2], *displacement.shape[2:]))
    for i, u, values in zip(image, displacement, target, strict=True):
        _read_values(array(i), array(u), *placing, values)
    return result


def _read_adjoint(
    gradient: Tensor, wanted: tuple[bool, ...], image: Tensor, displacement: Tensor, placing: _Placing
) -> tuple[Tensor | None, Tensor | None]:
    """Of what was read for several samples, or repeated to be read, the sum."""
    images, displacements = _both(image, displacement)
    to_image = np.empty(images.shape, np.float32) if wanted[0] else None
    to_displacement = np.empty(displacements.shape, np.float32) if wanted[1] else None
    for n, (i, u, g) in enumerate(zip(images, displacements, gradient, strict=True)):
        if to_image is not None:
            _add_back(array(u), array(g), placing, to_image[n])
        if to_displacement is not None:
            _read_slopes(array(i), array(u), *placing, array(g), to_displacement[n])
    return (
        None if to_image is None else torch.from_numpy(to_image).sum_to_size(image.shape),
        None if to_displacement is None else torch.from_numpy(to_displacement).sum_to_size(displacement.shape),
    )


def _add_back(displacement: np.ndarray, gradient: np.ndarray, placing: _Placing, out: np.ndarray) -> None:
    """The adjoint of the reading: `gradient` (C, *out grid) spread over the voxels that were read, into `out`."""
    slab = math.ceil(gradient.shape[1] / get_num_threads())
    slabs = math.ceil(gradient.shape[1] / slab)
    # numpy's zeros cost nothing until they are written to, and a slab's voxels read but few planes around it.
    buffers = np.zeros((slabs, *out.shape), np.float32)
    reach = np.empty((slabs, 2), np.int64)
    _add_slabs(displacement, *placing, gradient, slab, buffers, reach)
    _sum_slabs(buffers, reach, out)


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
def _read_values(image, u, size, rows, vectors, border, out):
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
def _read_slopes(image, u, size, rows, vectors, border, gradient, out):
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
def _add_slabs(u, size, rows, vectors, border, gradient, slab, buffers, reach):
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
def _sum_slabs(buffers, reach, out):
    for i in prange(out.shape[1]):
        for c in range(out.shape[0]):
            out[c, i] = np.float32(0)
            for s in range(len(buffers)):
                if reach[s, 0] <= i and i <= reach[s, 1]:
                    out[c, i] += buffers[s, c, i]


@compiled((F3, F1, F2, F3, SUMS3))
def _matrix_gradient(image, size, m, weight, planes):
    """For each plane of the grid, the sum over its voxels x of weight(x) slope(m x) (x, 1)^T: (planes, 3, 4)."""
    n0, n1, n2 = image.shape
    flat = image.reshape(-1)
    s0, s1 = n1 * n2, n2
    zero, one = np.float32(0), np.float32(1)
    end0, end1, end2 = size[0] - one, size[1] - one, size[2] - one
    for i in prange(weight.shape[0]):
        total = np.zeros((3, 4))
        for j in range(weight.shape[1]):
            fi, fj = np.float32(i), np.float32(j)
            a0 = m[0, 0] * fi + m[0, 1] * fj + m[0, 3]
            a1 = m[1, 0] * fi + m[1, 1] * fj + m[1, 3]
            a2 = m[2, 0] * fi + m[2, 1] * fj + m[2, 3]
            sum0, sum1, sum2, along0, along1, along2 = zero, zero, zero, zero, zero, zero
            for k in range(weight.shape[2]):
                fk = np.float32(k)
                p0, p1, p2 = a0 + m[0, 2] * fk, a1 + m[1, 2] * fk, a2 + m[2, 2] * fk
                q0, t0 = cell(p0, n0)
                q1, t1 = cell(p1, n1)
                q2, t2 = cell(p2, n2)
                _, g0, g1, g2 = trilinear_with_slope(flat, q0 * s0 + q1 * s1 + q2, s0, s1, t0, t1, t2)
                # No slope outside, nor where the border's value is repeated.
                in0, in1, in2 = (p0 >= zero) & (p0 <= end0), (p1 >= zero) & (p1 <= end1), (p2 >= zero) & (p2 <= end2)
                w = weight[i, j, k] if in0 & in1 & in2 else zero
                g0, g1, g2 = w * g0, w * g1, w * g2
                sum0, sum1, sum2 = sum0 + g0, sum1 + g1, sum2 + g2
                along0, along1, along2 = along0 + g0 * fk, along1 + g1 * fk, along2 + g2 * fk
            for a in range(3):
                whole = sum0 if a == 0 else (sum1 if a == 1 else sum2)
                total[a, 0] += whole * fi
                total[a, 1] += whole * fj
                total[a, 2] += along0 if a == 0 else (along1 if a == 1 else along2)
                total[a, 3] += whole
        planes[i] = total


@compiled((F4, F4, SINGLE, SINGLE, F4))
def _compose_step(u, v, scale, longest, out):
    """out(x) = s(x) + u(x + s(x)) with s = scale v, shortened where longer than `longest`."""
    n0, n1, n2 = u.shape[1:]
    flat = u.reshape(-1)
    s0, s1 = n1 * n2, n2
    channel = n0 * s0
    one, tiny = np.float32(1), np.float32(1e-12)
    for i in prange(out.shape[1]):
        for j in range(out.shape[2]):
            for k in range(out.shape[3]):
                d0, d1, d2 = v[0, i, j, k] * scale, v[1, i, j, k] * scale, v[2, i, j, k] * scale
                shorten = min(one, longest / np.sqrt(d0 * d0 + d1 * d1 + d2 * d2 + tiny))
                d0, d1, d2 = d0 * shorten, d1 * shorten, d2 * shorten
                q0, t0 = cell(np.float32(i) + d0, n0)
                q1, t1 = cell(np.float32(j) + d1, n1)
                q2, t2 = cell(np.float32(k) + d2, n2)
                for c in range(3):
                    value = trilinear(flat, c * channel + q0 * s0 + q1 * s1 + q2, s0, s1, t0, t1, t2)
                    out[c, i, j, k] = value + (d0 if c == 0 else (d1 if c == 1 else d2))


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
