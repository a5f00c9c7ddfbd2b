"""Transforms: functions from points of the fixed world to points of the moving world, RAS+ millimetres.

`moved = moving o T`: an image is pulled back along T, a landmark of the fixed image is sent by T to its match.

A transform is a batch of B such functions, computed on the device where its tensors are, and gradients flow through it
to the networks that found it. What a file holds, or a registration finds, is a batch of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import overload

import numpy as np
import torch
from torch import Tensor

from stepwarp.geometry.grid import Grid, check_affine, float64
from stepwarp.kernels import jacobian, sampling
from stepwarp.kernels.buffers import nothing
from stepwarp.kernels.precision import in_full_precision


class Transform(ABC):
    """A batch of maps of D-dimensional world points (mm, RAS+)."""

    @property
    @abstractmethod
    def ndim(self) -> int: ...

    @abstractmethod
    def __len__(self) -> int:
        """How many maps the batch has."""

    @abstractmethod
    def __getitem__(self, number: int) -> Transform:
        """One map of the batch, as a batch of one."""

    @abstractmethod
    def _map(self, points: Tensor) -> Tensor:
        """World points (B or 1, N, D) float64 -> world points (B, N, D) float64, on the points' device."""

    @abstractmethod
    def after(self, field: DisplacementField) -> DisplacementField:
        """This transform after a field, as one field on the field's grid."""

    @abstractmethod
    def on(self, grid: Grid) -> DisplacementField:
        """This transform sampled on a grid, collapsed into one displacement field."""

    @abstractmethod
    def inverse(self) -> Transform:
        """The transform that undoes this one."""

    @overload
    def __call__(self, points: np.ndarray) -> np.ndarray: ...
    @overload
    def __call__(self, points: Tensor) -> Tensor: ...
    def __call__(self, points):
        """Map world points (..., D) in mm; numpy in, numpy out, and tensors likewise (float64, differentiable).

        Of a batch of B, points (B or 1, ..., D) -> (B, ..., D)."""
        if isinstance(points, np.ndarray):
            return self(float64(points)).detach().numpy()
        if points.shape[-1] != self.ndim:
            raise ValueError(f"points of {points.shape[-1]} coordinates given to a transform of {self.ndim}")
        several = len(self) > 1
        with in_full_precision(points):
            mapped = self._map(points.double().reshape(len(points) if several else 1, -1, self.ndim))
        return mapped.reshape(len(self), *points.shape[1:]) if several else mapped.reshape(points.shape)

    def __matmul__(self, inner: Transform) -> Transform:
        """`T @ U` is T after U: x -> T(U(x)). Nothing is sampled until points come, or `on` is called."""
        return Composition.of(self, inner)

    def collapsed(self, grid: Grid) -> Transform:
        """This transform as one field on `grid`, so that reading it costs one sampling whatever it was composed of.

        Exact at the grid's voxels where two were composed; between them, and for more, linear interpolation stands
        for the fields in between. An affine stays what it is, and exact."""
        return self.on(grid)

    def jacobian_determinant(self, grid: Grid) -> Tensor:
        """Determinant of the derivative at every voxel of `grid`, shape `grid.shape`, float32, of a batch of one.

        By central differences between neighbouring voxels, one-sided at the border; dimensionless, 1 for a rigid
        motion, at most 0 where space folds."""
        (determinant,) = jacobian.determinant(self.on(grid).displacement)
        return determinant


class Affine(Transform):
    """x -> A x + b in world mm. matrix: (D+1, D+1) or (D, D+1) float64, or a batch of them, on any device.

    A single matrix is checked; a batch is what networks find while they learn, and anything."""

    def __init__(self, matrix: np.ndarray | Tensor) -> None:
        matrices = float64(matrix)
        single = matrices.ndim == 2
        matrices = matrices[None] if single else matrices
        if matrices.ndim == 3 and matrices.shape[1] + 1 == matrices.shape[2]:
            last = torch.eye(matrices.shape[2], dtype=torch.float64, device=matrices.device)[-1:]
            matrices = torch.cat([matrices, last.expand(len(matrices), -1, -1)], 1)
        if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
            raise ValueError(f"an affine needs a square homogeneous matrix, not {tuple(matrix.shape)}")
        self.matrices = matrices
        if single:
            check_affine(self.matrix, "a transform")

    @classmethod
    def identity(cls, ndim: int) -> Affine:
        return cls(np.eye(ndim + 1))

    @property
    def matrix(self) -> np.ndarray:
        """(D+1, D+1) float64, read-only, of a batch of one."""
        (matrix,) = self.matrices.detach().cpu().numpy()
        matrix.setflags(write=False)
        return matrix

    @property
    def ndim(self) -> int:
        return self.matrices.shape[1] - 1

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, number: int) -> Affine:
        return Affine(self.matrices[number])

    def _map(self, points: Tensor) -> Tensor:
        return _transformed(points, self.matrices)

    def inverse(self) -> Affine:
        return Affine(torch.linalg.inv(self.matrices))

    def after_affine(self, inner: Affine) -> Affine:
        """This affine after another one, exactly."""
        with in_full_precision(self.matrices):
            return Affine(self.matrices @ inner.matrices.to(self.matrices.device))

    def on(self, grid: Grid) -> DisplacementField:
        return self.after(DisplacementField.identity(grid, self.matrices.device))

    def collapsed(self, grid: Grid) -> Affine:
        return self

    def after(self, field: DisplacementField) -> DisplacementField:
        grid, u = field.grid, field.displacement
        with in_full_precision(u):
            to_index, matrices, to_world = (
                float64(each).to(u.device) for each in (grid.inverse_affine, self.matrices, grid.affine)
            )
            index_map = to_index @ matrices @ to_world
            linear, offset = index_map[:, :-1, :-1], index_map[:, :-1, -1]
            moved = torch.einsum("nab,nb...->na...", linear.to(u), u)
            # In double precision, because an affine may shift by more voxels than the grid has.
            axes = _axes(grid, u.device)
            stretch = linear - torch.eye(grid.ndim, dtype=torch.float64, device=u.device)
            rows = zip(
                moved.flatten(0, 1),
                stretch.expand(len(moved), -1, -1).flatten(0, 1),
                offset.expand(len(moved), -1).flatten(),
                strict=True,
            )
            parts = [(part + (shift + _sum_of(weights, axes))).to(u) for part, weights, shift in rows]
            return DisplacementField(torch.stack(parts).reshape(moved.shape), grid)

    def __repr__(self) -> str:
        if len(self) > 1:
            return f"Affine(batch of {len(self)})"
        rows = ", ".join(f"[{', '.join(f'{value:.4g}' for value in row)}]" for row in self.matrix[:-1] + 0.0)
        return f"Affine([{rows}])"


class DisplacementField(Transform):
    """x -> x + u(x), with u stored on a grid in voxels of that grid.

    displacement: (B, D, *grid.shape), ij order, float32; float64 stays what it is, and half precision is widened: it
    would place a voxel no better than to some hundredths of its width. outside: what u is beyond the grid, which ends
    half a voxel beyond its outermost centres: its "border" value, as in a search, or "zero", as ITK and ANTs read
    files."""

    def __init__(self, displacement: Tensor, grid: Grid, outside: sampling.Outside = "border") -> None:
        if tuple(displacement.shape[1:]) != (grid.ndim, *grid.shape):
            raise ValueError(f"a displacement of shape {tuple(displacement.shape)} does not fit {grid}")
        self.displacement = displacement.to(torch.promote_types(displacement.dtype, torch.float32))
        self.grid = grid
        self.outside: sampling.Outside = outside

    @classmethod
    def identity(cls, grid: Grid, device: torch.device | str = "cpu") -> DisplacementField:
        return cls(nothing((1, grid.ndim, *grid.shape), device=device), grid)

    @classmethod
    def from_millimetres(
        cls, displacement: np.ndarray | Tensor, grid: Grid, outside: sampling.Outside = "border"
    ) -> DisplacementField:
        """From (*grid.shape, D) RAS mm vectors."""
        vectors = float64(displacement)
        voxels = vectors @ float64(np.linalg.inv(grid.linear)).to(vectors.device).T
        return cls(voxels.movedim(-1, 0)[None].float(), grid, outside)

    def millimetres(self) -> Tensor:
        """The displacement as RAS mm vectors, (*grid.shape, D) float32 on the CPU, of a batch of one."""
        return self.to("cpu")._vectors()

    def lengths(self) -> Tensor:
        """How far it moves each voxel, mm, (*grid.shape) float32 on its own device, of a batch of one."""
        return self._vectors().norm(dim=-1)

    def _vectors(self) -> Tensor:
        (displacement,) = self.displacement.detach().float()
        with in_full_precision(displacement):
            return torch.einsum("ab,b...->...a", float64(self.grid.linear).to(displacement), displacement)

    def to(self, device: torch.device | str) -> DisplacementField:
        return DisplacementField(self.displacement.to(device), self.grid, self.outside)

    @property
    def ndim(self) -> int:
        return self.grid.ndim

    def __len__(self) -> int:
        return len(self.displacement)

    def __getitem__(self, number: int) -> DisplacementField:
        return DisplacementField(self.displacement[number][None], self.grid, self.outside)

    def _map(self, points: Tensor) -> Tensor:
        index = _transformed(points, float64(self.grid.inverse_affine)[None])
        field = self.displacement.to(points.device)
        moved = sampling.sample(field, index.mT.to(field), outside="border").mT.double()
        if self.outside == "zero":
            moved = moved * self._holds(list(index.unbind(-1)))[..., None]
        return points + moved @ float64(self.grid.linear).to(points.device).T

    def inverse(self) -> DisplacementField:
        """The inverse on the same grid, by fixed-point iteration; how exact it is says `inverse_residual`."""
        with in_full_precision(self.displacement):
            return DisplacementField(jacobian.invert(self.displacement), self.grid, self.outside)

    def on(self, grid: Grid) -> DisplacementField:
        if grid == self.grid:
            return self
        matrix = float64(grid.index_map_to(self.grid))
        with in_full_precision(self.displacement):
            resized = sampling.resize_displacement(self.displacement, grid.shape, matrix)
        if self.outside == "zero":
            lines = _axes(grid, resized.device)
            resized = resized * self._holds([row[-1] + _sum_of(row[:-1], lines) for row in matrix[:-1]])
        return DisplacementField(resized, grid, self.outside)

    def after(self, field: DisplacementField) -> DisplacementField:
        grid, inner = field.grid, field.displacement
        matrix = None if grid == self.grid else float64(grid.index_map_to(self.grid))
        with in_full_precision(inner):
            moved = sampling.compose(self.displacement.to(inner.device), inner, matrix)
        if self.outside == "zero":
            lines = [line + u for line, u in zip(_axes(grid, inner.device), inner.unbind(1), strict=True)]
            rows = float64(grid.index_map_to(self.grid))[:-1]
            moved = torch.where(
                self._holds([row[-1] + _sum_of(row[:-1], lines) for row in rows])[:, None], moved, inner
            )
        return DisplacementField(moved, grid)

    def _holds(self, index: list[Tensor]) -> Tensor:
        """Whether the grid has something at an index (a tensor for each axis), decided in double precision as by ITK:
        the voxels of two grids often lie on each other's edge."""
        within = [(at >= -0.5) & (at < n - 0.5) for at, n in zip(index, self.grid.shape, strict=True)]
        return torch.stack(within).all(0)

    def __repr__(self) -> str:
        batch = f"batch of {len(self)} " if len(self) > 1 else ""
        return f"DisplacementField({batch}on {self.grid})"


class Composition(Transform):
    """Transforms one after the other; `parts[-1]` sees the point first.

    Exact, and every reading samples all its fields anew: n steps that each read what came before cost n (n + 1) / 2
    samplings. `collapsed` makes one field of it."""

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
                    parts[-1] = parts[-1].after_affine(part)
                else:
                    parts.append(part)
        return parts[0] if len(parts) == 1 else cls(parts)

    @property
    def ndim(self) -> int:
        return self.parts[0].ndim

    def __len__(self) -> int:
        return max(map(len, self.parts))

    def __getitem__(self, number: int) -> Transform:
        return Composition.of(*(part if len(part) == 1 else part[number] for part in self.parts))

    def _map(self, points: Tensor) -> Tensor:
        for part in reversed(self.parts):
            points = part._map(points)
        return points

    def inverse(self) -> Transform:
        return Composition.of(*(part.inverse() for part in reversed(self.parts)))

    def on(self, grid: Grid) -> DisplacementField:
        *outer, innermost = self.parts
        return Composition(outer).after(innermost.on(grid))

    def after(self, field: DisplacementField) -> DisplacementField:
        for part in reversed(self.parts):
            field = part.after(field)
        return field

    def collapsed(self, grid: Grid) -> Transform:
        whole, *rest = (part.collapsed(grid) for part in self.parts)
        for inner in rest:
            whole = whole.after(inner.on(grid))
        return whole

    def __repr__(self) -> str:
        return " @ ".join(map(repr, self.parts))


def _transformed(points: Tensor, matrices: Tensor) -> Tensor:
    """Homogeneous matrices (B or 1, D+1, D+1) applied to points (B or 1, N, D)."""
    matrices = matrices.to(points.device)
    return points @ matrices[:, :-1, :-1].mT + matrices[:, None, :-1, -1]


def _axes(grid: Grid, device: torch.device) -> tuple[Tensor, ...]:
    """The indices along each axis as grids in double precision, without the memory of any."""
    lines = [torch.arange(n, dtype=torch.float64, device=device) for n in grid.shape]
    return torch.meshgrid(*lines, indexing="ij")


def _sum_of(weights: Tensor, terms: Iterable[Tensor]) -> Tensor:
    return sum((weight * term for weight, term in zip(weights, terms, strict=True)), start=weights.new_zeros(()))


def inverse_residual(
    transform: Transform, inverse: Transform, points: np.ndarray, device: torch.device | str = "cpu"
) -> np.ndarray:
    """|inverse(transform(x)) - x| in mm for world points (N, D): how far from inverse to each other the two are.

    device: where to compute, for fields that lie there."""
    there = float64(points).to(device)
    return np.linalg.norm((inverse(transform(there)) - there).detach().cpu().numpy(), axis=1)
