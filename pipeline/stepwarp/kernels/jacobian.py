"""What a displacement does to space: its Jacobian determinant, where it folds, and its inverse.

Displacements are (B, D, *grid) in voxels of their grid. The determinant is the same in voxels and in mm, because a
change of basis does not alter it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from stepwarp.kernels import sampling
from stepwarp.kernels.backend import primitive
from stepwarp.kernels.buffers import into
from stepwarp.kernels.gradients import value_and_gradients

#: Below this determinant what its change of volume costs goes on as a straight line, so that a fold is pushed open and
#: no more.
LEAST_VOLUME = 0.25


@primitive("displacement")
def determinant(displacement: Tensor, *, out: Tensor | None = None) -> Tensor:
    """det(I + du/dx) by central differences, one-sided at the border: (B, D, *grid) -> (B, *grid)."""
    d = displacement.shape[1]
    return into(out, _det([_central(displacement, axis) for axis in range(d)]))


def determinant_at(displacement: Tensor, voxels: Tensor) -> Tensor:
    """`determinant` at some voxels only, (N,); voxels: (N, 1 + D) integers, the sample and its index."""
    sample, *index = voxels.unbind(1)
    shape, channels_last = displacement.shape[2:], displacement.movedim(1, -1)
    derivatives = []
    for axis, n in enumerate(shape):
        ends: list[list[Tensor]] = [list(index), list(index)]
        for end, by in zip(ends, (-1, 1), strict=True):
            end[axis] = (index[axis] + by).clamp(0, n - 1)
        behind, ahead = (channels_last[sample, *end] for end in ends)
        width = (ends[1][axis] - ends[0][axis]).clamp_min(1)
        derivatives.append((ahead - behind) / width[:, None])
    return _det(derivatives)


@primitive("displacement")
def smallest_corner_determinant(displacement: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The smallest of the 2^D determinants by one-sided differences at each voxel: (B, D, *grid) -> (B, *grid).

    Positive at every corner of every cell is what trilinear interpolation needs at least to be one-to-one there;
    central differences miss folds between neighbours. One-sided towards the inside at the border."""
    d = displacement.shape[1]
    sides = [[_one_sided(displacement, axis, forward) for forward in (False, True)] for axis in range(d)]
    smallest = None
    for choice in itertools.product((0, 1), repeat=d):
        value = _det([sides[axis][side] for axis, side in enumerate(choice)])
        smallest = value if smallest is None else torch.minimum(smallest, value)
    assert smallest is not None
    return into(out, smallest)


@primitive("displacement")
def volume_change_gradient(displacement: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The gradient of the sum of (J - 1)^2 / 2J over voxels, J = det(I + du/dx) by central differences:
    (B, D, *grid) -> (B, D, *grid).

    The cost is the same for J and 1 / J, and about log^2 J / 2 where J is near 1. Down its gradient a field gives up
    changes of volume, shrinking and growing alike, and keeps what shears and turns."""

    def cost(field: Tensor) -> Tensor:
        volumes = _det([_central(field, axis) for axis in range(field.shape[1])])
        above = volumes.clamp_min(LEAST_VOLUME)
        slope = (1 - LEAST_VOLUME**-2) / 2
        return ((above - 1).square() / (2 * above) + slope * (volumes - above)).sum()

    return into(out, value_and_gradients(cost, displacement)[1])


@primitive("displacement", "start")
def invert(
    displacement: Tensor,
    start: Tensor | None = None,
    iterations: int = 30,
    tolerance: float = 1e-3,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """The displacement v with (id + u) o (id + v) = id, (B, D, *grid) in voxels.

    By the fixed point v <- -u o (id + v) (Chen et al. 2008), which converges where u is a contraction; back ends may
    do better, by Newton's method. start: a first guess. Stops where the residual is below `tolerance` voxels, or after
    `iterations`; what is left is for the caller to measure, with `inverse_residual`."""
    inverse = -displacement if start is None else start
    for _ in range(iterations):
        residual = sampling.compose(displacement, inverse)
        inverse = inverse - residual
        if residual.abs().amax() < tolerance:
            break
    return into(out, inverse)


def _central(displacement: Tensor, axis: int) -> Tensor:
    if displacement.shape[axis + 2] == 1:
        return torch.zeros_like(displacement)
    return torch.gradient(displacement, dim=axis + 2)[0]


def _one_sided(displacement: Tensor, axis: int, forward: bool) -> Tensor:
    dim = axis + 2
    n = displacement.shape[dim]
    if n == 1:
        return torch.zeros_like(displacement)
    steps = displacement.diff(dim=dim)
    edge = steps.narrow(dim, n - 2 if forward else 0, 1)
    return torch.cat([steps, edge] if forward else [edge, steps], dim)


def _det(derivatives: list[Tensor]) -> Tensor:
    """From du/dx_axis (1, D, *grid) for each axis, det(I + du/dx)."""
    d = len(derivatives)
    rows = torch.stack(derivatives, 2)  # (1, D component, D axis, *grid)
    entry = [[rows[:, a, b] + (a == b) for b in range(d)] for a in range(d)]
    if d == 1:
        return entry[0][0]
    if d == 2:
        return entry[0][0] * entry[1][1] - entry[0][1] * entry[1][0]
    minors = [entry[1][b] * entry[2][c] - entry[1][c] * entry[2][b] for b, c in ((1, 2), (2, 0), (0, 1))]
    return entry[0][0] * minors[0] + entry[0][1] * minors[1] + entry[0][2] * minors[2]
