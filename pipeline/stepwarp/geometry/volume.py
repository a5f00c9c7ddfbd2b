"""An image in the world: values on a grid. Its type, not a flag, says how it is read between voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor

from stepwarp.geometry.background import background
from stepwarp.geometry.grid import Grid, float64
from stepwarp.geometry.resampling import Smooth, resample
from stepwarp.geometry.transform import Affine, Composition, DisplacementField, Transform
from stepwarp.kernels import sampling

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image


Interpolation = Literal["linear", "nearest", "cubic", "sinc"]


@dataclass(frozen=True, eq=False)
class Volume:
    """Scalar values on a grid.

    Parameters
    ----------
    data : Tensor
        (*grid.shape), finite; intensities that float32 does not hold are float64.
    grid : Grid
        Where the voxels lie, in RAS+ mm.
    name : str
        What messages call it, usually its file.
    outside : float
        What is read beyond the grid; NaN for nothing at all.
    missing : Tensor or None
        bool (*grid.shape), the voxels that the file says nothing about (NaN); `data` holds `filling` there. None where
        there are no such voxels.

    Raises
    ------
    ValueError
        For values that are not of the grid's shape.
    """

    data: Tensor
    grid: Grid
    name: str = "volume"
    outside: float = 0.0
    missing: Tensor | None = None

    interpolation: ClassVar[Interpolation]
    _what: ClassVar[str] = "values"

    def __post_init__(self) -> None:
        for values in (self.data, self.missing):
            if values is not None and tuple(values.shape) != self.grid.shape:
                raise ValueError(f"{self.name}: values of shape {tuple(values.shape)} do not fit {self.grid}")

    def to(self, device: torch.device | str) -> Self:
        """The same volume on a device."""
        missing = None if self.missing is None else self.missing.to(device)
        return replace(self, data=self.data.to(device), missing=missing)

    @property
    def filling(self) -> float:
        """What stands for nothing at all: 0, or the lowest value where that is lower."""
        return min(0.0, float(self.data.min()))

    def __repr__(self) -> str:
        low, high = (f"{float(value):.4g}" for value in torch.aminmax(self.data))
        gaps = "" if self.missing is None else ", with gaps"
        return f"{type(self).__name__}({self.name}: {self.grid.described}, {self._what} {low} to {high}{gaps})"

    def _repr_png_(self) -> bytes | None:
        """Its middle slices, for notebooks; None for a volume that has not three axes."""
        from stepwarp.geometry.thumbnail import png

        return png(self) if self.grid.ndim == 3 else None

    def to_nibabel(self) -> Nifti1Image:
        """As an image of nibabel: sform and qform equal, code 1, mm; its own type of number; what is missing is NaN."""
        from nibabel.nifti1 import Nifti1Image

        data = self.data if self.missing is None else torch.where(self.missing, torch.nan, self.data)
        values = data.detach().cpu().numpy()
        image = Nifti1Image(values, self.grid.affine, dtype=values.dtype)
        image.set_sform(self.grid.affine, 1, update_affine=False)
        image.set_qform(self.grid.affine, 1, update_affine=False)
        image.header.set_xyzt_units("mm")
        return image

    def warp(self, transform: Transform, onto: Grid | None = None) -> Self:
        """This volume pulled back: at each voxel x of `onto` (own grid by default), its value at transform(x).

        Voxels are interpolated here alone, and once: an affine after a field is one read, not two. What is missing has
        no influence on what is not: a voxel whose nearest one is missing is missing, any other one is read from those
        of its neighbours that are not."""
        onto = self.grid if onto is None else onto
        if self.data.dtype == torch.float64 and self.interpolation == "linear":
            return self._warp_in_units(transform, onto)
        affine, field = _split(transform, onto)
        matrix = float64(onto.index_map_to(self.grid, affine.matrix))
        own: sampling.Interpolation = "nearest" if self.interpolation == "nearest" else "linear"

        def read(values: Tensor, interpolation: sampling.Interpolation = own) -> Tensor:
            displacement = field.displacement.to(values.device)
            return sampling.warp(values[None, None], displacement, matrix, interpolation)[0, 0]

        data = self.data.float() if self.interpolation == "linear" else self.data
        if self.missing is None and self.outside == 0:
            return type(self)(read(data), onto, self.name)
        missing = None
        if self.missing is None:
            values = read(data)
        else:
            known = (~self.missing).float()
            weight = read(known)
            values = read(torch.where(self.missing, 0, data))
            values = values / weight.clamp_min(1e-6) if self.interpolation == "linear" else values
            missing = (read(known, "nearest") == 0) | (weight == 0)
        inside = read(torch.ones_like(self.data, dtype=torch.float32)) > 0
        return self._without(values, onto, inside, missing)

    def _warp_in_units(self, transform: Transform, onto: Grid) -> Self:
        """For values that single precision does not hold: in parts of their range, which it does."""
        low, span = float(self.data.min()), float(self.data.max() - self.data.min()) or 1.0
        unit = replace(self, data=((self.data - low) / span).float(), outside=(self.outside - low) / span)
        warped = unit.warp(transform, onto)
        values = warped.data.double() * span + low
        if warped.missing is not None:
            values = torch.where(warped.missing, self.filling, values)
        return replace(warped, data=values, outside=self.outside)

    def _without(self, values: Tensor, grid: Grid, inside: Tensor, missing: Tensor | None) -> Self:
        """The values read on a grid, with what is outside and what is missing as such."""
        if missing is not None:
            missing = missing & inside
        if math.isnan(self.outside):
            missing = ~inside if missing is None else missing | ~inside
        else:
            values = torch.where(inside, values, torch.tensor(self.outside, dtype=values.dtype))
        if missing is not None:
            values = torch.where(missing, torch.tensor(self.filling, dtype=values.dtype), values)
        return type(self)(values, grid, self.name, self.outside, missing)


class Image(Volume):
    """Intensities, read by linear interpolation; 0 outside, unless said otherwise."""

    interpolation: ClassVar[Interpolation] = "linear"

    def coarser(self, factors: int | Sequence[int]) -> Self:
        """Means over blocks of so many voxels, on `grid.coarser(factors)`; a block that reaches beyond counts zeros."""
        grid = self.grid.coarser(factors)
        each = (factors,) * self.grid.ndim if isinstance(factors, int) else tuple(factors)
        data = self.data if self.data.is_floating_point() else self.data.float()
        return type(self)(sampling.average_pool(data[None, None], each)[0, 0], grid, self.name, self.outside)

    def surrounded(self, outside: float | None = None) -> Self:
        """The same image with another value beyond its grid: by default its own background."""
        return replace(self, outside=background(self.data, self.missing) if outside is None else float(outside))


class _SmoothImage(Image):
    """An image without gaps that is read from more than its nearest voxels, on the processor and without gradients."""

    interpolation: ClassVar[Smooth]

    def warp(self, transform: Transform, onto: Grid | None = None) -> Self:
        """As `Volume.warp`; ValueError for an image with missing voxels, which would reach far."""
        if self.missing is not None:
            raise ValueError(f"{self.name}: has gaps, and would be read across them")
        onto = self.grid if onto is None else onto
        affine, field = _split(transform, onto)
        matrix = float64(onto.index_map_to(self.grid, affine.matrix))
        values = resample(self.data, field.displacement[0], matrix, self.interpolation)
        inside = ~values.isnan()
        return self._without(torch.where(inside, values, 0), onto, inside, None)


class CubicImage(_SmoothImage):
    """Intensities, read from the cubic B-spline through all voxels: see `resample`."""

    interpolation: ClassVar[Smooth] = "cubic"


class SincImage(_SmoothImage):
    """Intensities, read by Lanczos' windowed sinc: see `resample`."""

    interpolation: ClassVar[Smooth] = "sinc"


class LabelMap(Volume):
    """Integer labels, read from the nearest voxel; 0 outside."""

    interpolation: ClassVar[Interpolation] = "nearest"
    _what = "labels"


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
