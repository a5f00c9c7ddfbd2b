"""Transforms: functions from points of the fixed world to points of the moving world, RAS+ millimetres.

`moved = moving o T`: an image is pulled back along T, a landmark of the fixed image is sent by T to its match."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import overload

import numpy as np
import torch
from torch import Tensor

from stepwarp.geometry.grid import Grid, check_affine, float64
from stepwarp.kernels import jacobian, sampling

#: World points mapped at a time where a whole grid is evaluated: bounds the memory in float64.
_CHUNK = 1 << 20


class Transform(ABC):
    """A map of D-dimensional world points (mm, RAS+)."""

    @property
    @abstractmethod
    def ndim(self) -> int: ...

    @abstractmethod
    def _map(self, points: Tensor) -> Tensor:
        """World points (N, D) float64 -> world points (N, D) float64."""

    @abstractmethod
    def inverse(self) -> Transform:
        """The transform that undoes this one."""

    @overload
    def __call__(self, points: np.ndarray) -> np.ndarray: ...
    @overload
    def __call__(self, points: Tensor) -> Tensor: ...
    def __call__(self, points):
        """Map world points (..., D) in mm; numpy in, numpy out, and tensors likewise (float64)."""
        if isinstance(points, np.ndarray):
            return self(float64(points)).numpy()
        if points.shape[-1] != self.ndim:
            raise ValueError(f"points of {points.shape[-1]} coordinates given to a transform of {self.ndim}")
        return self._map(points.double().reshape(-1, self.ndim)).reshape(points.shape)

    def __matmul__(self, inner: Transform) -> Transform:
        """`T @ U` is T after U: x -> T(U(x)). Nothing is computed until points come, or `on` is called."""
        return Composition.of(self, inner)

    def on(self, grid: Grid) -> DisplacementField:
        """This transform sampled on a grid, collapsed into one displacement field (float32)."""
        to_world = Affine(grid.affine)
        to_index = Affine(grid.inverse_affine)
        index = grid.indices(dtype=torch.float64)[0].flatten(1).T
        parts = [to_index._map(self._map(to_world._map(part))) - part for part in index.split(_CHUNK)]
        return DisplacementField(torch.cat(parts).T.reshape(1, grid.ndim, *grid.shape).float(), grid)

    def jacobian_determinant(self, grid: Grid) -> Tensor:
        """Determinant of the transform's derivative at every voxel of `grid`, shape `grid.shape`, float32.

        By central differences between neighbouring voxels, one-sided at the border; dimensionless, 1 for a rigid
        motion, at most 0 where space folds."""
        return jacobian.determinant(self.on(grid).displacement)[0]


class Affine(Transform):
    """x -> A x + b in world mm. matrix: (D+1, D+1) or (D, D+1) float64."""

    def __init__(self, matrix: np.ndarray | Tensor) -> None:
        matrix = np.array(matrix.detach().cpu() if isinstance(matrix, Tensor) else matrix, dtype=np.float64)
        if matrix.ndim == 2 and matrix.shape[0] + 1 == matrix.shape[1]:
            matrix = np.vstack([matrix, np.eye(matrix.shape[1])[-1:]])
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"an affine needs a square homogeneous matrix, not {matrix.shape}")
        check_affine(matrix, "a transform")
        matrix.setflags(write=False)
        self.matrix = matrix

    @classmethod
    def identity(cls, ndim: int) -> Affine:
        return cls(np.eye(ndim + 1))

    @property
    def ndim(self) -> int:
        return len(self.matrix) - 1

    def _map(self, points: Tensor) -> Tensor:
        matrix = float64(self.matrix).to(points.device)
        return points @ matrix[:-1, :-1].T + matrix[:-1, -1]

    def inverse(self) -> Affine:
        return Affine(np.linalg.inv(self.matrix))

    def on(self, grid: Grid) -> DisplacementField:
        return self.after(DisplacementField.identity(grid))

    def after(self, field: DisplacementField) -> DisplacementField:
        """This affine after a field, as one field on the field's grid."""
        grid = field.grid
        index_map = float64(grid.index_map_to(grid, self.matrix)).to(field.displacement.device)
        linear, offset = index_map[:-1, :-1], index_map[:-1, -1]
        moved = torch.einsum("ab,nb...->na...", linear.float(), field.displacement)
        # In double precision, because an affine may shift by more voxels than the grid has.
        lines = [torch.arange(n, dtype=torch.float64, device=linear.device) for n in grid.shape]
        axes = torch.meshgrid(*lines, indexing="ij")
        stretch = linear - torch.eye(grid.ndim, dtype=torch.float64, device=linear.device)
        for component, weights, shift in zip(moved[0], stretch, offset, strict=True):
            component += shift + sum(weight * axis for weight, axis in zip(weights, axes, strict=True))
        return DisplacementField(moved, grid)

    def __repr__(self) -> str:
        rows = ", ".join(f"[{', '.join(f'{value:.4g}' for value in row)}]" for row in self.matrix[:-1] + 0.0)
        return f"Affine([{rows}])"


class DisplacementField(Transform):
    """x -> x + u(x), with u stored on a grid in voxels of that grid.

    displacement: (1, D, *grid.shape) float32, ij order. outside: what u is beyond the grid, which ends half a voxel
    beyond its outermost centres: its "border" value, as in a search, or "zero", as ITK and ANTs read files."""

    def __init__(self, displacement: Tensor, grid: Grid, outside: sampling.Outside = "border") -> None:
        if tuple(displacement.shape) != (1, grid.ndim, *grid.shape):
            raise ValueError(f"a displacement of shape {tuple(displacement.shape)} does not fit {grid}")
        self.displacement = displacement
        self.grid = grid
        self.outside: sampling.Outside = outside

    @classmethod
    def identity(cls, grid: Grid) -> DisplacementField:
        return cls(torch.zeros(1, grid.ndim, *grid.shape), grid)

    @classmethod
    def from_millimetres(
        cls, displacement: np.ndarray | Tensor, grid: Grid, outside: sampling.Outside = "border"
    ) -> DisplacementField:
        """From (*grid.shape, D) RAS mm vectors."""
        vectors = float64(displacement)
        voxels = vectors @ float64(np.linalg.inv(grid.linear)).to(vectors.device).T
        return cls(voxels.movedim(-1, 0)[None].float(), grid, outside)

    def millimetres(self) -> Tensor:
        """The displacement as RAS mm vectors, (*grid.shape, D) float32 on the CPU."""
        linear = float64(self.grid.linear).float()
        return torch.einsum("ab,b...->...a", linear, self.displacement[0].float().cpu())

    @property
    def ndim(self) -> int:
        return self.grid.ndim

    def _map(self, points: Tensor) -> Tensor:
        index = Affine(self.grid.inverse_affine)._map(points)
        field = self.displacement.to(points.device)
        moved = sampling.sample(field, index.T[None].to(field), outside="border")[0].T.double()
        if self.outside == "zero":
            moved = moved * self._holds(list(index.unbind(1)))[:, None]
        return points + moved @ float64(self.grid.linear).to(points.device).T

    def inverse(self) -> DisplacementField:
        """The inverse on the same grid, by fixed-point iteration; how exact it is says `inverse_residual`."""
        return DisplacementField(jacobian.invert(self.displacement), self.grid, self.outside)

    def on(self, grid: Grid) -> DisplacementField:
        if grid == self.grid:
            return self
        matrix = float64(grid.index_map_to(self.grid))
        resized = sampling.resize_displacement(self.displacement, grid.shape, matrix)
        if self.outside == "zero":
            lines = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid.shape), indexing="ij")
            at = [row[-1] + sum(slope * line for slope, line in zip(row, lines, strict=False)) for row in matrix[:-1]]
            resized = resized * self._holds(at).to(resized.device)
        return DisplacementField(resized, grid, self.outside)

    def _holds(self, index: list[Tensor]) -> Tensor:
        """Whether the grid has something at an index (a tensor for each axis), decided in double precision as by ITK:
        the voxels of two grids often lie on each other's edge."""
        within = [(at >= -0.5) & (at < n - 0.5) for at, n in zip(index, self.grid.shape, strict=True)]
        return torch.stack(within).all(0)

    def __repr__(self) -> str:
        return f"DisplacementField(on {self.grid})"


class Composition(Transform):
    """Transforms one after the other; `parts[-1]` sees the point first."""

    def __init__(self, parts: Iterable[Transform]) -> None:
        self.parts = tuple(parts)
        if len({part.ndim for part in self.parts}) != 1:
            raise ValueError("only transforms of one dimension can follow each other")

    @classmethod
    def of(cls, *transforms: Transform) -> Transform:
        """The composition, without nesting, and with neighbouring affines multiplied into one."""
        parts: list[Transform] = []
        for transform in transforms:
            for part in transform.parts if isinstance(transform, Composition) else (transform,):
                if parts and isinstance(part, Affine) and isinstance(parts[-1], Affine):
                    parts[-1] = Affine(parts[-1].matrix @ part.matrix)
                else:
                    parts.append(part)
        return parts[0] if len(parts) == 1 else cls(parts)

    @property
    def ndim(self) -> int:
        return self.parts[0].ndim

    def _map(self, points: Tensor) -> Tensor:
        for part in reversed(self.parts):
            points = part._map(points)
        return points

    def inverse(self) -> Transform:
        return Composition.of(*(part.inverse() for part in reversed(self.parts)))

    def on(self, grid: Grid) -> DisplacementField:
        outer, *inner = self.parts
        if isinstance(outer, Affine) and inner:
            return outer.after(Composition.of(*inner).on(grid))
        return super().on(grid)

    def __repr__(self) -> str:
        return " @ ".join(map(repr, self.parts))


def inverse_residual(transform: Transform, inverse: Transform, points: np.ndarray) -> np.ndarray:
    """|inverse(transform(x)) - x| in mm for world points (N, D): how far from inverse to each other the two are."""
    return np.linalg.norm(inverse(transform(points)) - points, axis=1)
