"""ITK's world, LPS+ millimetres, to and from this package's, RAS+: the first two axes change sign.

Only this folder knows that LPS exists: `transforms` and `landmarks` call these functions at their borders."""

from __future__ import annotations

import numpy as np

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
