"""How unsmooth a displacement is. Displacements are (1, D, *grid) in voxels; both energies are means over the voxels of
derivatives taken in voxels. The same deformation of the same body costs the same diffusion on a grid twice as fine, and
a quarter of the bending, which has the dimension 1 / voxel^2."""

from __future__ import annotations

import torch
from torch import Tensor


def diffusion(displacement: Tensor) -> Tensor:
    """Mean of |du/dx|^2, by forward differences: 0 for a translation."""
    energy = displacement.new_zeros(())
    for axis in range(2, displacement.ndim):
        if displacement.shape[axis] > 1:
            energy = energy + displacement.diff(dim=axis).square().sum(1).mean()
    return energy


def bending(displacement: Tensor) -> Tensor:
    """Mean of |d2u/dx2|^2 over all second derivatives, mixed ones counted twice: 0 for any affine (Rueckert 1999)."""
    axes = [axis for axis in range(2, displacement.ndim) if displacement.shape[axis] > 2]
    energy = displacement.new_zeros(())
    for n, a in enumerate(axes):
        energy = energy + displacement.diff(dim=a, n=2).square().sum(1).mean()
        for b in axes[n + 1 :]:
            energy = energy + 2 * displacement.diff(dim=a).diff(dim=b).square().sum(1).mean()
    return energy


REGULARITIES = {"diffusion": diffusion, "bending": bending}


def gradient(name: str, displacement: Tensor) -> Tensor:
    """The derivative of the named energy with respect to the displacement, of its shape."""
    displacement = displacement.detach().requires_grad_()
    with torch.enable_grad():
        (result,) = torch.autograd.grad(REGULARITIES[name](displacement), displacement)
    return result
