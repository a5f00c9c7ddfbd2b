"""How far a map is from the one that another method found for the same pair."""

from __future__ import annotations

from torch import Tensor

from stepwarp.geometry import Grid


def field_distance(displacement: Tensor, teacher: Tensor, grid: Grid, weight: Tensor | None = None) -> Tensor:
    """Mean squared distance in mm^2 between where two displacements lead, of a batch the mean of its samples'.

    displacement, teacher: (B, D, *grid) in voxels of `grid`. weight: (B, 1, *grid) in 0..1, where the teacher counts,
    usually the inside of the head; NaN where nothing has weight. A batch of one is broadcast. Only the first of the
    two receives a gradient."""
    apart = grid.millimetres(displacement - teacher.detach()).square().sum(1, keepdim=True)
    if weight is None:
        return apart.mean()
    weight = weight.detach().to(apart).expand_as(apart)
    return ((weight * apart).flatten(1).sum(1) / weight.flatten(1).sum(1)).mean()
