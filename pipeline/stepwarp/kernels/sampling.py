"""Reading tensors between their voxels. Coordinates are voxel indices in ij order; an index is a voxel's centre.

Outside its grid an image reads 0 and a displacement its border value. As in ITK a grid ends half a voxel beyond its
outermost centres, so that what is written here and what `antsApplyTransforms` writes are the same to the last voxel.

By back ends what is read has one derivative, not two."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwarp.kernels.backend import primitive
from stepwarp.kernels.buffers import into, nothing

Interpolation = Literal["linear", "nearest"]
Outside = Literal["zero", "border"]


#: The nearest voxel is picked by the reference everywhere: for any type of data, and nothing is computed.
_LINEAR = {"mode": "linear"}


@primitive("image", "coords", to=("image", "coords"), only=_LINEAR)
def sample(
    image: Tensor,
    coords: Tensor,
    mode: Interpolation = "linear",
    outside: Outside = "zero",
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Values of `image` (B, C, *grid) at voxel coordinates `coords` (B, D, *out): (B, C, *out).

    A batch of one on either side is broadcast to the other. Differentiable in both where mode is "linear". An image of
    half precision is read with the weights of single precision; coordinates of half precision are too coarse to use."""
    d = image.ndim - 2
    batch = max(image.shape[0], coords.shape[0])
    image = image.expand(batch, *image.shape[1:])
    coords = coords.expand(batch, *coords.shape[1:])
    shape = image.shape[2:]
    sizes = torch.tensor(shape, dtype=coords.dtype).to(coords.device, non_blocking=True)
    sizes = sizes.view(1, d, *[1] * (coords.ndim - 2))
    if mode == "nearest":
        values = _nearest(image, coords, shape)
    else:
        # grid_sample knows two and three axes: a line is read as a plane one voxel thick.
        flat = coords.flatten(2)
        scaled = flat * (2 / (sizes.flatten(2) - 1).clamp_min(1)) - 1
        scaled = torch.where(sizes.flatten(2) > 1, scaled, torch.zeros_like(scaled))
        # On planes grid_sample's gradient writes to wild memory for what is not a number: as by the kernels, it is 0.
        scaled = scaled.nan_to_num(nan=-1.0)
        if d == 1:
            image, scaled = image[:, :, None], torch.cat([torch.zeros_like(scaled), scaled], 1)
        grid = scaled.flip(1).movedim(1, -1)
        grid = grid[:, None] if image.ndim == 4 else grid[:, None, None]
        exact = image.float() if image.dtype in (torch.float16, torch.bfloat16) else image
        values = F.grid_sample(exact, grid.to(exact.dtype), "bilinear", "border", align_corners=True)
        values = values.to(image.dtype).reshape(batch, image.shape[1], *coords.shape[2:])
    if outside == "zero":
        inside = ((coords >= -0.5) & (coords < sizes - 0.5)).all(1, keepdim=True)
        values = torch.where(inside, values, torch.zeros_like(values))
    return into(out, values)


def _nearest(image: Tensor, coords: Tensor, shape: torch.Size) -> Tensor:
    """The voxel at floor(x + 1/2), ITK's rule for ties; any dtype, so that labels never pass through a float."""
    flat_index = torch.zeros_like(coords[:, 0], dtype=torch.long)
    for axis, n in enumerate(shape):
        flat_index = flat_index * n + torch.floor(coords[:, axis] + 0.5).clamp(0, n - 1).long()
    picked = image.flatten(2).gather(2, flat_index.flatten(1)[:, None].expand(-1, image.shape[1], -1))
    return picked.reshape(*image.shape[:2], *coords.shape[2:])


@primitive("image", "displacement", to=("image", "displacement"), only=_LINEAR)
def warp(
    image: Tensor,
    displacement: Tensor,
    matrix: Tensor,
    mode: Interpolation = "linear",
    outside: Outside = "zero",
    *,
    out: Tensor | None = None,
) -> Tensor:
    """`image` (B, C, *grid) read at `matrix` applied to x + u(x), for every voxel x of the displacement's grid.

    displacement: (B, D, *out) voxels of its own grid. matrix: (D+1, D+1), index of that grid -> index of the image.
    Returns (B, C, *out). A batch of one on either side is broadcast to the other. Differentiable as `sample` is, and
    in the matrix."""
    return sample(image, positions(displacement, matrix), mode, outside, out=out)


def positions(displacement: Tensor, matrix: Tensor) -> Tensor:
    """`matrix` applied to x + u(x) for every voxel x: (B, D, *grid) -> (B, D, *grid), what `sample` reads at."""
    d = displacement.shape[1]
    coords = displacement + _indices(displacement.shape[2:], displacement)
    linear, offset = matrix[:d, :d].to(coords), matrix[:d, d].to(coords)
    return torch.einsum("ab,nb...->na...", linear, coords) + offset.view(1, d, *[1] * d)


@primitive("image", to=("matrix",))
def warp_linear(
    image: Tensor, matrix: Tensor, shape: tuple[int, ...], outside: Outside = "zero", *, out: Tensor | None = None
) -> Tensor:
    """`image` (1, 1, *grid) read at `matrix` x for every voxel x of a grid of the given shape, with each matrix of a
    batch: (B, 1, *shape).

    matrix: (B, D+1, D+1) float64, index of that grid -> index of the image. Differentiable in the matrix."""
    d = len(shape)
    index = _indices(shape, image)[0].flatten(1)
    linear, offset = matrix[:, :d, :d].to(index), matrix[:, :d, d].to(index)
    coords = (linear @ index + offset[:, :, None]).unflatten(2, shape)
    return sample(image, coords, outside=outside, out=out)


@primitive("outer", "inner", to=("outer", "inner"))
def compose(outer: Tensor, inner: Tensor, matrix: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """The displacement of x -> outer(inner(x)), (B, D, *inner's grid) in voxels of the inner one's grid.

    outer, inner: (B, D, *grid) in voxels of their own grids. matrix: (D+1, D+1), index of the inner one's grid -> index
    of the outer one's; without it they share one grid. Differentiable in both displacements."""
    d = inner.shape[1]
    if matrix is None:
        matrix = torch.eye(d + 1, dtype=torch.float64, device=inner.device)
    else:
        outer = _in_voxels_of(matrix, outer)
    return into(out, inner + warp(outer, inner, matrix, outside="border"))


@primitive("displacement", "step")
def compose_step(
    displacement: Tensor, step: Tensor, scale: Tensor | float, longest: float, *, out: Tensor | None = None
) -> Tensor:
    """x -> x + u(x) after a step x -> x + s(x): the displacement of u o s, (B, D, *grid).

    s is `scale`, which may be a tensor of no axes, times `step`, and shortened to `longest` voxels where it is longer
    than that."""
    step = step * scale
    length = step.square().sum(1, keepdim=True).add(1e-12).sqrt()
    return compose(displacement, step * (longest / length).clamp_max(1), out=out)


@primitive("factor", "image")
def scaled_gradient(factor: Tensor, image: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`factor` (B, 1, *grid) times the gradient of `image` (B, 1, *grid) per voxel: (B, D, *grid).

    Central differences, one-sided at the border. Where factor is dE/d image, this is dE/d displacement for a step
    composed on the inside of the image's own warp."""
    slopes = [
        torch.gradient(image, dim=axis)[0] if image.shape[axis] > 1 else torch.zeros_like(image)
        for axis in range(2, image.ndim)
    ]
    return into(out, factor * torch.cat(slopes, 1))


@primitive("displacement", to=("displacement",))
def resize_displacement(
    displacement: Tensor, shape: tuple[int, ...], matrix: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """A displacement (B, D, *grid) read on another grid of the given shape and expressed in that grid's voxels.

    matrix: (D+1, D+1), index of the new grid -> index of the displacement's grid."""
    still = nothing((1, len(shape), *shape), displacement.dtype, displacement.device)
    return warp(_in_voxels_of(matrix, displacement), still, matrix, outside="border", out=out)


def _in_voxels_of(matrix: Tensor, displacement: Tensor) -> Tensor:
    """The vectors of a displacement in voxels of the grid from which `matrix` leads to the displacement's own."""
    d = displacement.shape[1]
    return torch.einsum("ab,nb...->na...", torch.linalg.inv(matrix[:d, :d]).to(displacement), displacement)


def average_pool(image: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Means over blocks of `factors` voxels, (B, C, *grid) -> (B, C, *ceil(grid / factors)); fits `Grid.coarser`.

    A block that reaches beyond the image counts zeros there, as the image does."""
    if all(f == 1 for f in factors):
        return image
    short = [(-n) % f for n, f in zip(image.shape[2:], factors, strict=True)]
    padding = [p for missing in reversed(short) for p in (0, missing)]
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[image.ndim - 3]
    return pool(F.pad(image, padding) if any(padding) else image, factors)


def _indices(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The index of every voxel of a grid, (1, D, *shape), in at least single precision."""
    dtype = _at_least_single(like)
    axes = [torch.arange(n, device=like.device, dtype=dtype) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def _at_least_single(values: Tensor) -> torch.dtype:
    """What to count voxels in: half precision counts no further than 2048."""
    return torch.promote_types(values.dtype, torch.float32)
