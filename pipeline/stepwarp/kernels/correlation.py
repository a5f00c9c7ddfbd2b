"""The local correlation of two images: its value, its gradients, and the forces that raise it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stepwarp.kernels.backend import primitive
from stepwarp.kernels.buffers import into
from stepwarp.kernels.gradients import value_and_gradients
from stepwarp.kernels.means import mean
from stepwarp.kernels.sampling import scaled_gradient

#: Where two results go, as `out`.
Rooms = tuple[Tensor | None, Tensor | None]


@primitive("image")
def box_sum(image: Tensor, radius: int, *, out: Tensor | None = None) -> Tensor:
    """Sums over the window of 2 radius + 1 voxels along each axis around each voxel of (B, C, *grid); zeros outside."""
    width = 2 * radius + 1
    for axis in range(2, image.ndim):
        line = image.movedim(axis, -1)
        flat = line.reshape(-1, 1, line.shape[-1])
        flat = F.avg_pool1d(flat, width, stride=1, padding=radius) * width
        image = flat.reshape(line.shape).movedim(-1, axis)
    return into(out, image)


class _Kept(torch.autograd.Function):
    """The gradients are found with the value, because most of the work is in common, and kept."""

    @staticmethod
    def forward(ctx, value: Callable, with_gradients: Callable[..., tuple[Tensor | None, ...]], *arguments) -> Tensor:
        found, *ctx.gradients = with_gradients(ctx.needs_input_grad[2:4], *arguments)
        assert found is not None
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # The value is the mean over the channels.
        given = [
            None if g is None else g * (gradient / g.shape[1]).view(-1, *[1] * (g.ndim - 1)) for g in ctx.gradients
        ]
        to_fixed, to_moved = (each if on else None for each, on in zip(given, ctx.needs_input_grad[2:4], strict=True))
        return None, None, to_fixed, to_moved, None, None, None, None


@primitive("fixed", "moved", to=("fixed", "moved"), adjoint="correlation_with_gradients", function=_Kept)
def correlation(
    fixed: Tensor,
    moved: Tensor,
    weight: Tensor | None,
    known: Tensor | None,
    radius: int,
    epsilon: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """1 - the mean squared correlation of the windows of each pair of a batch, (B, C, *grid) each: (B,).

    weight: of the shape of the images, or None. known: what `of_fixed` says of the fixed images, or None; they then
    receive no gradient through it. radius, epsilon: see `losses.similarities.lncc`. A back end's
    `correlation_with_gradients(wanted, *arguments)` gives the values (B,) and the gradients of each channel's value to
    the fixed and the moved images, of the images' shape; None where not wanted."""
    w = torch.ones_like(fixed) if weight is None else weight
    if known is None:
        known = of_fixed(fixed, weight, radius, epsilon)
    mean_f, ff = known[:, :, 0], known[:, :, 1]
    size = known[:, :, 2] if known.shape[2] > 2 else _size(w, radius)
    sum_m = box_sum(w * moved, radius)
    mm = (box_sum(w * moved * moved, radius) - sum_m * sum_m / size).clamp_min(0) + epsilon * size
    fm = box_sum(w * fixed * moved, radius) - mean_f * sum_m
    return into(out, 1 - mean(fm * fm / (ff * mm), weight))


def of_fixed(fixed: Tensor, weight: Tensor | None, radius: int, epsilon: float) -> Tensor:
    """Of the window around each voxel of the fixed images, (B, C, 2, *grid): the mean and the centred sum of squares;
    with weights a third, the size."""
    w = torch.ones_like(fixed) if weight is None else weight
    size, total = _size(w, radius), box_sum(w * fixed, radius)
    squares = (box_sum(w * fixed * fixed, radius) - total * total / size).clamp_min(0) + epsilon * size
    return torch.stack([total / size, squares, size][: 2 if weight is None else 3], 2)


@primitive("fixed", "moved")
def forces(
    fixed: Tensor,
    moved: Tensor,
    weight: Tensor | None,
    radius: int,
    epsilon: float,
    *,
    out: Rooms = (None, None),
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of `correlation` over the batch, and its derivatives with respect to a step composed on the inside of
    the warp of the fixed and of the moved images, (B, 1, *grid) each: (), (B, D, *grid) and (B, D, *grid).

    out: of the two forces, either of which may be None."""
    value, to_fixed, to_moved = value_and_gradients(
        lambda f, m: correlation(f, m, weight, None, radius, epsilon).mean(), fixed, moved
    )
    fixed, moved = fixed.detach(), moved.detach()
    return value, scaled_gradient(to_fixed, fixed, out=out[0]), scaled_gradient(to_moved, moved, out=out[1])


def _size(weight: Tensor, radius: int) -> Tensor:
    return box_sum(weight, radius).clamp_min(1e-3)
