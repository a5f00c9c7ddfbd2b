"""Squared differences: for images of the same scale of intensities."""

from __future__ import annotations

from torch import Tensor

from stepwarp.kernels.means import mean
from stepwarp.losses.similarity import Similarity


class SSD(Similarity):
    """Mean squared difference."""

    bytes_per_voxel = (60, 100)

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        return mean((fixed - moved).square(), weight)
