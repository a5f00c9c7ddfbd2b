"""See `kernels.sampling`. The samples of a batch are shared among the threads, so that what a read image receives back
is added up without two threads at one voxel. Both derivatives are found in one pass.

Everywhere a position is `rows` (x, 1) + `vectors` u(x), rows (2, 3) and vectors (2, 2), for the pixels x of a grid."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from stepwarp.kernels.cpu.arrays import array, at_least_two, room
from stepwarp.kernels.cpu.cells import cell
from stepwarp.kernels.cpu.compiled import F1, F2, F4, TRUTH, compiled, inlined


def warp(
    image: Tensor,
    displacement: Tensor,
    matrix: Tensor,
    mode: str = "linear",
    outside: str = "zero",
    *,
    out: Tensor | None = None,
) -> Tensor:
    """A sample at a time for each thread."""
    placing = _placing(image, matrix, outside)
    image, displacement = _both(image, displacement)
    result, target = room(out, (*image.shape[:2], *displacement.shape[2:]))
    _read_values(array(image), array(displacement), *placing, target)
    return result


def warp_adjoint(
    gradient: Tensor,
    wanted: tuple[bool, ...],
    image: Tensor,
    displacement: Tensor,
    matrix: Tensor,
    mode: str,
    outside: str,
) -> tuple[Tensor | None, Tensor]:
    """To the image, if that is wanted, and to the displacement."""
    images, displacements = _both(image, displacement)
    to_displacement = np.empty(displacements.shape, np.float32)
    to_image = np.zeros(images.shape if wanted[0] else (len(images), 0, *images.shape[2:]), np.float32)
    placing = _placing(image, matrix, outside)
    _read_back(array(images), array(displacements), *placing, array(gradient), to_image, to_displacement)
    return (
        torch.from_numpy(to_image).sum_to_size(image.shape) if wanted[0] else None,
        torch.from_numpy(to_displacement).sum_to_size(displacement.shape),
    )


def _placing(image: Tensor, matrix: Tensor, outside: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """The image's size, the rows, the vectors, and whether values go on beyond the border."""
    rows = array(matrix.double())[:2].astype(np.float32)
    return np.array(image.shape[2:], np.float32), rows, np.ascontiguousarray(rows[:, :2]), outside == "border"


def _both(image: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
    """A batch of one on either side serves all of the other."""
    batch = max(len(image), len(displacement))
    image, displacement = (t.expand(batch, *t.shape[1:]) for t in (at_least_two(image), displacement))
    return image, displacement


@inlined
def _place_row(u, i, size, rows, vectors, border, shape, corners, parts, share):
    """Where row i reads: the first pixel of each cell and the parts of the way through it (2, row). share: (3, row), 1
    or 0: whether there is a value at all, and whether the position may move along an axis within the pixels' centres.

    A row at a time, because loops this simple become vector instructions."""
    m, v, zero, half, one = rows, vectors, np.float32(0), np.float32(0.5), np.float32(1)
    z0, z1, fi = size[0], size[1], np.float32(i)
    for k in range(len(corners)):
        fk, d0, d1 = np.float32(k), u[0, i, k], u[1, i, k]
        p0 = m[0, 0] * fi + m[0, 1] * fk + m[0, 2] + v[0, 0] * d0 + v[0, 1] * d1
        p1 = m[1, 0] * fi + m[1, 1] * fk + m[1, 2] + v[1, 0] * d0 + v[1, 1] * d1
        q0, parts[0, k] = cell(p0, shape[0])
        q1, parts[1, k] = cell(p1, shape[1])
        corners[k] = q0 * np.int32(shape[1]) + q1
        inside = border | ((p0 >= -half) & (p1 >= -half) & (p0 < z0 - half) & (p1 < z1 - half))
        share[0, k] = one if inside else zero
        share[1, k] = one if (p0 > zero) & (p0 < z0 - one) else zero
        share[2, k] = one if (p1 > zero) & (p1 < z1 - one) else zero


@compiled((F4, F4, F1, F2, F2, TRUTH, F4))
def _read_values(image, u, size, rows, vectors, border, out):
    shape = image.shape[2:]
    n, across, down = out.shape[3], np.uintp(1), np.uintp(image.shape[3])
    for sample in prange(len(image)):
        corners, parts, share = np.empty(n, np.int32), np.empty((2, n), np.float32), np.empty((3, n), np.float32)
        for i in range(out.shape[2]):
            _place_row(u[sample], i, size, rows, vectors, border, shape, corners, parts, share)
            for channel in range(image.shape[1]):
                flat, target = image[sample, channel].reshape(-1), out[sample, channel, i]
                for k in range(n):
                    b = np.uintp(corners[k])
                    left = flat[b] + parts[0, k] * (flat[b + down] - flat[b])
                    far = flat[b + across]
                    right = far + parts[0, k] * (flat[b + down + across] - far)
                    target[k] = share[0, k] * (left + parts[1, k] * (right - left))


@compiled((F4, F4, F1, F2, F2, TRUTH, F4, F4, F4))
def _read_back(image, u, size, rows, vectors, border, gradient, to_image, to_u):
    """What the displacement receives, and the image too where `to_image` has channels."""
    shape, v = image.shape[2:], vectors
    n, across, down = u.shape[3], np.uintp(1), np.uintp(image.shape[3])
    for sample in prange(len(image)):
        corners, parts, share = np.empty(n, np.int32), np.empty((2, n), np.float32), np.empty((3, n), np.float32)
        for i in range(u.shape[2]):
            _place_row(u[sample], i, size, rows, vectors, border, shape, corners, parts, share)
            down_slope, across_slope = to_u[sample, 0, i], to_u[sample, 1, i]
            down_slope[:] = np.float32(0)
            across_slope[:] = np.float32(0)
            for channel in range(image.shape[1]):
                flat, received = image[sample, channel].reshape(-1), gradient[sample, channel, i]
                for k in range(n):
                    b = np.uintp(corners[k])
                    near, far, low = flat[b], flat[b + across], flat[b + down]
                    twist = flat[b + down + across] - far - low + near
                    # Along an axis where the border's value is repeated there is no slope.
                    g = share[0, k] * received[k]
                    down_slope[k] += share[1, k] * g * (low - near + parts[1, k] * twist)
                    across_slope[k] += share[2, k] * g * (far - near + parts[0, k] * twist)
            for k in range(n):
                e0, e1 = down_slope[k], across_slope[k]
                down_slope[k] = v[0, 0] * e0 + v[1, 0] * e1
                across_slope[k] = v[0, 1] * e0 + v[1, 1] * e1
            for channel in range(to_image.shape[1]):
                flat, received = to_image[sample, channel].reshape(-1), gradient[sample, channel, i]
                for k in range(n):
                    b = np.uintp(corners[k])
                    g = share[0, k] * received[k]
                    low = g * parts[0, k]
                    near = g - low
                    flat[b] += near - near * parts[1, k]
                    flat[b + across] += near * parts[1, k]
                    flat[b + down] += low - low * parts[1, k]
                    flat[b + down + across] += low * parts[1, k]
