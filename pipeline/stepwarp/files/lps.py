"""ITK's world, LPS+ millimetres, to and from this package's, RAS+: the first two axes change sign.

Only this folder knows that LPS exists: `transforms`, `landmarks` and `sources` call these at their borders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import SimpleITK

_SIGNS = np.array([-1.0, -1.0, 1.0])


def flip_vectors(vectors: np.ndarray) -> np.ndarray:
    """Points or displacements (..., 3) in one of the two worlds, in the other; the type of floats is kept."""
    return vectors * _SIGNS.astype(vectors.dtype)


def flip_grid(affine: np.ndarray) -> np.ndarray:
    """A 4 x 4 affine from voxel index to one world, as voxel index to the other."""
    return np.append(_SIGNS, 1.0)[:, None] * affine


def flip_map(matrix: np.ndarray) -> np.ndarray:
    """A 4 x 4 map of one world to itself, in the coordinates of the other."""
    signs = np.append(_SIGNS, 1.0)
    return signs[:, None] * matrix * signs + 0.0  # no minus zeros


def affine_of_itk(image: SimpleITK.Image) -> np.ndarray:
    """The 4 x 4 affine of a 3D image of ITK, voxel index to RAS mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return flip_grid(affine)


def place_itk(image: SimpleITK.Image, affine: np.ndarray) -> SimpleITK.Image:
    """The same 3D image of ITK, laid where a 4 x 4 affine (voxel index to RAS mm, without shear) says."""
    affine = flip_grid(affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image
