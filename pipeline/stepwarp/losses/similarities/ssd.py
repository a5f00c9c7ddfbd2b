"""Squared differences: for images of the same scale of intensities."""

from __future__ import annotations

from torch import Tensor

from stepwarp.losses.similarity import Similarity, mean


class SSD(Similarity):
    """Mean squared difference."""

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        return mean((fixed - moved).square(), weight)
