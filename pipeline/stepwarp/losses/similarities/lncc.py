"""Correlation in windows: sees exactly where two images of one contrast match."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Annotated

from pydantic import Field
from torch import Tensor

from stepwarp.config import DeformableSettings
from stepwarp.kernels.correlation import Rooms, correlation, forces, of_fixed
from stepwarp.losses.similarity import Positive, Similarity


class LNCC(Similarity):
    """1 - mean squared correlation of the windows of (2 radius + 1)^D voxels (Avants et al. 2008, ANTs' `CC`).

    A window counts the voxels inside the image, by their weight: an image that is cut off has no edge there.

    Blind to contrast that changes slowly, and to its sign. epsilon: variance added to every window; it decides how
    faint a structure still counts (intensities 0..1) and has a large effect on accuracy in flat tissue."""

    nearest_measure = "lncc"
    bytes_per_voxel = (48, 280)
    in_training = MappingProxyType({"epsilon": 1e-5})

    def __init__(self, radius: Annotated[int, Field(ge=1, le=8)] = 2, epsilon: Positive = 1e-6) -> None:
        self.radius = radius
        self.epsilon = epsilon

    @classmethod
    def of(cls, settings: DeformableSettings) -> LNCC:
        return cls(settings.radius, settings.epsilon)

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        return correlation(fixed, moved, weight, None, self.radius, self.epsilon)

    def prepare(self, fixed: Tensor, weight: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        fixed = fixed.detach()
        weight = None if weight is None else weight.detach().to(fixed).expand_as(fixed)
        known = of_fixed(fixed, weight, self.radius, self.epsilon)

        def dissimilarity(moved: Tensor) -> Tensor:
            f, k = (each.expand(len(moved), *each.shape[1:]) for each in (fixed, known))
            w = None if weight is None else weight.expand(len(moved), *weight.shape[1:])
            return correlation(f, moved, w, k, self.radius, self.epsilon).mean()

        return dissimilarity

    def forces(
        self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None, out: Rooms = (None, None)
    ) -> tuple[Tensor, Tensor, Tensor]:
        return forces(fixed, moved, weight, self.radius, self.epsilon, out=out)
