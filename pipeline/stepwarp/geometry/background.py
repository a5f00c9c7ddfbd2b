"""What surrounds the subject of an image, read off the faces of its grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Noise around a background lies within so much of the range of most intensities, those between these quantiles; as
#: where results are judged, what is brighter belongs to the subject.
_NOISE, _LOW, _HIGH = 0.05, 0.001, 0.999


def faces(values: Tensor) -> Tensor:
    """The values on the faces of a grid, all of them in one row; those on edges as often as faces meet there."""
    return torch.cat([values.select(axis, end).flatten() for axis in range(values.ndim) for end in (0, -1)])


def background(values: Tensor, missing: Tensor | None = None) -> float:
    """What an image (*grid) holds where there is nothing: the most frequent value on its faces if that covers at least
    half of them, NaN if that is what is missing there, else 0.

    missing: bool, where there is no value at all. The air of a scanner has noise and no most frequent value: if half of
    the faces lie near their median, and that near the darkest of the image and not near 0, it is their median."""
    outermost = faces(values)
    half = outermost.numel() / 2
    if missing is not None:
        absent = faces(missing)
        if absent.sum() >= half:
            return math.nan
        outermost = outermost[~absent]
    found, counts = outermost.unique(return_counts=True)
    if counts.max() >= half:
        return found[counts.argmax()].item()
    low, high = _range(values)
    middle, noise = float(outermost.median()), _NOISE * (high - low)
    near = (outermost - middle).abs() <= noise
    noisy = near.sum() >= half and abs(middle - low) <= noise < abs(middle)
    return outermost[near].median().item() if noisy else 0.0


def _range(values: Tensor) -> tuple[float, float]:
    """The lowest and the highest intensity that is no outlier."""
    flat = values.flatten()
    low, high = (float(flat.kthvalue(max(1, round(q * flat.numel()))).values) for q in (_LOW, _HIGH))
    return low, high
