"""Reading tensors between their voxels. Coordinates are voxel indices in ij order; an index is a voxel's centre.

Outside its grid an image reads 0 and a displacement its border value. As in ITK a grid ends half a voxel beyond its
outermost centres, so that what is written here and what `antsApplyTransforms` writes are the same to the last voxel.

Every function has one reference in plain torch (any device, any dimension, differentiable); three-dimensional float32
tensors on the CPU that need no gradient are handed to the compiled kernels of `cpu`."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["linear", "nearest"]
Outside = Literal["zero", "border"]


def on_kernels(*tensors: Tensor) -> bool:
    """Whether the compiled CPU kernels take these tensors: float32, one 3D sample in each, no gradient wanted."""
    return all(
        t.device.type == "cpu"
        and t.dtype == torch.float32
        and t.ndim == 5
        and t.shape[0] == 1
        and not (t.requires_grad and torch.is_grad_enabled())
        for t in tensors
    )


def sample(image: Tensor, coords: Tensor, mode: Interpolation = "linear", outside: Outside = "zero") -> Tensor:
    """Values of `image` (B, C, *grid) at voxel coordinates `coords` (B, D, *out): (B, C, *out).

    A batch of one on either side is broadcast to the other. Differentiable in both where mode is "linear". An image of
    half precision is read with the weights of single precision; coordinates of half precision are too coarse to use."""
    d = image.ndim - 2
    batch = max(image.shape[0], coords.shape[0])
    image = image.expand(batch, *image.shape[1:])
    coords = coords.expand(batch, *coords.shape[1:])
    shape = image.shape[2:]
    sizes = torch.tensor(shape, device=coords.device, dtype=coords.dtype).view(1, d, *[1] * (coords.ndim - 2))
    if mode == "nearest":
        values = _nearest(image, coords, shape)
    else:
        # grid_sample knows two and three axes: a line is read as a plane one voxel thick.
        flat = coords.flatten(2)
        scaled = flat * (2 / (sizes.flatten(2) - 1).clamp_min(1)) - 1
        scaled = torch.where(sizes.flatten(2) > 1, scaled, torch.zeros_like(scaled))
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
    return values


def _nearest(image: Tensor, coords: Tensor, shape: torch.Size) -> Tensor:
    """The voxel at floor(x + 1/2), ITK's rule for ties; any dtype, so that labels never pass through a float."""
    flat_index = torch.zeros_like(coords[:, 0], dtype=torch.long)
    for axis, n in enumerate(shape):
        flat_index = flat_index * n + torch.floor(coords[:, axis] + 0.5).clamp(0, n - 1).long()
    picked = image.flatten(2).gather(2, flat_index.flatten(1)[:, None].expand(-1, image.shape[1], -1))
    return picked.reshape(*image.shape[:2], *coords.shape[2:])


def warp(image: Tensor, displacement: Tensor, matrix: Tensor, mode: Interpolation = "linear") -> Tensor:
    """`image` (1, C, *grid) read at `matrix` applied to x + u(x), for every voxel x of the displacement's grid.

    displacement: (1, D, *out) voxels of its own grid. matrix: (D+1, D+1), index of that grid -> index of the image.
    Returns (1, C, *out); 0 outside the image."""
    d = displacement.shape[1]
    if mode == "linear" and on_kernels(image, displacement) and not matrix.requires_grad:
        from stepwarp.geometry import cpu

        return cpu.warp(image, displacement, matrix)
    coords = displacement + _indices_like(displacement)
    linear, offset = matrix[:d, :d].to(coords), matrix[:d, d].to(coords)
    coords = torch.einsum("ab,nb...->na...", linear, coords) + offset.view(1, d, *[1] * d)
    return sample(image, coords, mode)


def warp_linear(image: Tensor, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`image` (1, 1, *grid) read at `matrix` x for every voxel x of a grid of the given shape: (1, 1, *shape).

    matrix: (D+1, D+1) float64, index of that grid -> index of the image. 0 outside the image. Differentiable in the
    matrix."""
    if on_kernels(image):
        from stepwarp.geometry import cpu

        return cpu.WarpLinear.apply(image, matrix, shape)
    still = torch.zeros(1, len(shape), *shape, device=image.device)
    return warp(image, still, matrix)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The displacement of x -> outer(inner(x)) for two displacements (1, D, *grid) in voxels of one grid."""
    if on_kernels(outer, inner):
        from stepwarp.geometry import cpu

        return cpu.compose(outer, inner)
    return inner + sample(outer, inner + _indices_like(inner), outside="border")


def compose_step(displacement: Tensor, step: Tensor, scale: float, longest: float) -> Tensor:
    """x -> x + u(x) after a step x -> x + s(x): the displacement of u o s, (1, D, *grid).

    s is `scale` times `step`, and shortened to `longest` voxels where it is longer than that."""
    if on_kernels(displacement, step):
        from stepwarp.geometry import cpu

        return cpu.compose_step(displacement, step, scale, longest)
    step = step * scale
    length = step.square().sum(1, keepdim=True).add(1e-12).sqrt()
    return compose(displacement, step * (longest / length).clamp_max(1))


def scaled_gradient(factor: Tensor, image: Tensor) -> Tensor:
    """`factor` (1, 1, *grid) times the gradient of `image` (1, 1, *grid) per voxel: (1, D, *grid).

    Central differences, one-sided at the border. Where factor is dE/d image, this is dE/d displacement for a step
    composed on the inside of the image's own warp."""
    if on_kernels(factor, image):
        from stepwarp.geometry import cpu

        return cpu.scaled_gradient(factor, image)
    slopes = [
        torch.gradient(image, dim=axis)[0] if image.shape[axis] > 1 else torch.zeros_like(image)
        for axis in range(2, image.ndim)
    ]
    return factor * torch.cat(slopes, 1)


def resize_displacement(displacement: Tensor, shape: tuple[int, ...], matrix: Tensor) -> Tensor:
    """A displacement (1, D, *grid) read on another grid of the given shape and expressed in that grid's voxels.

    matrix: (D+1, D+1), index of the new grid -> index of the displacement's grid."""
    d = displacement.shape[1]
    if on_kernels(displacement):
        from stepwarp.geometry import cpu

        return cpu.resize_displacement(displacement, shape, matrix)
    still = torch.zeros(1, d, *shape, device=displacement.device, dtype=displacement.dtype)
    matrix = matrix.to(displacement)
    coords = torch.einsum("ab,nb...->na...", matrix[:d, :d], _indices_like(still))
    coords = coords + matrix[:d, d].view(1, d, *[1] * d)
    values = sample(displacement, coords, outside="border")
    return torch.einsum("ab,nb...->na...", torch.linalg.inv(matrix[:d, :d]), values)


def average_pool(image: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Means over blocks of `factors` voxels, (B, C, *grid) -> (B, C, *ceil(grid / factors)); fits `Grid.coarser`.

    A block that reaches beyond the image counts zeros there, as the image does."""
    if all(f == 1 for f in factors):
        return image
    short = [(-n) % f for n, f in zip(image.shape[2:], factors, strict=True)]
    padding = [p for missing in reversed(short) for p in (0, missing)]
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[image.ndim - 3]
    return pool(F.pad(image, padding), factors)


def _indices_like(displacement: Tensor) -> Tensor:
    """The index of every voxel, (1, D, *grid), in single precision at least: half counts no further than 2048."""
    dtype = torch.promote_types(displacement.dtype, torch.float32)
    axes = [torch.arange(n, device=displacement.device, dtype=dtype) for n in displacement.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
