"""Means over the voxels that count."""

from __future__ import annotations

from torch import Tensor


def mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The weighted mean of each sample, (B, 1, *grid) -> (B,); NaN where nothing has weight."""
    if weight is None:
        return values.flatten(1).mean(1)
    return (weight * values).flatten(1).sum(1) / weight.flatten(1).sum(1)
