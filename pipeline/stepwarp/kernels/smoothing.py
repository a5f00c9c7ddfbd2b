"""Gaussian smoothing of fields and images, separably, with border values repeated."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stepwarp.kernels.backend import primitive
from stepwarp.kernels.buffers import into


def gaussian_kernel(sigma: float) -> Tensor:
    """Weights of a Gaussian of `sigma` voxels, integrated over each voxel and cut where under 1 % is left out."""
    radius = max(1, math.ceil(2.6 * sigma))
    edges = (torch.arange(-radius, radius + 2, dtype=torch.float64) - 0.5) / (sigma * math.sqrt(2))
    weights = torch.special.erf(edges).diff()
    return (weights / weights.sum()).float()


def gaussian(field: Tensor, sigma: float, *, out: Tensor | None = None) -> Tensor:
    """`field` (B, C, *grid) smoothed with a Gaussian of `sigma` voxels along every axis; itself where sigma is 0."""
    if sigma <= 0:
        return into(out, field)
    return convolve_axes(field, kernel_on(field.device, sigma), out=out)


@functools.lru_cache(maxsize=64)
def kernel_on(device: torch.device, sigma: float) -> Tensor:
    """`gaussian_kernel` on a device, to which it is brought once."""
    return gaussian_kernel(sigma).to(device, non_blocking=True)


class _Linear(torch.autograd.Function):
    """A back end's function that is linear in its first argument, of which nothing has to be kept."""

    @staticmethod
    def forward(
        ctx, value: Callable[..., Tensor], adjoint: Callable[..., tuple[Tensor]], field: Tensor, kernel: Tensor
    ) -> Tensor:
        ctx.adjoint, ctx.kernel = adjoint, kernel
        return value(field, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[None, None, Tensor, None]:
        to_field, *_ = ctx.adjoint(gradient, (True, False), None, ctx.kernel)
        return None, None, to_field, None


@primitive("field", to=("field",), function=_Linear)
def convolve_axes(field: Tensor, kernel: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`field` (B, C, *grid) convolved with one odd, symmetric kernel along each axis, border values repeated.

    Of the field itself an adjoint is given nothing but None."""
    radius = len(kernel) // 2
    kernel = kernel.to(field)
    for axis in range(2, field.ndim):
        line = field.movedim(axis, -1)
        shape = line.shape
        padded = F.pad(line.reshape(-1, 1, shape[-1]), (radius, radius), mode="replicate")
        field = F.conv1d(padded, kernel[None, None]).reshape(shape).movedim(-1, axis)
    return into(out, field)
