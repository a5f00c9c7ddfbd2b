"""Images brought to a coarser grid, without a trace of what lies outside their masks."""

from __future__ import annotations

import torch
from torch import Tensor

from stepwarp.geometry import Image
from stepwarp.kernels import sampling, smoothing

#: Voxels by which values reach beyond the mask (sigma), so that reading between voxels meets no edge there.
_REACH = 1.0


def trusted_part(image: Image, mask: Image | None) -> Image:
    """The image with nothing outside the mask."""
    if mask is None:
        return image
    return Image(torch.where(mask.data > 0, image.data, 0), image.grid, image.name)


def pooled(values: Tensor, mask: Tensor | None, factors: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """An image (*grid) averaged over blocks of voxels, and the share of each block that may be trusted: (1, 1, *grid).

    mask: 0 to 1, of the image's shape. A block's value comes from its trusted voxels alone; blocks without any continue
    their neighbours, and are 0 further away."""
    values = values[None, None].float()
    if mask is None:
        return sampling.average_pool(values, factors).contiguous(), None
    weight = mask[None, None].float()
    trusted = sampling.average_pool(weight, factors).contiguous()
    inside = sampling.average_pool(torch.where(weight > 0, weight * values, 0), factors).contiguous()
    around = smoothing.gaussian(inside, _REACH) / smoothing.gaussian(trusted, _REACH).clamp_min(1e-6)
    return torch.where(trusted > 0, inside / trusted.clamp_min(1e-6), around), trusted
