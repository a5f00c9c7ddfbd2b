"""Reading tensors between their voxels. Coordinates are voxel indices in ij order; an index is a voxel's centre.

Outside its grid an image reads 0 and a displacement its border value. As in ITK a grid ends half a voxel beyond its
outermost centres, so that what is written here and what `antsApplyTransforms` writes are the same to the last voxel.

Every function has one reference in plain torch (any device, any dimension, differentiable); three-dimensional float32
tensors on the CPU are handed to compiled kernels, which for `sample`, `warp`, `compose`, `resize_displacement` and
`smoothing.gaussian` know their derivatives; so are planes in `warp` and `compose`, where both are on one grid. In the
kernels these have one derivative, not two."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["linear", "nearest"]
Outside = Literal["zero", "border"]


def on_kernels(*tensors: Tensor, differentiable: bool = False) -> bool:
    """Whether the compiled CPU kernels take these tensors: float32, batches of 3D samples that 32 bits can index.

    differentiable: whether the kernel knows its derivatives; without, one that wants a gradient is not taken."""
    fits = all(
        t.device.type == "cpu" and t.dtype == torch.float32 and t.ndim == 5 and t.shape[2:].numel() < 2**31
        for t in tensors
    )
    return fits and (differentiable or not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)))


def sample(image: Tensor, coords: Tensor, mode: Interpolation = "linear", outside: Outside = "zero") -> Tensor:
    """Values of `image` (B, C, *grid) at voxel coordinates `coords` (B, D, *out): (B, C, *out).

    A batch of one on either side is broadcast to the other. Differentiable in both where mode is "linear". An image of
    half precision is read with the weights of single precision; coordinates of half precision are too coarse to use."""
    d = image.ndim - 2
    if mode == "linear" and coords.dtype == torch.float32 and on_kernels(image, differentiable=True):
        from stepwarp.geometry import cpu_sampling

        return cpu_sampling.sample(image, coords, outside == "border")
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


def warp(
    image: Tensor,
    displacement: Tensor,
    matrix: Tensor,
    mode: Interpolation = "linear",
    outside: Outside = "zero",
) -> Tensor:
    """`image` (B, C, *grid) read at `matrix` applied to x + u(x), for every voxel x of the displacement's grid.

    displacement: (B, D, *out) voxels of its own grid. matrix: (D+1, D+1), index of that grid -> index of the image.
    Returns (B, C, *out). A batch of one on either side is broadcast to the other. Differentiable as `sample` is, and
    off the kernels in the matrix."""
    if mode == "linear" and on_kernels(image, displacement, differentiable=True) and not matrix.requires_grad:
        from stepwarp.geometry import cpu_sampling

        return cpu_sampling.warp(image, displacement, matrix, outside == "border")
    if mode == "linear" and _on_planes(image, displacement, matrix):
        from stepwarp.geometry import cpu_planes

        return cpu_planes.warp(image, displacement, outside == "border")
    return sample(image, positions(displacement, matrix), mode, outside)


def _on_planes(image: Tensor, displacement: Tensor, matrix: Tensor) -> bool:
    """Whether these are planes on the CPU, of which the image's grid is that of the displacement."""
    fits = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.ndim == 4 for t in (image, displacement))
    return fits and not matrix.requires_grad and bool((matrix == torch.eye(3, dtype=matrix.dtype)).all())


def positions(displacement: Tensor, matrix: Tensor) -> Tensor:
    """`matrix` applied to x + u(x) for every voxel x: (B, D, *grid) -> (B, D, *grid), what `sample` reads at."""
    d = displacement.shape[1]
    coords = displacement + _indices_like(displacement)
    linear, offset = matrix[:d, :d].to(coords), matrix[:d, d].to(coords)
    return torch.einsum("ab,nb...->na...", linear, coords) + offset.view(1, d, *[1] * d)


def warp_linear(image: Tensor, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`image` (1, 1, *grid) read at `matrix` x for every voxel x of a grid of the given shape: (1, 1, *shape).

    matrix: (D+1, D+1) float64, index of that grid -> index of the image. 0 outside the image. Differentiable in the
    matrix."""
    if on_kernels(image):
        from stepwarp.geometry import cpu_sampling

        return cpu_sampling.WarpLinear.apply(image, matrix, shape)
    still = torch.zeros(1, len(shape), *shape, device=image.device)
    return warp(image, still, matrix)


def compose(outer: Tensor, inner: Tensor, matrix: Tensor | None = None) -> Tensor:
    """The displacement of x -> outer(inner(x)), (B, D, *inner's grid) in voxels of the inner one's grid.

    outer, inner: (B, D, *grid) in voxels of their own grids. matrix: (D+1, D+1), index of the inner one's grid -> index
    of the outer one's; without it they share one grid. Differentiable in both displacements."""
    d = inner.shape[1]
    if matrix is None:
        matrix = torch.eye(d + 1, dtype=torch.float64)
    else:
        outer = _in_voxels_of(matrix, outer)
    return inner + warp(outer, inner, matrix, outside="border")


def compose_step(displacement: Tensor, step: Tensor, scale: float, longest: float) -> Tensor:
    """x -> x + u(x) after a step x -> x + s(x): the displacement of u o s, (1, D, *grid).

    s is `scale` times `step`, and shortened to `longest` voxels where it is longer than that."""
    if on_kernels(displacement, step):
        from stepwarp.geometry import cpu_sampling

        return cpu_sampling.compose_step(displacement, step, scale, longest)
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
    """A displacement (B, D, *grid) read on another grid of the given shape and expressed in that grid's voxels.

    matrix: (D+1, D+1), index of the new grid -> index of the displacement's grid."""
    still = torch.zeros(1, len(shape), *shape, device=displacement.device, dtype=displacement.dtype)
    return warp(_in_voxels_of(matrix, displacement), still, matrix, outside="border")


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
    return pool(F.pad(image, padding), factors)


def _indices_like(displacement: Tensor) -> Tensor:
    """The index of every voxel, (1, D, *grid), in single precision at least: half counts no further than 2048."""
    dtype = torch.promote_types(displacement.dtype, torch.float32)
    axes = [torch.arange(n, device=displacement.device, dtype=dtype) for n in displacement.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
