"""How unsmooth a displacement is, as means over the voxels (B, D, *grid), given in voxels of its grid.

With `grid`, the energies are those of the deformation in the world: diffusion has no dimension, bending is in mm^-2,
and the same deformation costs the same on a grid of any spacing, shape and orientation whose axes are at right angles.
Without, millimetres are replaced by voxels: that leaves diffusion as it is where voxels are cubes."""

from __future__ import annotations

import torch
from torch import Tensor

from stepwarp.geometry import Grid
from stepwarp.kernels import jacobian


def diffusion(displacement: Tensor, grid: Grid | None = None) -> Tensor:
    """Mean of |du/dx|^2, summed over components and axes, by forward differences: 0 for a translation."""
    vectors, spacing = _in_world(displacement, grid)
    energy = displacement.new_zeros(())
    for axis in range(2, displacement.ndim):
        if displacement.shape[axis] > 1:
            energy = energy + _mean_square(vectors.diff(dim=axis)) / spacing[axis - 2] ** 2
    return energy


def bending(displacement: Tensor, grid: Grid | None = None) -> Tensor:
    """Mean of |d2u/dx2|^2 over all second derivatives, mixed ones counted twice: 0 for any affine (Rueckert 1999)."""
    vectors, spacing = _in_world(displacement, grid)
    axes = [axis for axis in range(2, displacement.ndim) if displacement.shape[axis] > 2]
    energy = displacement.new_zeros(())
    for n, a in enumerate(axes):
        slope = vectors.diff(dim=a)
        energy = energy + _mean_square(slope.diff(dim=a)) / spacing[a - 2] ** 4
        for b in axes[n + 1 :]:
            energy = energy + 2 * _mean_square(slope.diff(dim=b)) / (spacing[a - 2] * spacing[b - 2]) ** 2
    return energy


def folding(displacement: Tensor) -> Tensor:
    """Mean of how far below 0 the Jacobian determinant is, max(0, -det(I + du/dx)): 0 where space does not fold.

    By central differences, the same in voxels and in the world. Only folded voxels cost time and memory."""
    with torch.no_grad():
        determinants = jacobian.determinant(displacement)
    folded = (determinants < 0).nonzero()
    if not len(folded):
        return 0 * displacement.sum()
    return -jacobian.determinant_at(displacement, folded).sum() / determinants.numel()


REGULARITIES = {"diffusion": diffusion, "bending": bending}


def _in_world(displacement: Tensor, grid: Grid | None) -> tuple[Tensor, list[float]]:
    """The vectors in mm and the spacing in mm; or in voxels, and 1."""
    if grid is None:
        return displacement, [1.0] * (displacement.ndim - 2)
    return grid.millimetres(displacement), list(grid.spacing)


def _mean_square(vectors: Tensor) -> Tensor:
    return vectors.square().sum(1).mean()
