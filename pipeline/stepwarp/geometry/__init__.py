"""Grids, volumes and transforms: the conventions of the whole package, each implemented once.

World is RAS+ millimetres; a transform maps points of the fixed world to points of the moving world; a displacement is
(B, D, *grid) float32 in voxels of its own grid. A transform is a batch, of one where a file or a registration is
meant, on its device and differentiable."""

from stepwarp.geometry.grid import Grid
from stepwarp.geometry.transform import Affine, Composition, DisplacementField, Transform, inverse_residual
from stepwarp.geometry.volume import CubicImage, Image, LabelMap, SincImage, Volume

__all__ = [
    "Affine",
    "Composition",
    "CubicImage",
    "DisplacementField",
    "Grid",
    "Image",
    "LabelMap",
    "SincImage",
    "Transform",
    "Volume",
    "inverse_residual",
]
