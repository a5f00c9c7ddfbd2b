"""Reading back what was written with a stranger, SimpleITK, and comparing it with what was computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from stepwarp.files.lps import flip_grid, flip_vectors
from stepwarp.files.utf8 import utf8_path
from stepwarp.geometry import Grid, Image, Transform

if TYPE_CHECKING:
    import SimpleITK as sitk

#: Of the fixed grid, every so many voxels along each axis are resampled for the comparison.
_STRIDE = 4
#: So near (voxels) to where the moving image ends, rounding decides on which side a point lies: not compared.
_EDGE = 0.02


def read_chain(paths: Sequence[Path]) -> sitk.Transform:
    """Written transforms as SimpleITK reads them. paths: as for antsApplyTransforms, the last meets a point first."""
    import SimpleITK as sitk

    return sitk.CompositeTransform([_read(path) for path in paths])


def point_error(chain: sitk.Transform, transform: Transform, points: np.ndarray) -> float:
    """The largest distance in mm between `transform` and SimpleITK's, over world points (N, 3) RAS."""
    mapped = np.array([chain.TransformPoint(point) for point in flip_vectors(points).tolist()])
    return float(np.linalg.norm(flip_vectors(mapped) - transform(points), axis=1).max())


def voxel_error(chain: sitk.Transform, transform: Transform, moving: Image, moved: Image, written: Path) -> float:
    """The largest difference of the written moved image, as a share of the moving image's intensity range: at every
    voxel from the one that was computed, and on a sparse lattice from SimpleITK's resampling of the moving image
    through the chain.

    Left out is what is missing, or read from voxels that are: SimpleITK knows no such voxels, and reads NaN as 0."""
    import SimpleITK as sitk

    kind = sitk.sitkFloat64 if moving.data.dtype == torch.float64 else sitk.sitkFloat32
    with utf8_path(written) as plain:
        stored = sitk.ReadImage(plain, kind)
    sparse = stored[::_STRIDE, ::_STRIDE, ::_STRIDE]
    outside = 0.0 if math.isnan(moving.outside) else moving.outside
    way = sitk.sitkBSpline3 if moving.interpolation == "cubic" else sitk.sitkLinear
    resampled = sitk.Resample(_to_sitk(moving), sparse, chain, way, outside, kind)
    difference = np.abs(sitk.GetArrayViewFromImage(resampled) - sitk.GetArrayViewFromImage(sparse)).T
    decided = _away_from_edges(sparse, transform, moving.grid) & _known(moving, sparse, chain)
    spread = float(moving.data.max() - moving.data.min())
    worst = np.maximum(difference[decided].max(initial=0.0), _altered(sitk.GetArrayViewFromImage(stored).T, moved))
    return float(worst) / spread


def _altered(stored: np.ndarray, moved: Image) -> float:
    """The largest difference between what was stored and what was computed, wherever something was."""
    known = True if moved.missing is None else ~moved.missing.numpy()
    return float(np.abs(stored - moved.data.numpy()).max(where=known, initial=0.0))


def _known(moving: Image, sparse, chain) -> np.ndarray:
    """Which voxels of the sparse image are read from voxels alone of which something is known."""
    import SimpleITK as sitk

    if moving.missing is None and not math.isnan(moving.outside):
        return np.ones(sparse.GetSize(), bool)
    missing = torch.zeros_like(moving.data) if moving.missing is None else moving.missing.float()
    nothing = float(math.isnan(moving.outside))
    unknown = sitk.Resample(
        _to_sitk(Image(missing, moving.grid)), sparse, chain, sitk.sitkLinear, nothing, sitk.sitkFloat32
    )
    return sitk.GetArrayViewFromImage(unknown).T == 0


def _read(path: Path):
    import SimpleITK as sitk

    with utf8_path(path) as plain:
        if path.name.endswith((".nii", ".nii.gz")):
            return sitk.DisplacementFieldTransform(sitk.ReadImage(plain, sitk.sitkVectorFloat64))
        return sitk.ReadTransform(plain)


def _to_sitk(image: Image):
    import SimpleITK as sitk

    result = sitk.GetImageFromArray(np.ascontiguousarray(image.data.numpy().T))
    affine, spacing = flip_grid(image.grid.affine), image.grid.spacing
    result.SetOrigin(affine[:3, 3].tolist())
    result.SetSpacing(spacing.tolist())
    result.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return result


def _away_from_edges(sparse, transform: Transform, moving: Grid) -> np.ndarray:
    """Which voxels of the sparse image read the moving image clearly inside or clearly outside its box."""
    shape = sparse.GetSize()
    linear = np.array(sparse.GetDirection()).reshape(3, 3) * np.array(sparse.GetSpacing())
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = flip_vectors(index @ linear.T + np.array(sparse.GetOrigin()))
    at = moving.index(transform(world))
    ends = np.array(moving.shape) - 0.5
    return (np.minimum(np.abs(at + 0.5), np.abs(at - ends)) > _EDGE).all(-1)
