"""Reading an image between its voxels from more than its nearest neighbours, by ITK."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stepwarp.kernels import sampling

Smooth = Literal["cubic", "sinc"]

#: Positions of so many voxels are held in memory at a time.
_AT_ONCE = 2**19


def resample(image: Tensor, displacement: Tensor, matrix: Tensor, interpolation: Smooth) -> Tensor:
    """`image` (*grid) read at `matrix` applied to x + u(x), for every voxel x of the displacement's grid; NaN where
    that lies outside of the image, which ends half a voxel beyond its outermost centres.

    displacement: (D, *out) voxels of its own grid. matrix: (D+1, D+1), index of that grid -> index of the image.
    interpolation: "cubic" is the cubic B-spline that passes through all voxels, mirrored at the image's end (Unser,
    1999); "sinc" is Lanczos' windowed sinc over ten voxels along each axis, which goes on as at the image's end and
    whose weights do not quite sum to 1. Both are SimpleITK's. Returns (*out) in the type of the image, at least
    float32, on its device."""
    import SimpleITK as sitk

    values = image.detach().cpu().to(torch.promote_types(image.dtype, torch.float32)).contiguous()
    # The axes of an image are those of an array reversed: to ITK, the last axis of all that is here is the first.
    source = sitk.GetImageFromArray(values.numpy())
    resampler = sitk.ResampleImageFilter()
    resampler.SetDefaultPixelValue(np.nan)
    if interpolation == "cubic":
        source = sitk.BSplineDecomposition(source, 3)
        resampler.SetInterpolator(sitk.sitkBSplineResamplerOrder3)
    else:
        resampler.SetInterpolator(sitk.sitkLanczosWindowedSinc)
    result = torch.empty(displacement.shape[1:], dtype=values.dtype)
    for start, moves in _slabs(displacement.detach().cpu(), matrix):
        field = sitk.GetImageFromArray(moves, isVector=True)
        resampler.SetSize(field.GetSize())
        resampler.SetTransform(sitk.DisplacementFieldTransform(field))
        result[start : start + len(moves)] = torch.from_numpy(sitk.GetArrayFromImage(resampler.Execute(source)))
    return result.to(image.device)


def _slabs(displacement: Tensor, matrix: Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """Some planes at a time: the number of the first, and for each voxel of these planes how far away from its index,
    counted from that plane, the image is read (*planes, D), float64, last axis first."""
    still = torch.eye(len(matrix), dtype=torch.float64)
    thickness = max(1, _AT_ONCE // displacement[0, 0].numel())
    for start in range(0, displacement.shape[1], thickness):
        part = displacement[None, :, start : start + thickness].double()
        shift = still.clone()
        shift[0, -1] = start
        moves = sampling.positions(part, matrix @ shift) - sampling.positions(torch.zeros_like(part), still)
        yield start, moves[0].movedim(0, -1).flip(-1).contiguous().numpy()
