"""Correlation of the whole images."""

from __future__ import annotations

from torch import Tensor

from stepwarp.kernels.means import mean
from stepwarp.losses.similarity import Similarity

#: A variance (of intensities 0..1) that counts as none.
_FAINT = 1e-8


class NCC(Similarity):
    """1 - correlation of the whole images."""

    bytes_per_voxel = (60, 95)

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        each = (-1, *[1] * (fixed.ndim - 1))
        f, m = fixed - mean(fixed, weight).view(each), moved - mean(moved, weight).view(each)
        # The variance that is added keeps the gradient of a flat image, such as one moved out of view, in bounds.
        of_fixed, of_moved = mean(f * f, weight) + _FAINT, mean(m * m, weight) + _FAINT
        return 1 - mean(f * m, weight) / (of_fixed * of_moved).sqrt()
