"""Intensities of any unit, brought to the same scale."""

from __future__ import annotations

import math

from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.geometry import Image
from stepwarp.kernels.order import nth_smallest

#: Intensities are scaled so that these quantiles become 0 and 1 (of all voxels; of those above the first).
_LOW, _HIGH = 0.001, 0.995
#: Brighter than this, in those units, is cut off: a few bright vessels say nothing about the rest.
_BRIGHTEST = 1.2


def scale_intensities(image: Image, mask: Image | None = None) -> Image:
    """The image with its background at 0 and its bright tissue at 1, whatever its units were.

    With a mask the scale comes from the voxels inside. Raises InputError where nothing stands out."""
    low, high = _ends(image, mask)
    return Image(((image.data - low) / (high - low)).clamp(0, _BRIGHTEST).float(), image.grid, image.name)


def scaled_outside(image: Image) -> float:
    """What is outside of an image, its own background, on the scale of `scale_intensities`; 0 where it is nothing."""
    low, high = _ends(image, None)
    outside = image.surrounded().outside
    return 0.0 if math.isnan(outside) else min(max((outside - low) / (high - low), 0.0), _BRIGHTEST)


def _ends(image: Image, mask: Image | None) -> tuple[float, float]:
    """The intensities that become 0 and 1."""
    values = image.data.flatten() if mask is None else image.data[mask.data > 0]
    low = _quantile(values, _LOW)
    above = values[values > low]
    high = _quantile(above, _HIGH) if above.numel() else low
    if not high > low:
        raise InputError(f"{image.name}: no voxel stands out from the background. Is it the right file or mask?")
    return low, high


def _quantile(values: Tensor, q: float) -> float:
    return float(nth_smallest(values, max(1, round(q * values.numel()))))
