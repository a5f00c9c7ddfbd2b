"""Mutual information: for images of different kinds, such as T1 and T2."""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stepwarp.losses.similarity import Similarity


class MutualInformation(Similarity):
    """1 - mutual information over the smaller entropy, from a joint histogram with linear Parzen windows.

    Works across contrasts that have no simple relation. What an image shares with itself is less than its entropy
    where values lie between the centres of bins: both are spread over two of them, each for itself. Intensities beyond
    0..1 count in the outermost bins."""

    multimodal = True
    nearest_measure = "mutual_information"

    def __init__(self, bins: Annotated[int, Field(ge=4, le=256)] = 32) -> None:
        self.bins = bins

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        joint = self._joint(fixed.flatten(1), moved.flatten(1), None if weight is None else weight.flatten(1))
        of_fixed, of_moved = joint.sum(2), joint.sum(1)
        entropy_fixed, entropy_moved, entropy_joint = map(_entropy, (of_fixed, of_moved, joint.flatten(1)))
        information = entropy_fixed + entropy_moved - entropy_joint
        return 1 - information / torch.minimum(entropy_fixed, entropy_moved).clamp_min(1e-6)

    def _joint(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        """Values (B, N) of two images -> how often they meet, (B, bins, bins)."""
        low_f, part_f = self._bin(fixed)
        low_m, part_m = self._bin(moved)
        batch, cells = len(fixed), self.bins * self.bins
        first = torch.arange(batch, device=fixed.device)[:, None] * cells
        joint = torch.zeros(batch * cells, device=fixed.device, dtype=torch.float64)
        for up_f, up_m in itertools.product((0, 1), repeat=2):
            share = (part_f if up_f else 1 - part_f) * (part_m if up_m else 1 - part_m)
            share = share if weight is None else share * weight
            where = first + (low_f + up_f) * self.bins + low_m + up_m
            joint = joint.index_add(0, where.flatten(), share.double().flatten())
        joint = joint.view(batch, self.bins, self.bins)
        return joint / joint.sum((1, 2), keepdim=True)

    def _bin(self, values: Tensor) -> tuple[Tensor, Tensor]:
        position = values.clamp(0, 1) * (self.bins - 1)
        low = position.detach().floor().clamp_max(self.bins - 2)
        return low.long(), position - low


def _entropy(probability: Tensor) -> Tensor:
    """Of distributions (B, cells): (B,)."""
    return -(probability * probability.clamp_min(1e-12).log()).sum(1)
