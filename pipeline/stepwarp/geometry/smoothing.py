"""Gaussian smoothing of fields and images, separably, with border values repeated."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwarp.geometry import sampling


def gaussian_kernel(sigma: float) -> Tensor:
    """Weights of a Gaussian of `sigma` voxels, integrated over each voxel and cut where under 1 % is left out."""
    radius = max(1, math.ceil(2.6 * sigma))
    edges = (torch.arange(-radius, radius + 2, dtype=torch.float64) - 0.5) / (sigma * math.sqrt(2))
    weights = torch.special.erf(edges).diff()
    return (weights / weights.sum()).float()


def gaussian(field: Tensor, sigma: float) -> Tensor:
    """`field` (B, C, *grid) smoothed with a Gaussian of `sigma` voxels along every axis; itself where sigma is 0."""
    if sigma <= 0:
        return field
    return convolve_axes(field, gaussian_kernel(sigma))


def convolve_axes(field: Tensor, kernel: Tensor) -> Tensor:
    """`field` (B, C, *grid) convolved with one odd, symmetric kernel along each axis, border values repeated."""
    if sampling.on_kernels(field, differentiable=True):
        from stepwarp.geometry import cpu

        return cpu.Smooth.apply(field, kernel)
    radius = len(kernel) // 2
    kernel = kernel.to(field)
    for axis in range(2, field.ndim):
        line = field.movedim(axis, -1)
        shape = line.shape
        padded = F.pad(line.reshape(-1, 1, shape[-1]), (radius, radius), mode="replicate")
        field = F.conv1d(padded, kernel[None, None]).reshape(shape).movedim(-1, axis)
    return field
