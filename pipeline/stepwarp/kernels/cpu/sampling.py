"""See `kernels.sampling`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor

from stepwarp.kernels.buffers import into
from stepwarp.kernels.cpu.arrays import array, at_least_two, room
from stepwarp.kernels.cpu.cells import cell, trilinear, trilinear_with_slope
from stepwarp.kernels.cpu.compiled import F1, F3, F4, SINGLE, SUMS3, TRUTH, compiled
from stepwarp.kernels.cpu.reading import add_slabs, read_slopes, read_values, sum_slabs
from stepwarp.kernels.cpu.threading_layer import slab

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


def warp_linear(
    image: Tensor, matrix: Tensor, shape: tuple[int, ...], outside: str = "zero", *, out: Tensor | None = None
) -> Tensor:
    """Planes of all grids are shared by the threads."""
    result, target = room(out, (len(matrix), 1, *shape))
    _read_linear(*_linear(image, matrix, outside), target[:, 0])
    return result


def warp_linear_adjoint(
    gradient: Tensor, wanted: tuple[bool, ...], image: Tensor, matrix: Tensor, shape: tuple[int, ...], outside: str
) -> tuple[None, Tensor]:
    """To the matrix."""
    planes = np.empty((len(matrix) * shape[0], 3, 4))
    _matrix_gradient(*_linear(image, matrix, outside), array(gradient)[:, 0], planes)
    result = torch.zeros_like(matrix)
    result[:, :3] = torch.from_numpy(planes.reshape(len(matrix), shape[0], 3, 4).sum(1))
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
    rows = array(matrix.float())[:3]
    size = np.array(image.shape[2:], np.float32)
    return _Placing(size, rows, np.ascontiguousarray(rows[:, :3]), outside == "border")


def _linear(image: Tensor, matrix: Tensor, outside: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """The image, its size, the rows of every matrix, and whether values go on beyond the border."""
    rows = np.ascontiguousarray(array(matrix.float())[:, :3])
    return array(at_least_two(image))[0, 0], np.array(image.shape[2:], np.float32), rows, outside == "border"


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
        read_values(array(i), array(u), *placing, values)
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
            read_slopes(array(i), array(u), *placing, array(g), to_displacement[n])
    return (
        None if to_image is None else torch.from_numpy(to_image).sum_to_size(image.shape),
        None if to_displacement is None else torch.from_numpy(to_displacement).sum_to_size(displacement.shape),
    )


def _add_back(displacement: np.ndarray, gradient: np.ndarray, placing: _Placing, out: np.ndarray) -> None:
    """The adjoint of the reading: `gradient` (C, *out grid) spread over the voxels that were read, into `out`."""
    share = slab(gradient.shape[1])
    shares = math.ceil(gradient.shape[1] / share)
    # numpy's zeros cost nothing until they are written to, and a share's voxels read but few planes around it.
    buffers = np.zeros((shares, *out.shape), np.float32)
    reach = np.empty((shares, 2), np.int64)
    add_slabs(displacement, *placing, gradient, share, buffers, reach)
    sum_slabs(buffers, reach, out)


@compiled((F3, F1, F3, TRUTH, F4))
def _read_linear(image, size, rows, border, out):
    """out[n](x) = image(rows[n] (x, 1))."""
    n0, n1, n2 = image.shape
    flat = image.reshape(-1)
    s0, s1 = n1 * n2, n2
    half = np.float32(0.5)
    end0, end1, end2 = size[0] - half, size[1] - half, size[2] - half
    for plane in prange(len(out) * out.shape[1]):
        n, i = np.int64(plane) // out.shape[1], np.int64(plane) % out.shape[1]
        m = rows[n]
        for j in range(out.shape[2]):
            fi, fj = np.float32(i), np.float32(j)
            a0 = m[0, 0] * fi + m[0, 1] * fj + m[0, 3]
            a1 = m[1, 0] * fi + m[1, 1] * fj + m[1, 3]
            a2 = m[2, 0] * fi + m[2, 1] * fj + m[2, 3]
            for k in range(out.shape[3]):
                fk = np.float32(k)
                p0, p1, p2 = a0 + m[0, 2] * fk, a1 + m[1, 2] * fk, a2 + m[2, 2] * fk
                q0, t0 = cell(p0, n0)
                q1, t1 = cell(p1, n1)
                q2, t2 = cell(p2, n2)
                value = trilinear(flat, q0 * s0 + q1 * s1 + q2, s0, s1, t0, t1, t2)
                low = (p0 >= -half) & (p1 >= -half) & (p2 >= -half)
                inside = border | (low & (p0 < end0) & (p1 < end1) & (p2 < end2))
                out[n, i, j, k] = value if inside else np.float32(0)


@compiled((F3, F1, F3, TRUTH, F4, SUMS3))
def _matrix_gradient(image, size, rows, border, weight, planes):
    """For each plane of each grid n, the sum over its voxels x of weight[n](x) slope(rows[n] (x, 1)) (x, 1)^T: (grids
    times planes, 3, 4)."""
    n0, n1, n2 = image.shape
    flat = image.reshape(-1)
    s0, s1 = n1 * n2, n2
    zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
    z0, z1, z2 = size[0], size[1], size[2]
    for plane in prange(len(planes)):
        n, i = np.int64(plane) // weight.shape[1], np.int64(plane) % weight.shape[1]
        m = rows[n]
        total = np.zeros((3, 4))
        for j in range(weight.shape[2]):
            fi, fj = np.float32(i), np.float32(j)
            a0 = m[0, 0] * fi + m[0, 1] * fj + m[0, 3]
            a1 = m[1, 0] * fi + m[1, 1] * fj + m[1, 3]
            a2 = m[2, 0] * fi + m[2, 1] * fj + m[2, 3]
            sum0, sum1, sum2, along0, along1, along2 = zero, zero, zero, zero, zero, zero
            for k in range(weight.shape[3]):
                fk = np.float32(k)
                p0, p1, p2 = a0 + m[0, 2] * fk, a1 + m[1, 2] * fk, a2 + m[2, 2] * fk
                q0, t0 = cell(p0, n0)
                q1, t1 = cell(p1, n1)
                q2, t2 = cell(p2, n2)
                _, g0, g1, g2 = trilinear_with_slope(flat, q0 * s0 + q1 * s1 + q2, s0, s1, t0, t1, t2)
                low = (p0 >= -half) & (p1 >= -half) & (p2 >= -half)
                inside = border | (low & (p0 < z0 - half) & (p1 < z1 - half) & (p2 < z2 - half))
                w = weight[n, i, j, k] if inside else zero
                # Along an axis where the border's value is repeated there is no slope.
                g0 = w * g0 if (p0 > zero) & (p0 < z0 - one) else zero
                g1 = w * g1 if (p1 > zero) & (p1 < z1 - one) else zero
                g2 = w * g2 if (p2 > zero) & (p2 < z2 - one) else zero
                sum0, sum1, sum2 = sum0 + g0, sum1 + g1, sum2 + g2
                along0, along1, along2 = along0 + g0 * fk, along1 + g1 * fk, along2 + g2 * fk
            for a in range(3):
                whole = sum0 if a == 0 else (sum1 if a == 1 else sum2)
                total[a, 0] += whole * fi
                total[a, 1] += whole * fj
                total[a, 2] += along0 if a == 0 else (along1 if a == 1 else along2)
                total[a, 3] += whole
        planes[plane] = total


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
