"""Correlation in windows: sees exactly where two images of one contrast match."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stepwarp.config import DeformableSettings
from stepwarp.geometry import sampling
from stepwarp.losses.similarity import Positive, Similarity, mean


class LNCC(Similarity):
    """1 - mean squared correlation of the windows of (2 radius + 1)^D voxels (Avants et al. 2008, ANTs' `CC`).

    A window counts the voxels inside the image, by their weight: an image that is cut off has no edge there.

    Blind to contrast that changes slowly, and to its sign. epsilon: variance added to every window; it decides how
    faint a structure still counts (intensities 0..1) and has a large effect on accuracy in flat tissue."""

    nearest_measure = "lncc"
    in_training = MappingProxyType({"epsilon": 1e-5})

    def __init__(self, radius: Annotated[int, Field(ge=1, le=8)] = 2, epsilon: Positive = 1e-6) -> None:
        self.radius = radius
        self.epsilon = epsilon

    @classmethod
    def of(cls, settings: DeformableSettings) -> LNCC:
        return cls(settings.radius, settings.epsilon)

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        if sampling.on_kernels(fixed, moved, differentiable=True):
            from stepwarp.losses import cpu

            return cpu.LocalCorrelation.apply(fixed, moved, weight, None, self.radius, self.epsilon)
        w = torch.ones_like(fixed) if weight is None else weight
        mean_f, ff, size = self._statistics(fixed, w)
        sum_m = self._sum(w * moved)
        mm = (self._sum(w * moved * moved) - sum_m * sum_m / size).clamp_min(0) + self.epsilon * size
        fm = self._sum(w * fixed * moved) - mean_f * sum_m
        return 1 - mean(fm * fm / (ff * mm), weight)

    def prepare(self, fixed: Tensor, weight: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        if not sampling.on_kernels(fixed, differentiable=True):
            return super().prepare(fixed, weight)
        from stepwarp.losses import cpu

        fixed = fixed.detach()
        weight = None if weight is None else weight.detach().to(fixed).expand_as(fixed)
        statistics = self._statistics(fixed, torch.ones_like(fixed) if weight is None else weight)
        known = torch.stack(statistics[: 2 if weight is None else 3], 2)

        def dissimilarity(moved: Tensor) -> Tensor:
            f, w, k = (None if t is None else t.expand(len(moved), *t.shape[1:]) for t in (fixed, weight, known))
            return cpu.LocalCorrelation.apply(f, moved, w, k, self.radius, self.epsilon).mean()

        return dissimilarity

    def _statistics(self, fixed: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the window around each voxel of the fixed image: the mean, the centred sum of squares, the size."""
        size = self._sum(w).clamp_min(1e-3)
        total = self._sum(w * fixed)
        squares = (self._sum(w * fixed * fixed) - total * total / size).clamp_min(0) + self.epsilon * size
        return total / size, squares, size

    def _sum(self, image: Tensor) -> Tensor:
        """Sums over the window around each voxel; zeros outside."""
        if sampling.on_kernels(image):
            from stepwarp.losses import cpu

            return cpu.box_sum(image, self.radius)
        width = 2 * self.radius + 1
        for axis in range(2, image.ndim):
            line = image.movedim(axis, -1)
            flat = line.reshape(-1, 1, line.shape[-1])
            flat = F.avg_pool1d(flat, width, stride=1, padding=self.radius) * width
            image = flat.reshape(line.shape).movedim(-1, axis)
        return image
