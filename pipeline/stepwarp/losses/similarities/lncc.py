"""Correlation in windows: sees exactly where two images of one contrast match."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from stepwarp.config import DeformableSettings
from stepwarp.kernels.correlation import Rooms, correlation, forces, of_fixed
from stepwarp.losses.similarity import Similarity


class LNCC(Similarity):
    """1 - mean squared correlation of the windows of (2 radius + 1)^D voxels (Avants et al. 2008, ANTs' `CC`).

    A window counts the voxels inside the image, by their weight: an image that is cut off has no edge there.

    Blind to contrast that changes slowly, and to its sign. epsilon: variance added to every window; it decides how
    faint a structure still counts (intensities 0..1) and has a large effect on accuracy in flat tissue."""

    nearest_measure = "lncc"

    def __init__(self, radius: int = 2, epsilon: float = 1e-6) -> None:
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
            f, w, k = (None if t is None else t.expand(len(moved), *t.shape[1:]) for t in (fixed, weight, known))
            return correlation(f, moved, w, k, self.radius, self.epsilon).mean()

        return dissimilarity

    def forces(
        self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None, out: Rooms = (None, None)
    ) -> tuple[Tensor, Tensor, Tensor]:
        return forces(fixed, moved, weight, self.radius, self.epsilon, out=out)
