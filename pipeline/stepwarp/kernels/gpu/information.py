"""See `kernels.information`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stepwarp.kernels.buffers import into
from stepwarp.kernels.gpu.cells import channel
from stepwarp.kernels.gpu.launching import launch, programs

#: A program counts in at most so many bins along each axis, and multiplies matrices of at least so many rows.
_MOST_BINS, _FEWEST_BINS = 64, 16
#: Voxels that a program works on where it counts in all bins, and how many of them at a time.
_STRETCH, _AT_A_TIME = 4096, 64


def joint_histogram(
    fixed: Tensor, moved: Tensor, weight: Tensor | None, bins: int, *, out: Tensor | None = None
) -> Tensor:
    """What a voxel counts in each bin is a row of weights, and the histogram the product of the two images' matrices of
    such rows: nothing is added up in an order that changes."""
    f, m, w = _laid(fixed, moved, weight)
    (samples, voxels), padded = f.shape, max(_FEWEST_BINS, triton.next_power_of_2(bins))
    tile = min(padded, _MOST_BINS)
    tiles = padded // tile
    stretch = _STRETCH * tiles * tiles
    parts = torch.empty(programs(voxels, stretch), samples, padded, padded, device=fixed.device)
    given = (f, m, w, parts, voxels, bins)
    how = {"tile": tile, "tiles": tiles, "step": _AT_A_TIME, "weighted": weight is not None, "block": stretch}
    launch(_count, voxels, samples * tiles * tiles, *given, **how)
    joint = parts.sum(0, dtype=torch.float64)[:, :bins, :bins]
    return into(out, joint / joint.sum((1, 2), keepdim=True))


def joint_histogram_adjoint(
    gradient: Tensor, wanted: tuple[bool, ...], fixed: Tensor, moved: Tensor, weight: Tensor | None, bins: int
) -> tuple[Tensor | None, Tensor | None]:
    """To both images. A voxel counts as much as before wherever it moves, so that the sum of all stays."""
    f, m, w = _laid(fixed, moved, weight)
    samples, voxels = f.shape
    total = torch.full((samples,), voxels, device=f.device) if weight is None else w.sum(1, dtype=torch.float64)
    table = (gradient * (bins - 1) / total.view(-1, 1, 1)).float().contiguous()
    to_fixed, to_moved = torch.empty_like(f), torch.empty_like(m)
    given = (f, m, w, table, to_fixed, to_moved, voxels, bins)
    launch(_count_back, voxels, samples, *given, weighted=weight is not None)
    return to_fixed.view(fixed.shape) if wanted[0] else None, to_moved.view(moved.shape) if wanted[1] else None


def _laid(fixed: Tensor, moved: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The values of each sample in a row; without weights, anything in their place."""
    f, m = fixed.detach().flatten(1).contiguous(), moved.detach().flatten(1).contiguous()
    return f, m, f if weight is None else weight.detach().float().expand_as(fixed).flatten(1).contiguous()


@triton.jit
def _position(value, bins):
    """Where a value lies among the bins' centres."""
    return tl.minimum(tl.maximum(value, 0.0), 1.0) * (bins - 1)


@triton.jit
def _count(
    f, m, w, parts, voxels, bins,
    tile: tl.constexpr, tiles: tl.constexpr, step: tl.constexpr, weighted: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """A square of the histogram of a stretch of voxels. The loop carries that alone."""
    sample, square = tl.program_id(1) // (tiles * tiles), tl.program_id(1) % (tiles * tiles)
    f, m, w = channel(f, sample, voxels), channel(m, sample, voxels), channel(w, sample, voxels)
    row, column = square // tiles * tile + tl.arange(0, tile), square % tiles * tile + tl.arange(0, tile)
    first = tl.program_id(0) * block
    joint = tl.zeros((tile, tile), tl.float32)
    for start in range(first, tl.minimum(first + block, voxels), step):
        x = start + tl.arange(0, step)
        wanted = x < voxels
        share = wanted.to(tl.float32)
        if weighted:
            share = tl.load(w + x, wanted, 0.0)
        of_f = _position(tl.load(f + x, wanted, 0.0), bins)
        of_m = _position(tl.load(m + x, wanted, 0.0), bins)
        rows = share[None, :] * tl.maximum(1 - tl.abs(of_f[None, :] - row[:, None]), 0.0)
        columns = tl.maximum(1 - tl.abs(of_m[:, None] - column[None, :]), 0.0)
        joint += tl.dot(rows, columns, input_precision="ieee")
    samples, width = tl.num_programs(1) // (tiles * tiles), tile * tiles
    parts = channel(parts, tl.program_id(0) * samples + sample, width * width)
    tl.store(parts + row[:, None] * width + column[None, :], joint)


@triton.jit
def _count_back(f, m, w, table, to_f, to_m, voxels, bins, weighted: tl.constexpr, block: tl.constexpr):
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample = tl.program_id(1)
    f, m, w = channel(f, sample, voxels), channel(m, sample, voxels), channel(w, sample, voxels)
    to_f, to_m = channel(to_f, sample, voxels), channel(to_m, sample, voxels)
    table = channel(table, sample, bins * bins)
    wanted = x < voxels
    value_f, value_m = tl.load(f + x, wanted, 0.0), tl.load(m + x, wanted, 0.0)
    of_f, of_m = _position(value_f, bins), _position(value_m, bins)
    low_f, low_m = tl.minimum(tl.floor(of_f), bins - 2.0), tl.minimum(tl.floor(of_m), bins - 2.0)
    part_f, part_m = of_f - low_f, of_m - low_m
    at = table + (low_f.to(tl.int32) * bins + low_m.to(tl.int32))
    g00, g01 = tl.load(at, wanted, 0.0), tl.load(at + 1, wanted, 0.0)
    g10, g11 = tl.load(at + bins, wanted, 0.0), tl.load(at + (bins + 1), wanted, 0.0)
    share_f = ((value_f > 0.0) & (value_f < 1.0)).to(tl.float32)
    share_m = ((value_m > 0.0) & (value_m < 1.0)).to(tl.float32)
    if weighted:
        weight = tl.load(w + x, wanted, 0.0)
        share_f, share_m = share_f * weight, share_m * weight
    tl.store(to_f + x, share_f * ((1 - part_m) * (g10 - g00) + part_m * (g11 - g01)), wanted)
    tl.store(to_m + x, share_m * ((1 - part_f) * (g01 - g00) + part_f * (g11 - g10)), wanted)
