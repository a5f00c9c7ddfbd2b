"""Batches of maps between images on one grid: the differentiable siblings of `geometry.Transform`.

A map sends points of the fixed world to points of the moving world, RAS+ mm, as a transform does; here there are B of
them, they stay on their device, and gradients flow through them to the networks that made them. A map is a function
of points, not of a grid: a field found on a coarse grid can be read on any other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Image, Transform
from stepwarp.geometry.grid import float64
from stepwarp.kernels import sampling

_AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True, eq=False)
class Images:
    """A batch of images on one grid. data: (B, C, *grid.shape)."""

    data: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if tuple(self.data.shape[2:]) != self.grid.shape:
            raise ValueError(f"images of shape {tuple(self.data.shape)} do not fit {self.grid}")

    @classmethod
    def stack(cls, images: Sequence[Image], device: torch.device | str = "cpu") -> Images:
        """Single-channel images of one grid as a batch of float32, (B, 1, *grid.shape)."""
        grid = images[0].grid
        if any(image.grid != grid for image in images):
            raise ValueError("a batch needs images on one grid: resample them onto one first")
        return cls(torch.stack([image.data.to(device).float() for image in images])[:, None], grid)

    def pooled(self, factor: int = 2, corner_aligned: bool = False) -> Images:
        """The means over blocks of `factor` voxels along each axis, on the grid of the blocks' centres.

        corner_aligned: place them as icon_registration does instead, on a grid whose outermost centres are those of
        this grid. Then a mean is taken to lie up to half a fine voxel from where it was formed, and a last block that
        is incomplete is the mean of what it has. For networks that were trained so, and for nothing else."""
        if not corner_aligned:
            factors = (factor,) * self.grid.ndim
            return Images(sampling.average_pool(self.data, factors), self.grid.coarser(factor))
        pooled = _AVERAGE_POOL[self.grid.ndim](self.data, factor, ceil_mode=True)
        return Images(pooled, corner_aligned_grid(self.grid, factor))

    def warp(self, through: Map, outside: sampling.Outside = "zero") -> Images:
        """These images pulled back: at each voxel x, their value at through(x). Linear, and 0 outside the grid.

        outside: "border" reads the border's value there, as icon_registration does."""
        with _in_full_precision(self.data):
            still = torch.eye(self.grid.ndim + 1, dtype=torch.float64)
            return Images(sampling.warp(self.data, through.on(self.grid), still, outside=outside), self.grid)


class Map(ABC):
    """A batch of maps, fixed world -> moving world, RAS+ mm."""

    @property
    @abstractmethod
    def ndim(self) -> int: ...

    @abstractmethod
    def move(self, coords: Tensor, frame: Grid) -> Tensor:
        """Where points go. coords: (B or 1, D, *any) in voxels of `frame`, and so is what is returned, (B, D, *any)."""

    @abstractmethod
    def transform(self, number: int = 0) -> Transform:
        """One map of the batch as a transform for files and metrics: on the CPU, without its gradient."""

    @abstractmethod
    def on(self, grid: Grid) -> Tensor:
        """The displacement at every voxel of `grid`, (B, D, *grid.shape) in voxels of it, differentiable."""

    @abstractmethod
    def after_displacement(self, displacement: Tensor, grid: Grid) -> Tensor:
        """The displacement of this map after x + u(x), both (B or 1, D, *grid.shape) in voxels of `grid`."""

    def at(self, points: Tensor) -> Tensor:
        """Where world points (B or 1, N, D) in mm go: (B, N, D) in mm, differentiable."""
        world = Grid((1,) * self.ndim, np.eye(self.ndim + 1))
        with _in_full_precision(points):
            return self.move(points.movedim(-1, 1), world).movedim(1, -1)

    def __matmul__(self, inner: Map) -> Map:
        """`phi @ psi` is phi after psi: x -> phi(psi(x)). Nothing is sampled yet; matrices are multiplied."""
        parts = [*_parts(self), *_parts(inner)]
        merged = parts[:1]
        for part in parts[1:]:
            if isinstance(part, MatrixMap) and isinstance(merged[-1], MatrixMap):
                merged[-1] = merged[-1].after(part)
            else:
                merged.append(part)
        return merged[0] if len(merged) == 1 else ComposedMap(tuple(merged))

    @abstractmethod
    def collapsed(self, grid: Grid) -> Map:
        """This map as one field on `grid`, so that reading it costs one sampling whatever it was composed of.

        Exact at the grid's voxels where two maps were composed; between them, and for more, linear interpolation
        stands for the fields in between. A matrix stays what it is, and exact."""


@dataclass(frozen=True, eq=False)
class FieldMap(Map):
    """x -> x + u(x). displacement: (B, D, *grid.shape) in voxels of `grid`, its border value beyond the grid.

    Half precision is widened: it would place a voxel no better than to some hundredths of its width."""

    displacement: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if tuple(self.displacement.shape[1:]) != (self.grid.ndim, *self.grid.shape):
            raise ValueError(f"displacements of shape {tuple(self.displacement.shape)} do not fit {self.grid}")
        exact = torch.promote_types(self.displacement.dtype, torch.float32)
        object.__setattr__(self, "displacement", self.displacement.to(exact))

    @property
    def ndim(self) -> int:
        return self.grid.ndim

    def move(self, coords: Tensor, frame: Grid) -> Tensor:
        own = _transformed(coords, frame.index_map_to(self.grid))
        moved = sampling.sample(self.displacement, own, outside="border")
        return coords + _rotated(moved, self.grid.index_map_to(frame))

    def on(self, grid: Grid) -> Tensor:
        if grid == self.grid:
            return self.displacement
        with _in_full_precision(self.displacement):
            return sampling.resize_displacement(self.displacement, grid.shape, float64(grid.index_map_to(self.grid)))

    def after_displacement(self, displacement: Tensor, grid: Grid) -> Tensor:
        matrix = None if grid == self.grid else float64(grid.index_map_to(self.grid))
        with _in_full_precision(displacement):
            return sampling.compose(self.displacement, displacement, matrix)

    def transform(self, number: int = 0) -> DisplacementField:
        return DisplacementField(self.displacement[number : number + 1].detach().float().cpu(), self.grid)

    def collapsed(self, grid: Grid) -> FieldMap:
        return self if grid == self.grid else FieldMap(self.on(grid), grid)


@dataclass(frozen=True, eq=False)
class MatrixMap(Map):
    """x -> A x + b. matrix: (B, D, D+1) = [A | b] in world mm, held in double precision: b may be large."""

    matrix: Tensor

    def __post_init__(self) -> None:
        d = self.matrix.shape[1]
        if self.matrix.ndim != 3 or self.matrix.shape[2] != d + 1:
            raise ValueError(f"a batch of matrices needs the shape (B, D, D + 1), not {tuple(self.matrix.shape)}")
        object.__setattr__(self, "matrix", self.matrix.double())

    @property
    def ndim(self) -> int:
        return self.matrix.shape[1]

    def move(self, coords: Tensor, frame: Grid) -> Tensor:
        return coords + self._displacement(coords, frame)

    def on(self, grid: Grid) -> Tensor:
        with _in_full_precision(self.matrix):
            return self._displacement(_indices(grid, self.matrix.new_empty(0, dtype=torch.float32)), grid)

    def after_displacement(self, displacement: Tensor, grid: Grid) -> Tensor:
        with _in_full_precision(displacement):
            return displacement + self._displacement(displacement + _indices(grid, displacement), grid)

    def after(self, inner: MatrixMap) -> MatrixMap:
        """This map after another one, exactly."""
        d = self.ndim
        with _in_full_precision(self.matrix):
            product = self.matrix[..., :d] @ inner.matrix
            return MatrixMap(torch.cat([product[..., :d], product[..., d:] + self.matrix[..., d:]], -1))

    def transform(self, number: int = 0) -> Affine:
        return Affine(self.matrix[number].detach().cpu().numpy())

    def collapsed(self, grid: Grid) -> MatrixMap:
        return self

    def _displacement(self, coords: Tensor, frame: Grid) -> Tensor:
        """A x + b - x in voxels of `frame`, (B, D, *any): formed in double precision, the result as the coordinates."""
        d = self.ndim
        last = torch.eye(d + 1, device=self.matrix.device, dtype=torch.float64)[d:].expand(len(self.matrix), 1, d + 1)
        to_world, to_index = (float64(m).to(self.matrix.device) for m in (frame.affine, frame.inverse_affine))
        change = to_index @ torch.cat([self.matrix, last], 1) @ to_world
        change = change - torch.eye(d + 1, device=change.device, dtype=change.dtype)
        linear, offset = change[:, :d, :d].to(coords), change[:, :d, d].to(coords)
        batch = max(len(linear), len(coords))
        linear, coords = linear.expand(batch, -1, -1), coords.expand(batch, *coords.shape[1:])
        return torch.einsum("nab,nb...->na...", linear, coords) + offset.view(-1, d, *[1] * (coords.ndim - 2))


@dataclass(frozen=True, eq=False)
class ComposedMap(Map):
    """Maps one after the other, each evaluated when points come; `parts[-1]` sees them first.

    Exact, and every reading samples all its fields anew: n steps that each read what came before cost n (n + 1) / 2
    samplings. `collapsed` makes one field of it."""

    parts: tuple[Map, ...]

    def __post_init__(self) -> None:
        if len({part.ndim for part in self.parts}) != 1:
            raise ValueError("only maps of one dimension can follow each other")

    @property
    def ndim(self) -> int:
        return self.parts[0].ndim

    def move(self, coords: Tensor, frame: Grid) -> Tensor:
        for part in reversed(self.parts):
            coords = part.move(coords, frame)
        return coords

    def on(self, grid: Grid) -> Tensor:
        *outer, innermost = self.parts
        return ComposedMap(tuple(outer)).after_displacement(innermost.on(grid), grid)

    def after_displacement(self, displacement: Tensor, grid: Grid) -> Tensor:
        for part in reversed(self.parts):
            displacement = part.after_displacement(displacement, grid)
        return displacement

    def collapsed(self, grid: Grid) -> Map:
        whole, *rest = (part.collapsed(grid) for part in self.parts)
        for inner in rest:
            whole = FieldMap(whole.after_displacement(inner.on(grid), grid), grid)
        return whole

    def transform(self, number: int = 0) -> Transform:
        return Composition.of(*(part.transform(number) for part in self.parts))


def corner_aligned_grid(grid: Grid, factor: int) -> Grid:
    """A grid of 1 / `factor` as many voxels (rounded up) whose outermost centres are those of `grid`."""
    fine = np.array(grid.shape)
    coarse = -(-fine // factor)
    if coarse.min() < 2:
        raise ValueError(f"{grid} is too small to be pooled by {factor} with its corners in place")
    return Grid(tuple(coarse), grid.affine @ np.diag([*((fine - 1) / (coarse - 1)), 1.0]))


def _parts(each: Map) -> tuple[Map, ...]:
    return each.parts if isinstance(each, ComposedMap) else (each,)


def _in_full_precision(like: Tensor) -> torch.autocast:
    """Mixed precision is for convolutions: half precision cannot tell the neighbours of voxel 300 apart."""
    return torch.autocast(like.device.type, enabled=False)


def _indices(grid: Grid, like: Tensor) -> Tensor:
    return grid.indices(like.device, like.dtype)


def _transformed(coords: Tensor, matrix: np.ndarray) -> Tensor:
    """A homogeneous matrix applied to positions (B, D, *any)."""
    offset = float64(matrix[:-1, -1]).to(coords)
    return _rotated(coords, matrix) + offset.view(1, -1, *[1] * (coords.ndim - 2))


def _rotated(vectors: Tensor, matrix: np.ndarray) -> Tensor:
    """The linear part of a homogeneous matrix applied to vectors (B, D, *any)."""
    if np.allclose(matrix[:-1, :-1], np.eye(len(matrix) - 1), rtol=0, atol=1e-12):
        return vectors
    return torch.einsum("ab,nb...->na...", float64(matrix[:-1, :-1]).to(vectors), vectors)
