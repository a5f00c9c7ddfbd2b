"""How far two maps, found for the two directions of a pair, are from being each other's inverse.

Maps are displacements (B, D, *grid) in voxels of one grid; the values are those of the maps in the world, the same on a
grid of any spacing, shape and orientation. Where an error e(x) = forward(backward(x)) - x is a vector, squares are
summed over its components (icon_registration takes their mean: its values are ours divided by D, on its unit cube)."""

from __future__ import annotations

import torch
from torch import Tensor

from stepwarp.geometry import Grid
from stepwarp.kernels import sampling

#: The step, in voxels, over which GradICON's error is differentiated. Shorter ones drown in the rounding of float32.
DELTA = 0.1


def inverse_consistency(forward: Tensor, backward: Tensor, grid: Grid, points: Tensor | None = None) -> Tensor:
    """Mean |e(x)|^2 in mm^2 of one order of the two maps (Greer et al. 2021); ICON adds that of the other.

    points: (B, D, *out) voxel coordinates on `grid` at which it is taken, by default all voxels' centres."""
    error = sampling.compose(forward, backward) if points is None else _error(forward, backward, points)
    return grid.millimetres(error).square().sum(1).mean()


def gradicon(
    forward: Tensor, backward: Tensor, grid: Grid, points: Tensor | None = None, delta: float = DELTA
) -> Tensor:
    """Mean |de/dx|^2, without dimension, by differences over `delta` voxels (GradICON, Tian et al. 2023).

    Free of the translation between the two maps, which the similarity is left to find. points: as above, by default
    `scattered` ones, new for every call: an eighth as many as there are voxels in 3D, as the sparse variant does."""
    d = grid.ndim
    if points is None:
        points = scattered(forward)
    ahead = delta * torch.eye(d, device=points.device, dtype=points.dtype).view(1, d, *[1] * (points.ndim - 2), d)
    every = torch.cat([points[..., None], points[..., None] + ahead], -1)
    error = grid.millimetres(_error(forward, backward, every.flatten(-2)).unflatten(-1, (-1, d + 1)))
    slopes = (error[..., 1:] - error[..., :1]) / (delta * torch.tensor(grid.spacing).to(error))
    return slopes.square().sum((1, -1)).mean()


def scattered(displacement: Tensor, stride: int = 2, generator: torch.Generator | None = None) -> Tensor:
    """One random point in each block of `stride` voxels along every axis: (B, D, *blocks) voxel coordinates.

    A block that reaches beyond the grid has its point inside."""
    shape = displacement.shape[2:]
    blocks = [-(-n // stride) for n in shape]
    share = displacement.new_empty((len(displacement), len(shape), *blocks)).uniform_(generator=generator)
    axes = [torch.arange(n).to(share) for n in blocks]
    points = stride * (torch.stack(torch.meshgrid(*axes, indexing="ij")) + share) - 0.5
    ends = (torch.tensor(shape) - 0.5).view(1, -1, *[1] * len(shape)).to(share)
    return torch.minimum(points, ends)


def _error(forward: Tensor, backward: Tensor, points: Tensor) -> Tensor:
    """forward(backward(x)) - x at points (B, D, *out), in voxels."""
    first = sampling.sample(backward, points, outside="border")
    return first + sampling.sample(forward, points + first, outside="border")
