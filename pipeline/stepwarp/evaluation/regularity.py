"""How smooth and invertible a transform is, measured on the fixed grid and inside a mask.

Measured there because a field looks far better than it is on a network's own coarse grid or over empty background."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from stepwarp.evaluation.distances import DistanceSummary
from stepwarp.geometry import DisplacementField, Grid, Transform, inverse_residual
from stepwarp.kernels import jacobian

#: Planes of cells that are measured at a time: bounds the memory.
_SLAB = 8


def _tetrahedra() -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """A vertex and its three neighbours, as corners of the unit cube, each tetrahedron positively oriented."""
    found = []
    for vertex in itertools.product((0, 1), repeat=3):
        found.append((vertex, [tuple(int(b != (a == axis)) for a, b in enumerate(vertex)) for axis in range(3)]))
    for vertex in ((0, 0, 0), (1, 1, 1)):
        found.append((vertex, [tuple(int(b != (a != axis)) for a, b in enumerate(vertex)) for axis in range(3)]))
    return [(v, n if np.linalg.det(np.subtract(n, v)) > 0 else n[::-1]) for v, n in found]


_TETRAHEDRA = _tetrahedra()


@dataclass(frozen=True)
class Folds:
    """Voxels of the mask whose Jacobian determinant is not positive. share: of the mask's voxels, 0 to 1."""

    count: int
    share: float


@dataclass(frozen=True)
class JacobianRange:
    """How the determinant spreads over the mask: its extremes, the 1st, 50th and 99th percentile."""

    min: float
    p01: float
    median: float
    p99: float
    max: float


@dataclass(frozen=True)
class NonDiffeomorphicVolume:
    """How much space folds over (Liu et al. 2024): ml, and per cent of the mask's volume."""

    percent: float
    ml: float


@dataclass(frozen=True)
class Regularity:
    """Of one displacement field, inside a mask.

    voxels: in the mask. folds: by central differences, the number that papers report. corner_folds: by the smallest of
    the one-sided differences, which also sees folds between neighbours. std_log_jacobian: standard deviation of the
    natural logarithm of the determinant where it is positive; None where it nowhere is. jacobian: of the determinants
    by central differences that are finite; None where none is."""

    voxels: int
    folds: Folds
    corner_folds: Folds
    std_log_jacobian: float | None
    jacobian: JacobianRange | None

    def as_dict(self) -> dict:
        """The fields, nested, as JSON-ready numbers."""
        return asdict(self)


def regularity(field: DisplacementField, mask: Tensor) -> Regularity:
    """Measure `field`, which lies on the fixed grid, inside `mask`, a bool tensor of that grid's shape.

    Raises ValueError for a mask of another shape or an empty one."""
    mask = _checked(mask, field.grid).to(field.displacement.device)
    central = jacobian.determinant(field.displacement)[0][mask]
    corner = jacobian.smallest_corner_determinant(field.displacement)[0][mask]
    return Regularity(central.numel(), _folds(central), _folds(corner), _std_log(central), _range(central))


def non_diffeomorphic_volume(field: DisplacementField, mask: Tensor) -> NonDiffeomorphicVolume:
    """The non-diffeomorphic volume of a 3D field, which lies on the fixed grid, inside `mask` (bool, grid.shape).

    Liu et al., "On finite difference Jacobian computation in deformable image registration", IJCV 2024, as LUMIR
    uses it. Each cell of eight voxels is cut into five tetrahedra in the two ways there are; a piecewise linear map
    folds where it turns a tetrahedron inside out. The volumes of those that are, each way counted half, are summed. A
    tetrahedron belongs to the voxel at its right angle (the four in the middle of cells: to the one nearest to, or
    furthest from, the first voxel), and counts if that lies in the mask. Raises ValueError for a mask of another shape
    or an empty one, and for a field that is not 3D."""
    if field.ndim != 3:
        raise ValueError(f"a volume needs three dimensions, not {field.ndim}")
    mask = _checked(mask, field.grid)
    displacement = field.displacement[0].cpu()
    planes = mask.cpu().flatten(1).any(1).nonzero().flatten().tolist()
    total = 0.0
    for start in range(max(planes[0] - 1, 0), min(planes[-1] + 1, mask.shape[0] - 1), _SLAB):
        rows = slice(start, min(start + _SLAB, planes[-1] + 1, mask.shape[0] - 1) + 1)
        total += _inverted_volume(displacement[:, rows], mask[rows].cpu())
    size = abs(float(np.linalg.det(field.grid.linear)))
    return NonDiffeomorphicVolume(100 * total / int(mask.sum()), total * size / 1000)


def inverse_consistency(
    transform: Transform, inverse: Transform, grid: Grid, mask: Tensor, every: int = 8
) -> DistanceSummary:
    """|inverse(transform(x)) - x| in mm over the voxel centres x inside `mask` on the fixed grid.

    transform: fixed world to moving world; inverse: back. mask: bool, grid.shape. every: of the mask's voxels each
    `every`-th is measured. Raises ValueError for a mask of another shape or an empty one."""
    index = _checked(mask, grid).nonzero()[::every].double().cpu().numpy()
    return DistanceSummary.of(inverse_residual(transform, inverse, grid.world(index), mask.device))


def _checked(mask: Tensor, grid: Grid) -> Tensor:
    if tuple(mask.shape) != grid.shape or mask.dtype != torch.bool:
        raise ValueError(f"a {mask.dtype} mask of shape {tuple(mask.shape)} does not fit {grid}")
    if not mask.any():
        raise ValueError("the mask is empty: there is nothing to measure")
    return mask


def _folds(determinant: Tensor) -> Folds:
    count = int((~(determinant > 0)).sum())  # a determinant that is not a number counts as folded
    return Folds(count, count / determinant.numel())


def _std_log(determinant: Tensor) -> float | None:
    positive = determinant[determinant > 0]
    return float(positive.double().log().std(correction=0)) if positive.numel() else None


def _range(determinant: Tensor) -> JacobianRange | None:
    finite = determinant[determinant.isfinite()].cpu().numpy()
    return JacobianRange(*np.percentile(finite, [0, 1, 50, 99, 100]).tolist()) if finite.size else None


def _inverted_volume(displacement: Tensor, mask: Tensor) -> float:
    """The volume, in voxels, of the tetrahedra that are inside out among the cells of a few planes.

    displacement: (3, planes, J, K) voxels; mask: (planes, J, K)."""

    def corner(values: Tensor, at: tuple[int, ...]) -> Tensor:
        """The values at one corner of every cell."""
        i, j, k = (slice(b, n - 1 + b) for b, n in zip(at, mask.shape, strict=True))
        return values[..., i, j, k]

    places = {}
    for at in itertools.product((0, 1), repeat=3):
        places[at] = corner(displacement, at) + displacement.new_tensor(at).view(3, 1, 1, 1)
    total = 0.0
    for vertex, neighbours in _TETRAHEDRA:
        a, b, c = (places[neighbour] - places[vertex] for neighbour in neighbours)
        six_volumes = (torch.linalg.cross(a, b, dim=0) * c).sum(0)
        total -= float((six_volumes.clamp_max(0) * corner(mask, vertex)).sum(dtype=torch.float64))
    return total / 6 / 2
