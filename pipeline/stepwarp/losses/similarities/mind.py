"""Self-similarity of the surroundings of each voxel: for images of different kinds, such as T1 and T2."""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stepwarp.geometry import smoothing
from stepwarp.losses.similarity import Positive, Similarity, mean


class MIND(Similarity):
    """Mean squared difference of the two images' self-similarity context (MIND-SSC, Heinrich et al. 2013).

    At each voxel, the squared distances of the small patches around its six neighbours to one another, relative to
    their mean: the same across contrasts, and blind to a slowly varying bias."""

    multimodal = True
    nearest_measure = "mutual_information"

    def __init__(self, dilation: Annotated[int, Field(ge=1, le=8)] = 2, sigma: Positive = 0.8) -> None:
        self.dilation = dilation
        self.sigma = sigma

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        difference = self.descriptor(fixed, weight) - self.descriptor(moved, weight)
        return mean(difference.square().mean(1, keepdim=True), weight)

    def descriptor(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """(B, 1, *grid) -> (B, pairs of neighbours, *grid), in 0..1; patches count their voxels by their weight."""
        d = image.ndim - 2
        neighbours = [(axis, sign) for axis in range(d) for sign in (-1, 1)]
        shifted = {(axis, sign): _shift(image, axis, sign * self.dilation) for axis, sign in neighbours}
        # Opposite neighbours are left out: at distance 2 dilation they are no part of the context of the voxel.
        pairs = [(a, b) for a, b in itertools.combinations(neighbours, 2) if a[0] != b[0]]
        if not pairs:
            pairs = list(itertools.combinations(neighbours, 2))
        kernel = smoothing.gaussian_kernel(self.sigma)
        stacked = torch.cat([(shifted[a] - shifted[b]).square() for a, b in pairs], 1)
        if weight is None:
            stacked = smoothing.convolve_axes(stacked, kernel)
        else:
            counts = {(axis, sign): _shift(weight.to(image), axis, sign * self.dilation) for axis, sign in neighbours}
            count = torch.cat([counts[a] * counts[b] for a, b in pairs], 1)
            stacked = smoothing.convolve_axes(count * stacked, kernel)
            stacked = stacked / smoothing.convolve_axes(count, kernel).clamp_min(1e-3)
        stacked = stacked - stacked.amin(1, keepdim=True)
        variance = stacked.mean(1, keepdim=True)
        within = None if weight is None else (weight > 0).to(variance)
        typical = mean(variance.detach(), within).view(-1, *[1] * (d + 1))
        variance = torch.minimum(torch.maximum(variance, typical * 1e-3 + 1e-12), typical * 1e3 + 1e-12)
        return torch.exp(-stacked / variance)


def _shift(image: Tensor, axis: int, by: int) -> Tensor:
    """The image read `by` voxels further along an axis, border values repeated."""
    n = image.shape[axis + 2]
    index = (torch.arange(n, device=image.device) + by).clamp(0, n - 1)
    return image.index_select(axis + 2, index)
