"""The three orthogonal views: which voxels they show, which way up, and the letters beside them.

Radiological convention: one looks from the feet or from the front, so the patient's left is right on the picture. The
sagittal view has the front on its left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from torch import Tensor

from stepwarp.geometry import Grid

#: Slices per view, spread over this share of the image around the one shown first.
SLICES, SPREAD = 9, 0.66


@dataclass(frozen=True)
class View:
    """A cut across `axis` of a volume in RAS order, drawn with these letters at its four sides."""

    name: str
    axis: int
    left: str
    right: str
    top: str
    bottom: str

    def cut(self, volume: np.ndarray, index: int) -> np.ndarray:
        """The slice as (rows from the top, columns from the left).

        Both remaining axes point to R, A or S, which all three views draw on the left or at the top."""
        return np.moveaxis(volume, self.axis, 0)[index, ::-1, ::-1].T

    def plane_axes(self) -> tuple[int, int]:
        """The RAS axes along a row and along a column of the picture."""
        across, along = (axis for axis in range(3) if axis != self.axis)
        return across, along


VIEWS = (
    View("Axial", 2, "R", "L", "A", "P"),
    View("Coronal", 1, "R", "L", "S", "I"),
    View("Sagittal", 0, "A", "P", "S", "I"),
)


class Orientation:
    """How the axes of a grid are permuted and flipped to come nearest to RAS.

    source: the grid's axis behind each RAS axis. spacing: mm per voxel in RAS order. tilt: the largest angle in degrees
    between an axis of the grid and the world axis that its letter names."""

    def __init__(self, grid: Grid) -> None:
        self._codes = nib.orientations.io_orientation(grid.affine)
        self.source = np.argsort(self._codes[:, 0])
        self.spacing = grid.spacing[self.source]
        cosines = np.abs(grid.linear / grid.spacing).max(0)
        self.tilt = float(np.degrees(np.arccos(cosines.clip(max=1)).max()))

    def turn(self, values: Tensor | np.ndarray) -> np.ndarray:
        """Values on the grid, (I, J, K), seen in RAS order; a view, nothing is copied on the CPU."""
        values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        return nib.orientations.apply_orientation(values, self._codes)

    def plane(self, grid: Grid, view: View, index: int) -> Grid:
        """The grid, one voxel thick, of a view's slice `index` of a volume on `grid`."""
        axis = int(self.source[view.axis])
        flipped = self._codes[axis, 1] < 0
        start = np.zeros(3)
        start[axis] = grid.shape[axis] - 1 - index if flipped else index
        shape, affine = list(grid.shape), grid.affine.copy()
        shape[axis] = 1
        affine[:3, 3] += grid.linear @ start
        return Grid(tuple(shape), affine)

    def aspect(self, view: View, shape: tuple[int, ...]) -> float:
        """Width by height in mm of a view of a volume whose RAS-ordered shape is given."""
        extent = np.array(shape) * self.spacing
        across, along = view.plane_axes()
        return float(extent[across] / extent[along])


def centre_of_mass(volume: np.ndarray, weigh: Callable[[np.ndarray], np.ndarray]) -> tuple[int, ...]:
    """The voxel nearest to the centre of mass of `weigh(intensities)` >= 0; of the box where all weights are 0."""
    steps = thinning(volume.shape)
    weights = weigh(volume[tuple(slice(None, None, s) for s in steps)])
    total = weights.sum()
    centre = []
    for axis, step in enumerate(steps):
        profile = weights.sum(tuple(a for a in range(weights.ndim) if a != axis))
        middle = (profile @ np.arange(len(profile)) / total) * step if total > 0 else (volume.shape[axis] - 1) / 2
        centre.append(round(float(middle)))
    return tuple(centre)


def slice_positions(length: int, centre: int) -> list[int]:
    """Up to SLICES ascending slice numbers along an axis, spread around `centre`, which is among them."""
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, SLICES) * length
    return sorted({int(p) for p in np.clip(np.round(centre + offsets), 0, length - 1)} | {centre})


def thinning(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A stride per axis that leaves some 64 voxels of it: enough for a histogram or a centre."""
    return tuple(max(1, n // 64) for n in shape)
