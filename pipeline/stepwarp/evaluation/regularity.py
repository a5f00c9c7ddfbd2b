"""How smooth and invertible a transform is, measured on the fixed grid and inside a mask.

Measured there because a field looks far better than it is on a network's own coarse grid or over empty background."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from stepwarp.evaluation.distances import DistanceSummary
from stepwarp.geometry import DisplacementField, Grid, Transform, inverse_residual, jacobian


@dataclass(frozen=True)
class Folds:
    """Voxels of the mask whose Jacobian determinant is not positive. share: of the mask's voxels, 0 to 1."""

    count: int
    share: float


@dataclass(frozen=True)
class Regularity:
    """Of one displacement field, inside a mask.

    voxels: in the mask. folds: by central differences, the number that papers report. corner_folds: by the smallest of
    the one-sided differences, which also sees folds between neighbours. std_log_jacobian: standard deviation of the
    natural logarithm of the determinant where it is positive; None where it nowhere is."""

    voxels: int
    folds: Folds
    corner_folds: Folds
    std_log_jacobian: float | None

    def as_dict(self) -> dict:
        """The fields, nested, as JSON-ready numbers."""
        return asdict(self)


def regularity(field: DisplacementField, mask: Tensor) -> Regularity:
    """Measure `field`, which lies on the fixed grid, inside `mask`, a bool tensor of that grid's shape.

    Raises ValueError for a mask of another shape or an empty one."""
    mask = _checked(mask, field.grid).to(field.displacement.device)
    central = jacobian.determinant(field.displacement)[0][mask]
    corner = jacobian.smallest_corner_determinant(field.displacement)[0][mask]
    return Regularity(central.numel(), _folds(central), _folds(corner), _std_log(central))


def inverse_consistency(
    transform: Transform, inverse: Transform, grid: Grid, mask: Tensor, every: int = 8
) -> DistanceSummary:
    """|inverse(transform(x)) - x| in mm over the voxel centres x inside `mask` on the fixed grid.

    transform: fixed world to moving world; inverse: back. mask: bool, grid.shape. every: of the mask's voxels each
    `every`-th is measured. Raises ValueError for a mask of another shape or an empty one."""
    index = _checked(mask, grid).cpu().nonzero()[::every].double().numpy()
    points = index @ grid.linear.T + grid.affine[:-1, -1]
    return DistanceSummary.of(inverse_residual(transform, inverse, points))


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
