"""An image in the world: values on a grid. Its type, not a flag, says how it is read between voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from stepwarp.geometry import sampling
from stepwarp.geometry.grid import Grid, float64
from stepwarp.geometry.transform import Affine, Composition, DisplacementField, Transform


@dataclass(frozen=True, eq=False)
class Volume:
    """Scalar values on a grid. data: (*grid.shape). name: what messages call it, usually its file."""

    data: Tensor
    grid: Grid
    name: str = "volume"

    interpolation: ClassVar[sampling.Interpolation]

    def __post_init__(self) -> None:
        if tuple(self.data.shape) != self.grid.shape:
            raise ValueError(f"{self.name}: values of shape {tuple(self.data.shape)} do not fit {self.grid}")

    def warp(self, transform: Transform, onto: Grid | None = None) -> Self:
        """This volume pulled back: at each voxel x of `onto` (own grid by default), its value at transform(x).

        The one place where voxels are interpolated, and once: an affine after a field is one read, not two."""
        onto = self.grid if onto is None else onto
        affine, field = _split(transform, onto)
        matrix = float64(onto.index_map_to(self.grid, affine.matrix))
        data = self.data.float() if self.interpolation == "linear" else self.data
        warped = sampling.warp(data[None, None], field.displacement.to(data.device), matrix, self.interpolation)
        return type(self)(warped[0, 0], onto, self.name)


class Image(Volume):
    """Intensities, read by linear interpolation; 0 outside."""

    interpolation = "linear"


class LabelMap(Volume):
    """Integer labels, read from the nearest voxel; 0 outside."""

    interpolation = "nearest"


def _split(transform: Transform, grid: Grid) -> tuple[Affine, DisplacementField]:
    """A transform as an affine after a displacement on `grid`, exactly where it has that form."""
    identity = Affine.identity(grid.ndim)
    if isinstance(transform, Affine):
        return transform, DisplacementField.identity(grid)
    if isinstance(transform, Composition) and len(transform.parts) == 2:
        outer, inner = transform.parts
        if isinstance(outer, Affine) and isinstance(inner, DisplacementField):
            return outer, inner.on(grid)
    return identity, transform.on(grid)
