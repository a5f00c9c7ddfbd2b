"""Dissimilarities of two images on one grid: smaller is better, differentiable in both.

Of an image and itself NCC, SSD and MIND are 0. LNCC is the share of its windows that are flat, which are like nothing;
mutual information is 0.2 to 0.3, since its windows spread each value over two bins of the histogram.

Images are (B, 1, *grid) with intensities of about 0 to 1; `weight`, if given, is (B, 1, *grid) in 0..1, and a voxel of
weight 0 has no influence at all. A batch of one on any side is broadcast to the others. The weight counts as constant:
moving a mask away improves nothing. All are means over the weighted voxels, so their values do not depend on the size;
where no voxel has weight they are NaN. Of a batch they are the mean of its pairs' values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from stepwarp import catalogue
from stepwarp.config import SIMILARITIES, DeformableSettings
from stepwarp.kernels import sampling
from stepwarp.kernels.correlation import Rooms
from stepwarp.kernels.gradients import value_and_gradients

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Similarity(ABC):
    """A dissimilarity of a fixed and a moved image.

    multimodal: whether it compares images of different contrasts. nearest_measure: of those that every registration is
    judged by, lncc, ncc and mutual_information, the one that is most like it. bytes_per_voxel: what `forces` takes at
    its peak besides the images, with kernels and in plain torch, for planning.

    The constructor's parameters, each with a default and its limits as pydantic's, are also the settings of a training;
    in_training: their defaults there, where they are others."""

    multimodal: ClassVar[bool] = False
    nearest_measure: ClassVar[str] = "ncc"
    bytes_per_voxel: ClassVar[tuple[int, int]] = (300, 600)
    in_training: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def of(cls, settings: DeformableSettings) -> Similarity:
        """As the settings of a deformable stage have it."""
        return cls()

    @abstractmethod
    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        """See `values`; the three have the same shape and type."""

    def values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
        """The dissimilarity of each pair of a batch, (B,)."""
        if weight is not None:
            weight = weight.detach().to(fixed)
            fixed, moved, weight = torch.broadcast_tensors(fixed, moved, weight)
        else:
            fixed, moved = torch.broadcast_tensors(fixed, moved)
        return self._values(fixed, moved, weight)

    def __call__(self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
        """The dissimilarity as a scalar tensor: the mean over the batch."""
        return self.values(fixed, moved, weight).mean()

    def prepare(self, fixed: Tensor, weight: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The dissimilarity to one fixed image as a function of the moved one, for many of them or many steps.

        What depends on the fixed image alone is computed once, where that pays; it receives no gradient."""
        fixed = fixed.detach()
        return lambda moved: self(fixed, moved, weight)

    def value_and_gradients(
        self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The value (), and its derivatives with respect to every voxel of the fixed and of the moved image."""
        value, to_fixed, to_moved = value_and_gradients(lambda f, m: self(f, m, weight), fixed, moved)
        return value, to_fixed, to_moved

    def values_with_gradient(self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The dissimilarity of each pair of a batch, (B,), and its derivatives with respect to every voxel of its own
        moved image, (B, 1, *grid)."""
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            values = self.values(fixed.detach(), moved, weight)
            (gradient,) = torch.autograd.grad(values.sum(), moved)
        return values.detach(), gradient

    def forces(
        self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None, out: Rooms = (None, None)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The value (), and its derivatives with respect to a step composed on the inside of the warp of the fixed and
        of the moved image, (B, D, *grid) each; in `out`, where that is given."""
        value, *gradients = self.value_and_gradients(fixed, moved, weight)
        each = zip(gradients, (fixed, moved), out, strict=True)
        to_fixed, to_moved = (sampling.scaled_gradient(to_image, image, out=room) for to_image, image, room in each)
        return value, to_fixed, to_moved


def find_similarity(name: str) -> type[Similarity]:
    """The dissimilarity of that name, one of `config.SimilarityName`."""
    return catalogue.load(SIMILARITIES, name, Similarity)  # type: ignore[type-abstract]
