"""How badly label maps overlap: a dissimilarity of segmentations, for training with them."""

from __future__ import annotations

import itertools
from collections.abc import Collection

import torch
from torch import Tensor

from stepwarp.kernels import sampling


def soft_dice(
    fixed: Tensor, moving: Tensor, displacement: Tensor, matrix: Tensor, ignore: Collection[int] = (0,)
) -> Tensor:
    """1 - the mean Dice overlap of the labels, where each label of the moving map is interpolated linearly as an image.

    Equal to warping one image per label, in memory for one: a voxel adds the weights of its cell's corners to their own
    labels, and to the intersection those that carry the fixed voxel's label.

    fixed: (B, 1, *grid) integers of 0 or more. moving: (B, 1, *moving grid). displacement: (B, D, *grid), voxels of
    `grid`, the only one that receives a gradient. matrix: (D+1, D+1), index of the fixed grid -> of the moving grid.
    Mean over the labels that occur in either map and are not in `ignore`, then over the batch; NaN where there is none.
    Outside the moving map lies nothing, not even label 0."""
    batch = len(displacement)
    labels, code = torch.unique(torch.cat([fixed.flatten(), moving.flatten()]), return_inverse=True)
    count = len(labels)
    of_fixed, of_moving = (
        part.view(t.shape[0], -1)
        for part, t in zip(code.split([fixed.numel(), moving.numel()]), (fixed, moving), strict=True)
    )
    where = sampling.positions(displacement, matrix).flatten(2)
    overlap, read = _reading(of_fixed.expand(batch, -1), of_moving.expand(batch, -1), moving.shape[2:], where, count)
    volume_fixed, volume_moving = (_histogram(t.expand(batch, -1), count) for t in (of_fixed, of_moving))
    wanted = torch.tensor([int(label) not in ignore for label in labels], device=labels.device)
    wanted = wanted & ((volume_fixed > 0) | (volume_moving > 0))
    dice = 2 * overlap / (volume_fixed + read).clamp_min(1e-6)
    return 1 - (torch.where(wanted, dice, 0).sum(1) / wanted.sum(1)).mean()


def _reading(fixed: Tensor, moving: Tensor, shape: torch.Size, where: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of each label the weight that is read where the fixed map has it, and anywhere: twice (B, count) float64.

    fixed: (B, N) codes of labels. moving: (B, voxels of `shape`). where: (B, D, N) voxel coordinates in `shape`."""
    sizes = torch.tensor(shape, device=where.device).view(1, -1, 1)
    inside = ((where >= -0.5) & (where < sizes - 0.5)).all(1)
    position = torch.minimum(where.clamp_min(0), (sizes - 1).to(where))
    lower = torch.minimum(position.detach().floor().long(), (sizes - 2).clamp_min(0))
    part = position - lower
    read = torch.zeros(len(where) * count, device=where.device, dtype=torch.float64)
    matching = torch.zeros_like(part[:, 0])
    for corner in itertools.product((0, 1), repeat=len(shape)):
        index = torch.zeros_like(lower[:, 0])
        weight = inside.to(part)
        for axis, (n, upper) in enumerate(zip(shape, corner, strict=True)):
            index = index * n + (lower[:, axis] + upper).clamp_max(n - 1)
            weight = weight * (part[:, axis] if upper else 1 - part[:, axis])
        found = moving.gather(1, index)
        matching = matching + torch.where(found == fixed, weight, 0)
        read = read.index_add(0, _per_sample(found, count), weight.double().flatten())
    overlap = torch.zeros_like(read).index_add(0, _per_sample(fixed, count), matching.double().flatten())
    return overlap.view(-1, count), read.view(-1, count)


def _histogram(codes: Tensor, count: int) -> Tensor:
    """(B, N) codes -> how often each occurs, (B, count) float64."""
    return torch.bincount(_per_sample(codes, count), minlength=len(codes) * count).view(-1, count).double()


def _per_sample(codes: Tensor, count: int) -> Tensor:
    """Codes (B, N) made different for each sample, flat."""
    return (codes + count * torch.arange(len(codes), device=codes.device)[:, None]).flatten()
