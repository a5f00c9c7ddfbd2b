"""What the surroundings of a voxel look like, whatever the contrast."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from stepwarp.kernels import smoothing
from stepwarp.kernels.backend import primitive
from stepwarp.kernels.buffers import into
from stepwarp.kernels.means import mean


@primitive("image", to=("image",))
def self_similarity(
    image: Tensor, weight: Tensor | None, dilation: int, sigma: float, *, out: Tensor | None = None
) -> Tensor:
    """The self-similarity context (MIND-SSC, Heinrich et al. 2013): (B, 1, *grid) -> (B, pairs of neighbours, *grid),
    in 0..1; patches count their voxels by their weight.

    dilation: how far the neighbours are, in voxels. sigma: of the patches' Gaussian, in voxels."""
    d = image.ndim - 2
    neighbours = [(axis, sign) for axis in range(d) for sign in (-1, 1)]
    shifted = {(axis, sign): _shift(image, axis, sign * dilation) for axis, sign in neighbours}
    # Opposite neighbours are left out: at distance 2 dilation they are no part of the context of the voxel.
    pairs = [(a, b) for a, b in itertools.combinations(neighbours, 2) if a[0] != b[0]]
    if not pairs:
        pairs = list(itertools.combinations(neighbours, 2))
    kernel = smoothing.kernel_on(image.device, sigma)
    stacked = torch.cat([(shifted[a] - shifted[b]).square() for a, b in pairs], 1)
    if weight is None:
        stacked = smoothing.convolve_axes(stacked, kernel)
    else:
        counts = {(axis, sign): _shift(weight.to(image), axis, sign * dilation) for axis, sign in neighbours}
        count = torch.cat([counts[a] * counts[b] for a, b in pairs], 1)
        stacked = smoothing.convolve_axes(count * stacked, kernel)
        stacked = stacked / smoothing.convolve_axes(count, kernel).clamp_min(1e-3)
    stacked = stacked - stacked.amin(1, keepdim=True)
    variance = stacked.mean(1, keepdim=True)
    within = None if weight is None else (weight > 0).to(variance)
    typical = mean(variance.detach(), within).view(-1, *[1] * (d + 1))
    variance = torch.minimum(torch.maximum(variance, typical * 1e-3 + 1e-12), typical * 1e3 + 1e-12)
    return into(out, torch.exp(-stacked / variance))


def _shift(image: Tensor, axis: int, by: int) -> Tensor:
    """The image read `by` voxels further along an axis, border values repeated."""
    n = image.shape[axis + 2]
    index = (torch.arange(n, device=image.device) + by).clamp(0, n - 1)
    return image.index_select(axis + 2, index)
