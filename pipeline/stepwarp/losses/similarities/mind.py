"""Self-similarity of the surroundings of each voxel: for images of different kinds, such as T1 and T2."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from stepwarp.kernels.descriptors import self_similarity
from stepwarp.kernels.means import mean
from stepwarp.losses.similarity import Positive, Similarity


class MIND(Similarity):
    """Mean squared difference of the two images' self-similarity context (MIND-SSC, Heinrich et al. 2013).

    At each voxel, the squared distances of the small patches around its six neighbours to one another, relative to
    their mean: the same across contrasts, and blind to a slowly varying bias."""

    multimodal = True
    nearest_measure = "mutual_information"
    bytes_per_voxel = (1050, 2900)

    def __init__(self, dilation: Annotated[int, Field(ge=1, le=8)] = 2, sigma: Positive = 0.8) -> None:
        self.dilation = dilation
        self.sigma = sigma

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        difference = self.descriptor(fixed, weight) - self.descriptor(moved, weight)
        return mean(difference.square().mean(1, keepdim=True), weight)

    def descriptor(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """(B, 1, *grid) -> (B, pairs of neighbours, *grid), in 0..1; patches count their voxels by their weight."""
        return self_similarity(image, weight, self.dilation, self.sigma)
