"""What a network wants to be given: how intensities are scaled, and on which grid the two images meet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.geometry import Affine, Grid, Image, Transform
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.geometry.orientation import canonical
from stepwarp.kernels.order import nth_smallest
from stepwarp.recipes import Strict

#: An image with values below this is taken to be in Hounsfield units, where air is -1000.
_AIR = -500.0
#: Of a grid: more than any memory holds as a network needs it.
_MOST_VOXELS = 2**30
#: Brighter than this, in units of bright tissue, is foreground.
_FOREGROUND = 0.05
#: The letters of an axis' direction, by world axis: towards its positive side, towards its negative side.
_LETTERS = ("RL", "AP", "SI")


class Window(Strict):
    """`low` to `high` of the image's own unit become 0 to 1; what lies outside is cut off."""

    kind: Literal["window"] = "window"
    low: float
    high: float

    def scale(self, image: Image) -> Image:
        return _stretched(image, self.low, self.high)


class Quantiles(Strict):
    """The values below which these shares of all voxels lie become 0 and 1; what lies outside is cut off."""

    kind: Literal["quantiles"] = "quantiles"
    low: float = Field(default=0.0, ge=0, lt=1)
    high: float = Field(default=0.99, gt=0, le=1)

    def scale(self, image: Image) -> Image:
        values = image.data.float().flatten()
        return _stretched(image, _quantile(values, self.low), _quantile(values, self.high))


class Maximum(Strict):
    """0 stays, and the brightest voxel becomes `to`."""

    kind: Literal["maximum"] = "maximum"
    to: float = Field(default=0.9, gt=0)

    def scale(self, image: Image) -> Image:
        brightest = float(image.data.max())
        if not brightest > 0:
            raise InputError(f"{image.name}: no voxel is brighter than 0. Is it the right file?")
        return Image((image.data * (self.to / brightest)).float(), image.grid, image.name)


class Modality(Strict):
    """CT, known by its values of air, as by a window of -1000 to 1000; any other as by quantiles 0 and 0.99."""

    kind: Literal["modality"] = "modality"

    def scale(self, image: Image) -> Image:
        hounsfield = float(image.data.min()) < _AIR
        return (Window(low=-1000, high=1000) if hounsfield else Quantiles()).scale(image)


class Tissue(Strict):
    """The background at 0 and bright tissue at 1, as stepwarp's own optimisation scales them."""

    kind: Literal["tissue"] = "tissue"

    def scale(self, image: Image) -> Image:
        return scale_intensities(image)


class FullExtent(Strict):
    """Each image stretched onto a grid of this shape over its own full extent, whatever its size: a network of images
    without a unit of length. Where no start is given, the two extents are laid onto each other.

    shape: voxels along each axis. axes: the direction of each in 3D; "SAR" is how ITK's arrays hold a RAS image.
    Between its voxels an image is read linearly, without smoothing, as icon_registration does."""

    kind: Literal["full_extent"] = "full_extent"
    shape: tuple[PositiveInt, ...]
    axes: str = "SAR"

    @field_validator("axes")
    @classmethod
    def _three_directions(cls, axes: str) -> str:
        if sorted(_world_axis(letter) for letter in axes) != [0, 1, 2]:
            raise ValueError(f"axes are three letters, one of R or L, of A or P, of S or I, not '{axes}'")
        return axes

    def grid(self, image: Image) -> Grid:
        """The network's grid over a canonical image."""
        if image.grid.ndim != len(self.shape):
            raise InputError(f"{image.name}: has {image.grid.ndim} axes, and the network works on {len(self.shape)}")
        stored = image.grid if image.grid.ndim != 3 else _with_axes(image.grid, self.axes)
        _check_size(np.array(self.shape, float), image)
        factors = np.array(stored.shape) / self.shape
        block = np.diag([*factors, 1.0])
        block[:-1, -1] = (factors - 1) / 2
        return Grid(self.shape, stored.affine @ block)

    def start(self, fixed: Grid, moving: Image) -> Affine:
        return Affine(self.grid(moving).affine @ np.linalg.inv(fixed.affine))

    def read(self, image: Image, through: Transform, onto: Grid) -> Image:
        return image.warp(through, onto)


class Spacing(Strict):
    """Both images on one grid with voxels of `mm`, over the fixed image's extent; where no start is given, their
    worlds are taken to be the same.

    multiple: sizes are rounded up to a multiple of it. margin_mm: of the extent only the foreground, of values above
    0.05, and so much around it: empty space costs as much as tissue. Finer images are averaged over blocks of voxels
    first."""

    kind: Literal["spacing"] = "spacing"
    mm: float = Field(gt=0, allow_inf_nan=False)
    multiple: PositiveInt = 1
    margin_mm: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    def grid(self, image: Image) -> Grid:
        """The network's grid over a canonical image, its intensities scaled: same centre and directions."""
        own = image.grid if self.margin_mm is None else _around_foreground(image, self.margin_mm)
        voxels = np.ceil(np.array(own.shape) * own.spacing / self.mm - 1e-3)
        wanted = np.maximum(np.ceil(voxels / self.multiple), 1) * float(self.multiple)
        _check_size(wanted, image)
        shape = wanted.astype(int)
        affine = np.eye(own.ndim + 1)
        affine[:-1, :-1] = own.linear / own.spacing * self.mm
        affine[:-1, -1] = own.centre - affine[:-1, :-1] @ ((shape - 1) / 2)
        return Grid(tuple(shape), affine)

    def start(self, fixed: Grid, moving: Image) -> Affine:
        return Affine.identity(fixed.ndim)

    def read(self, image: Image, through: Transform, onto: Grid) -> Image:
        factors = tuple(max(1, int(self.mm / spacing + 1e-3)) for spacing in image.grid.spacing)
        return image.coarser(factors).warp(through, onto)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A pair as the network sees it: both images on its grid, the moving one already read through `start`.

    What the network finds is a map x -> y of the fixed world; the whole transform is `start` after it."""

    fixed: Image
    moving: Image
    start: Transform


class Recipe(Strict):
    """All that happens to a pair of images before a network sees it, and the precision of what happens then.

    precision: bf16 computes convolutions in half precision where the processor is made for it, which is two to three
    times as fast there, and in single precision elsewhere."""

    intensities: Annotated[Window | Quantiles | Maximum | Modality | Tissue, Field(discriminator="kind")]
    grid: Annotated[FullExtent | Spacing, Field(discriminator="kind")]
    precision: Literal["fp32", "bf16"] = "fp32"

    def prepare(self, fixed: Image, moving: Image, start: Transform | None = None) -> Prepared:
        """Images of any size, spacing and orientation as the network wants them, each interpolated once.

        start: a transform, usually an affine, that brings them together already. Raises InputError for images without
        contrast, or of another dimension than the network's."""
        fixed, moving = (self.intensities.scale(canonical(image)) for image in (fixed, moving))
        grid = self.grid.grid(fixed)
        if moving.grid.ndim != grid.ndim:
            raise InputError(f"{moving.name}: has {moving.grid.ndim} axes, and {fixed.name} {grid.ndim}")
        start = self.grid.start(grid, moving) if start is None else start
        still = Affine.identity(grid.ndim)
        return Prepared(self.grid.read(fixed, still, grid), self.grid.read(moving, start, grid), start)


def _around_foreground(image: Image, margin_mm: float) -> Grid:
    """The part of the image's grid that holds its foreground, and so much around it as the image has."""
    inside = image.data > _FOREGROUND
    if not inside.any():
        return image.grid
    spacing, low, shape = image.grid.spacing, [], []
    for axis, n in enumerate(inside.shape):
        others = tuple(other for other in range(inside.ndim) if other != axis)
        found = inside.any(others).nonzero() if others else inside.nonzero()
        margin = math.ceil(margin_mm / spacing[axis])
        low.append(max(int(found.min()) - margin, 0))
        shape.append(min(int(found.max()) + 1 + margin, n) - low[-1])
    shift = np.eye(image.grid.ndim + 1)
    shift[:-1, -1] = low
    return Grid(tuple(shape), image.grid.affine @ shift)


def _check_size(shape: np.ndarray, image: Image) -> None:
    with np.errstate(over="ignore"):
        voxels = float(shape.prod())
    if not voxels <= _MOST_VOXELS:
        raise InputError(f"{image.name}: the network wants it on a grid of {voxels:.0e} voxels, which fit nowhere")


def _stretched(image: Image, low: float, high: float) -> Image:
    if not high > low:
        raise InputError(f"{image.name}: no voxel stands out from the background. Is it the right file?")
    return Image(((image.data.clamp(low, high) - low) / (high - low)).float(), image.grid, image.name)


def _quantile(values: Tensor, q: float) -> float:
    return float(nth_smallest(values, max(1, int(q * values.numel()))))


def _world_axis(letter: str) -> int:
    return next((axis for axis, letters in enumerate(_LETTERS) if letter in letters), -1)


def _with_axes(grid: Grid, axes: str) -> Grid:
    """A canonical grid with its voxels counted along other axes: the same points, permuted and flipped."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, letter in enumerate(axes):
        source = _world_axis(letter)
        backwards = letter == _LETTERS[source][1]
        matrix[source, axis] = -1 if backwards else 1
        matrix[source, 3] = grid.shape[source] - 1 if backwards else 0
    return Grid(tuple(grid.shape[_world_axis(letter)] for letter in axes), grid.affine @ matrix)
