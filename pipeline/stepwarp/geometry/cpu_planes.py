"""The compiled CPU kernel of `sampling.warp` for batches of small planes, float32, with its derivatives.

The samples of a batch are shared among the threads, so that what a read image receives back is added up without two
threads at one voxel. Both derivatives are found in one pass."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from stepwarp.geometry.cpu import array, at_least_two, cell
from stepwarp.geometry.kernels import F1, F4, TRUTH, compiled, inlined


def warp(image: Tensor, displacement: Tensor, border: bool) -> Tensor:
    """`image` (B, C, *grid) read at x + u(x), for u (B, 2, *grid) of the same grid; see `sampling.warp`."""
    batch = max(len(image), len(displacement))
    size = np.array(image.shape[2:], np.float32)
    image, displacement = (t.expand(batch, *t.shape[1:]) for t in (at_least_two(image), displacement))
    return _Read.apply(image, displacement, size, border)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image: Tensor, displacement: Tensor, size: np.ndarray, border: bool) -> Tensor:
        ctx.save_for_backward(image, displacement)
        ctx.placing = size, border
        out = np.empty((*image.shape[:2], *displacement.shape[2:]), np.float32)
        _read_values(array(image), array(displacement), size, border, out)
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        image, displacement = ctx.saved_tensors
        to_displacement = np.empty(displacement.shape, np.float32)
        wanted = ctx.needs_input_grad[0]
        to_image = np.zeros(image.shape if wanted else (len(image), 0, *image.shape[2:]), np.float32)
        size, border = ctx.placing
        _read_back(array(image), array(displacement), size, border, array(gradient), to_image, to_displacement)
        return torch.from_numpy(to_image) if wanted else None, torch.from_numpy(to_displacement), None, None


@inlined
def _place_row(u, i, size, border, shape, corners, parts, share):
    """Where row i reads: the first pixel of each cell and the parts of the way through it (2, row). share: (3, row), 1
    or 0: whether there is a value at all, and whether the position may move along an axis within the pixels' centres.

    A row at a time, because loops this simple become vector instructions."""
    zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
    z0, z1 = size[0], size[1]
    for k in range(len(corners)):
        p0, p1 = np.float32(i) + u[0, i, k], np.float32(k) + u[1, i, k]
        q0, parts[0, k] = cell(p0, shape[0])
        q1, parts[1, k] = cell(p1, shape[1])
        corners[k] = q0 * np.int32(shape[1]) + q1
        inside = border | ((p0 >= -half) & (p1 >= -half) & (p0 < z0 - half) & (p1 < z1 - half))
        share[0, k] = one if inside else zero
        share[1, k] = one if (p0 > zero) & (p0 < z0 - one) else zero
        share[2, k] = one if (p1 > zero) & (p1 < z1 - one) else zero


@compiled((F4, F4, F1, TRUTH, F4))
def _read_values(image, u, size, border, out):
    shape = image.shape[2:]
    n, across, down = out.shape[3], np.uintp(1), np.uintp(image.shape[3])
    for sample in prange(len(image)):
        corners, parts, share = np.empty(n, np.int32), np.empty((2, n), np.float32), np.empty((3, n), np.float32)
        for i in range(out.shape[2]):
            _place_row(u[sample], i, size, border, shape, corners, parts, share)
            for channel in range(image.shape[1]):
                flat, target = image[sample, channel].reshape(-1), out[sample, channel, i]
                for k in range(n):
                    b = np.uintp(corners[k])
                    left = flat[b] + parts[0, k] * (flat[b + down] - flat[b])
                    far = flat[b + across]
                    right = far + parts[0, k] * (flat[b + down + across] - far)
                    target[k] = share[0, k] * (left + parts[1, k] * (right - left))


@compiled((F4, F4, F1, TRUTH, F4, F4, F4))
def _read_back(image, u, size, border, gradient, to_image, to_u):
    """What the displacement receives, and the image too where `to_image` has channels."""
    shape = image.shape[2:]
    n, across, down = u.shape[3], np.uintp(1), np.uintp(image.shape[3])
    for sample in prange(len(image)):
        corners, parts, share = np.empty(n, np.int32), np.empty((2, n), np.float32), np.empty((3, n), np.float32)
        for i in range(u.shape[2]):
            _place_row(u[sample], i, size, border, shape, corners, parts, share)
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
