"""Mutual information: for images of different kinds, such as T1 and T2."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stepwarp.kernels.information import joint_histogram
from stepwarp.losses.similarity import Similarity


class MutualInformation(Similarity):
    """1 - mutual information over the smaller entropy, from a joint histogram with linear Parzen windows.

    Works across contrasts that have no simple relation. What an image shares with itself is less than its entropy
    where values lie between the centres of bins: both are spread over two of them, each for itself. Intensities beyond
    0..1 count in the outermost bins."""

    multimodal = True
    nearest_measure = "mutual_information"
    bytes_per_voxel = (16, 226)

    def __init__(self, bins: Annotated[int, Field(ge=4, le=256)] = 32) -> None:
        self.bins = bins

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        joint = joint_histogram(fixed, moved, weight, self.bins)
        of_fixed, of_moved = joint.sum(2), joint.sum(1)
        entropy_fixed, entropy_moved, entropy_joint = map(_entropy, (of_fixed, of_moved, joint.flatten(1)))
        information = entropy_fixed + entropy_moved - entropy_joint
        return 1 - information / torch.minimum(entropy_fixed, entropy_moved).clamp_min(1e-6)


def _entropy(probability: Tensor) -> Tensor:
    """Of distributions (B, cells): (B,)."""
    return -(probability * probability.clamp_min(1e-12).log()).sum(1)
