"""See `kernels.jacobian`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stepwarp.kernels.gpu.cells import cell, channel, index, slope, trilinear_with_slope
from stepwarp.kernels.gpu.launching import launch, room
from stepwarp.kernels.jacobian import LEAST_VOLUME


def determinant(displacement: Tensor, *, out: Tensor | None = None) -> Tensor:
    """By the nine differences at a voxel."""
    result = room(out, (len(displacement), *displacement.shape[2:]), displacement)
    launch(_determinant, *_extent(displacement), displacement.contiguous(), result, *displacement.shape[2:])
    return result


def smallest_corner_determinant(displacement: Tensor, *, out: Tensor | None = None) -> Tensor:
    """By the eighteen differences at a voxel."""
    result = room(out, (len(displacement), *displacement.shape[2:]), displacement)
    launch(_smallest_corner, *_extent(displacement), displacement.contiguous(), result, *displacement.shape[2:])
    return result


def volume_change_gradient(displacement: Tensor, *, out: Tensor | None = None) -> Tensor:
    """In two passes: what each difference costs, and from there back to the voxels that it was taken of."""
    result = room(out, tuple(displacement.shape), displacement)
    shape = displacement.shape[2:]
    costs = torch.empty(len(displacement), 9, *shape, device=displacement.device)
    launch(_costs, *_extent(displacement), displacement.contiguous(), costs, *shape, least=LEAST_VOLUME)
    launch(_costs_to_voxels, *_extent(displacement), costs, result, *shape)
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
    result = room(out, tuple(displacement.shape), displacement)
    start = (-displacement if start is None else start).contiguous()
    given = (displacement.contiguous(), start, result, *displacement.shape[2:], iterations, float(tolerance))
    launch(_invert, *_extent(displacement), *given)
    return result


def _extent(displacement: Tensor) -> tuple[int, int]:
    """Voxels and samples."""
    return displacement.shape[2:].numel(), len(displacement)


@triton.jit
def _det3(a0, a1, a2, b0, b1, b2, c0, c1, c2):
    return a0 * (b1 * c2 - b2 * c1) - a1 * (b0 * c2 - b2 * c0) + a2 * (b0 * c1 - b1 * c0)


@triton.jit
def _central(u, x, voxels, place, size, stride, wanted):
    """The three components' central differences along an axis."""
    d0 = slope(u, x, place, size, stride, wanted)
    d1 = slope(channel(u, 1, voxels), x, place, size, stride, wanted)
    d2 = slope(channel(u, 2, voxels), x, place, size, stride, wanted)
    return d0, d1, d2


@triton.jit
def _sides(u, x, place, size, stride, wanted):
    """A component's differences towards both neighbours along an axis; at the border the one there is, twice."""
    here = tl.load(u + x, wanted, 0.0)
    ahead = tl.load(u + (x + tl.where(place + 1 < size, stride, 0)), wanted, 0.0) - here
    behind = here - tl.load(u + (x - tl.where(place > 0, stride, 0)), wanted, 0.0)
    return tl.where(place + 1 < size, ahead, behind), tl.where(place > 0, behind, ahead)


@triton.jit
def _determinant(u, out, n0, n1, n2, block: tl.constexpr):
    x = tl.program_id(0) * block + tl.arange(0, block)
    voxels, sample = n0 * n1 * n2, tl.program_id(1)
    u, out = channel(u, 3 * sample, voxels), channel(out, sample, voxels)
    wanted = x < voxels
    i, j, k = index(x, n1, n2)
    a0, b0, c0 = _central(u, x, voxels, i, n0, n1 * n2, wanted)
    a1, b1, c1 = _central(u, x, voxels, j, n1, n2, wanted)
    a2, b2, c2 = _central(u, x, voxels, k, n2, 1, wanted)
    tl.store(out + x, _det3(1 + a0, a1, a2, b0, 1 + b1, b2, c0, c1, 1 + c2), wanted)


@triton.jit
def _smallest_corner(u, out, n0, n1, n2, block: tl.constexpr):
    x = tl.program_id(0) * block + tl.arange(0, block)
    voxels, sample = n0 * n1 * n2, tl.program_id(1)
    u, out = channel(u, 3 * sample, voxels), channel(out, sample, voxels)
    v, w = channel(u, 1, voxels), channel(u, 2, voxels)
    wanted = x < voxels
    i, j, k = index(x, n1, n2)
    a0, p0 = _sides(u, x, i, n0, n1 * n2, wanted)
    a1, p1 = _sides(u, x, j, n1, n2, wanted)
    a2, p2 = _sides(u, x, k, n2, 1, wanted)
    b0, q0 = _sides(v, x, i, n0, n1 * n2, wanted)
    b1, q1 = _sides(v, x, j, n1, n2, wanted)
    b2, q2 = _sides(v, x, k, n2, 1, wanted)
    c0, r0 = _sides(w, x, i, n0, n1 * n2, wanted)
    c1, r1 = _sides(w, x, j, n1, n2, wanted)
    c2, r2 = _sides(w, x, k, n2, 1, wanted)
    a0, p0, b1, q1, c2, r2 = 1 + a0, 1 + p0, 1 + b1, 1 + q1, 1 + c2, 1 + r2
    ahead = _smallest_of_four(a0, a1, a2, b0, b1, b2, c0, c1, c2, p1, p2, q1, q2, r1, r2)
    behind = _smallest_of_four(p0, a1, a2, q0, b1, b2, r0, c1, c2, p1, p2, q1, q2, r1, r2)
    tl.store(out + x, tl.minimum(ahead, behind, tl.PropagateNan.ALL), wanted)


@triton.jit
def _smallest_of_four(a0, a1, a2, b0, b1, b2, c0, c1, c2, p1, p2, q1, q2, r1, r2):
    """With both sides along the second axis (a1 b1 c1 or p1 q1 r1) and the third; keeps what is not a number."""
    one = _det3(a0, a1, a2, b0, b1, b2, c0, c1, c2)
    two = _det3(a0, a1, p2, b0, b1, q2, c0, c1, r2)
    three = _det3(a0, p1, a2, b0, q1, b2, c0, r1, c2)
    four = _det3(a0, p1, p2, b0, q1, q2, c0, r1, r2)
    near, far = tl.minimum(one, two, tl.PropagateNan.ALL), tl.minimum(three, four, tl.PropagateNan.ALL)
    return tl.minimum(near, far, tl.PropagateNan.ALL)


@triton.jit
def _width(place, size):
    """One over the steps between the two voxels that a central difference is taken of."""
    return tl.where((place > 0) & (place + 1 < size), 0.5, 1.0)


@triton.jit
def _costs(u, out, n0, n1, n2, least: tl.constexpr, block: tl.constexpr):
    """What a voxel's change of volume costs per unit of each difference in it, before its division by the steps:
    (1 - 1 / det^2) / 2 times the cofactor. Component c along axis a is map 3 c + a."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    voxels, sample = n0 * n1 * n2, tl.program_id(1)
    u, out = channel(u, 3 * sample, voxels), channel(out, 9 * sample, voxels)
    wanted = x < voxels
    i, j, k = index(x, n1, n2)
    a0, b0, c0 = _central(u, x, voxels, i, n0, n1 * n2, wanted)
    a1, b1, c1 = _central(u, x, voxels, j, n1, n2, wanted)
    a2, b2, c2 = _central(u, x, voxels, k, n2, 1, wanted)
    a0, b1, c2 = 1 + a0, 1 + b1, 1 + c2
    cofactor0, cofactor1, cofactor2 = b1 * c2 - b2 * c1, b2 * c0 - b0 * c2, b0 * c1 - b1 * c0
    det = tl.maximum(a0 * cofactor0 + a1 * cofactor1 + a2 * cofactor2, least)
    weight = 0.5 - 0.5 / (det * det)
    along0, along1, along2 = weight * _width(i, n0), weight * _width(j, n1), weight * _width(k, n2)
    tl.store(out + x, along0 * cofactor0, wanted)
    tl.store(channel(out, 1, voxels) + x, along1 * cofactor1, wanted)
    tl.store(channel(out, 2, voxels) + x, along2 * cofactor2, wanted)
    tl.store(channel(out, 3, voxels) + x, along0 * (a2 * c1 - a1 * c2), wanted)
    tl.store(channel(out, 4, voxels) + x, along1 * (a0 * c2 - a2 * c0), wanted)
    tl.store(channel(out, 5, voxels) + x, along2 * (a1 * c0 - a0 * c1), wanted)
    tl.store(channel(out, 6, voxels) + x, along0 * (a1 * b2 - a2 * b1), wanted)
    tl.store(channel(out, 7, voxels) + x, along1 * (a2 * b0 - a0 * b2), wanted)
    tl.store(channel(out, 8, voxels) + x, along2 * (a0 * b1 - a1 * b0), wanted)


@triton.jit
def _received(costs, x, place, size, stride, wanted):
    """The adjoint of a difference: at a border it read its own voxel in place of the one beyond."""
    behind = tl.load(costs + (x - tl.where(place > 0, stride, 0)), wanted, 0.0)
    ahead = tl.load(costs + (x + tl.where(place + 1 < size, stride, 0)), wanted, 0.0)
    return tl.where(place > 0, behind, -behind) - tl.where(place + 1 < size, ahead, -ahead)


@triton.jit
def _costs_to_voxels(costs, out, n0, n1, n2, block: tl.constexpr):
    x = tl.program_id(0) * block + tl.arange(0, block)
    voxels, sample = n0 * n1 * n2, tl.program_id(1)
    costs, out = channel(costs, 9 * sample, voxels), channel(out, 3 * sample, voxels)
    wanted = x < voxels
    i, j, k = index(x, n1, n2)
    for c in tl.static_range(3):
        received = _received(channel(costs, 3 * c, voxels), x, i, n0, n1 * n2, wanted)
        received += _received(channel(costs, 3 * c + 1, voxels), x, j, n1, n2, wanted)
        received += _received(channel(costs, 3 * c + 2, voxels), x, k, n2, 1, wanted)
        tl.store(channel(out, c, voxels) + x, received, wanted)


@triton.jit
def _within(position, size):
    return (position > 0.0) & (position < size - 1.0)


@triton.jit
def _invert(u, start, out, n0, n1, n2, iterations, tolerance, block: tl.constexpr):
    """Solves v(x) + u(x + v(x)) = 0 for v, using the derivative of the trilinear interpolant.

    The one loop that has to carry something: v, whose three components begin as what was read from three places. It
    ends when every voxel of the program is done; one that is done before stays as it is."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    voxels, sample = n0 * n1 * n2, tl.program_id(1)
    u, start = channel(u, 3 * sample, voxels), channel(start, 3 * sample, voxels)
    out = channel(out, 3 * sample, voxels)
    u1, u2 = channel(u, 1, voxels), channel(u, 2, voxels)
    wanted = x < voxels
    i, j, k = index(x, n1, n2)
    f0, f1, f2 = i.to(tl.float32), j.to(tl.float32), k.to(tl.float32)
    v0 = tl.load(start + x, wanted, 0.0)
    v1 = tl.load(channel(start, 1, voxels) + x, wanted, 0.0)
    v2 = tl.load(channel(start, 2, voxels) + x, wanted, 0.0)
    done, to_do = 0, 1
    while (done < iterations) & (to_do > 0):
        p0, p1, p2 = f0 + v0, f1 + v1, f2 + v2
        q0, t0 = cell(p0, n0)
        q1, t1 = cell(p1, n1)
        q2, t2 = cell(p2, n2)
        corner = (q0 * n1 + q1) * n2 + q2
        r0, a0, a1, a2 = trilinear_with_slope(u, corner, n0, n1, n2, t0, t1, t2, wanted)
        r1, b0, b1, b2 = trilinear_with_slope(u1, corner, n0, n1, n2, t0, t1, t2, wanted)
        r2, c0, c1, c2 = trilinear_with_slope(u2, corner, n0, n1, n2, t0, t1, t2, wanted)
        r0, r1, r2 = r0 + v0, r1 + v1, r2 + v2
        far = wanted & (tl.maximum(tl.maximum(tl.abs(r0), tl.abs(r1)), tl.abs(r2)) >= tolerance)
        # Along an axis where the border's value is repeated there is no slope.
        free0, free1, free2 = _within(p0, n0), _within(p1, n1), _within(p2, n2)
        a0, b0, c0 = tl.where(free0, a0, 0.0), tl.where(free0, b0, 0.0), tl.where(free0, c0, 0.0)
        a1, b1, c1 = tl.where(free1, a1, 0.0), tl.where(free1, b1, 0.0), tl.where(free1, c1, 0.0)
        a2, b2, c2 = tl.where(free2, a2, 0.0), tl.where(free2, b2, 0.0), tl.where(free2, c2, 0.0)
        a0, b1, c2 = a0 + 1, b1 + 1, c2 + 1
        det = _det3(a0, a1, a2, b0, b1, b2, c0, c1, c2)
        stretched = det > 0.05
        by = 1 / tl.where(stretched, det, 1.0)
        d0 = tl.where(stretched, by * _det3(r0, a1, a2, r1, b1, b2, r2, c1, c2), r0)
        d1 = tl.where(stretched, by * _det3(a0, r0, a2, b0, r1, b2, c0, r2, c2), r1)
        d2 = tl.where(stretched, by * _det3(a0, a1, r0, b0, b1, r1, c0, c1, r2), r2)
        # Beyond one cell the derivative says nothing.
        shorten = 1 / tl.maximum(1.0, tl.maximum(tl.maximum(tl.abs(d0), tl.abs(d1)), tl.abs(d2)))
        v0 = tl.where(far, v0 - d0 * shorten, v0)
        v1 = tl.where(far, v1 - d1 * shorten, v1)
        v2 = tl.where(far, v2 - d2 * shorten, v2)
        done += 1
        to_do = tl.max(far.to(tl.int32), 0)
    tl.store(out + x, v0, wanted)
    tl.store(channel(out, 1, voxels) + x, v1, wanted)
    tl.store(channel(out, 2, voxels) + x, v2, wanted)
