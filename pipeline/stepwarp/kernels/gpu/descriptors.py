"""See `kernels.descriptors`. The twelve pairs of neighbours are maps one after the other, and with weights the twelve
of how much each of them counts follow; no other maps are made.

The six neighbours of a voxel are numbered axis by axis, the one before and the one behind; pairs are of different
axes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stepwarp.kernels.gpu.cells import channel, index
from stepwarp.kernels.gpu.launching import launch, programs, room
from stepwarp.kernels.gpu.smoothing import convolve_axes, convolve_axes_adjoint
from stepwarp.kernels.smoothing import gaussian_kernel

_NEIGHBOURS, _PAIRS = 6, 12


def self_similarity(
    image: Tensor, weight: Tensor | None, dilation: int, sigma: float, *, out: Tensor | None = None
) -> Tensor:
    """Differences, patches, and their comparison, each in a pass."""
    result = room(out, (len(image), _PAIRS, *image.shape[2:]), image)
    image, w = _laid(image, weight)
    patches = _patches(image, w, dilation, sigma, weighted=weight is not None)
    typical = _typical_variance(patches, w, weighted=weight is not None)
    given = (patches, typical, result, _voxels(image))
    launch(_describe, _voxels(image), len(image), *given, weighted=weight is not None)
    return result


def self_similarity_adjoint(
    gradient: Tensor, wanted: tuple[bool, ...], image: Tensor, weight: Tensor | None, dilation: int, sigma: float
) -> tuple[Tensor]:
    """To the image, by the same steps backwards; the typical variance and the weights are given."""
    image, w = _laid(image, weight)
    weighted, voxels = weight is not None, _voxels(image)
    patches = _patches(image, w, dilation, sigma, weighted=weighted)
    typical = _typical_variance(patches, w, weighted=weighted)
    to_patches = torch.empty(gradient.shape, device=image.device)
    given = (patches, typical, gradient.contiguous(), to_patches, voxels)
    launch(_describe_back, voxels, len(image), *given, weighted=weighted)
    (to_differences,) = convolve_axes_adjoint(to_patches, (True, False), None, gaussian_kernel(sigma))
    to_neighbours = torch.empty(len(image), _NEIGHBOURS, *image.shape[2:], device=image.device)
    given = (image, w, to_differences, to_neighbours, *image.shape[2:], dilation)
    launch(_differences_back, voxels, len(image), *given, weighted=weighted)
    to_image = torch.empty_like(image)
    launch(_neighbours_back, voxels, len(image), to_neighbours, to_image, *image.shape[2:], dilation=dilation)
    return (to_image,)


def _laid(image: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The image and the weights; without any, the image in their place."""
    image = image.detach().contiguous()
    return image, image if weight is None else weight.detach().float().expand_as(image).contiguous()


def _voxels(image: Tensor) -> int:
    return image.shape[2:].numel()


def _patches(image: Tensor, weight: Tensor, dilation: int, sigma: float, *, weighted: bool) -> Tensor:
    """The sums of squared differences in the patches around each pair of neighbours, and of what is counted there."""
    maps = torch.empty(len(image), 2 * _PAIRS if weighted else _PAIRS, *image.shape[2:], device=image.device)
    given = (image, weight, maps, *image.shape[2:], dilation)
    launch(_differences, _voxels(image), len(image), *given, weighted=weighted)
    return convolve_axes(maps, gaussian_kernel(sigma))


def _typical_variance(patches: Tensor, weight: Tensor, *, weighted: bool) -> Tensor:
    """The mean over the voxels that count, (B,)."""
    voxels, samples = _voxels(patches), len(patches)
    parts = torch.empty(samples, programs(voxels), device=patches.device)
    launch(_sum_variances, voxels, samples, patches, weight, parts, voxels, weighted=weighted)
    counted = (weight > 0).flatten(1).sum(1) if weighted else voxels
    return (parts.sum(1, dtype=torch.float64) / counted).float()


@triton.jit
def _neighbours(image, x, n0, n1, n2, dilation, wanted):
    """Read `dilation` voxels away along each axis, border values repeated."""
    i, j, k = index(x, n1, n2)
    plane = n1 * n2
    s0 = tl.load(image + (x + (tl.maximum(i - dilation, 0) - i) * plane), wanted, 0.0)
    s1 = tl.load(image + (x + (tl.minimum(i + dilation, n0 - 1) - i) * plane), wanted, 0.0)
    s2 = tl.load(image + (x + (tl.maximum(j - dilation, 0) - j) * n2), wanted, 0.0)
    s3 = tl.load(image + (x + (tl.minimum(j + dilation, n1 - 1) - j) * n2), wanted, 0.0)
    s4 = tl.load(image + (x + (tl.maximum(k - dilation, 0) - k)), wanted, 0.0)
    s5 = tl.load(image + (x + (tl.minimum(k + dilation, n2 - 1) - k)), wanted, 0.0)
    return s0, s1, s2, s3, s4, s5


@triton.jit
def _store_pair(out, x, voxels, pair: tl.constexpr, a, b, weight_a, weight_b, wanted, weighted: tl.constexpr):
    square = (a - b) * (a - b)
    if weighted:
        square *= weight_a * weight_b
        tl.store(channel(out, pair + 12, voxels) + x, weight_a * weight_b, wanted)
    tl.store(channel(out, pair, voxels) + x, square, wanted)


@triton.jit
def _differences(image, w, out, n0, n1, n2, dilation, weighted: tl.constexpr, block: tl.constexpr):
    """The squared difference of each pair of neighbours, times its weight, and the weights."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample, voxels = tl.program_id(1), n0 * n1 * n2
    image, w = channel(image, sample, voxels), channel(w, sample, voxels)
    wanted = x < voxels
    s0, s1, s2, s3, s4, s5 = _neighbours(image, x, n0, n1, n2, dilation, wanted)
    w0, w1, w2, w3, w4, w5 = s0, s1, s2, s3, s4, s5
    out = channel(out, 12 * sample, voxels)
    if weighted:
        out = channel(out, 12 * sample, voxels)
        w0, w1, w2, w3, w4, w5 = _neighbours(w, x, n0, n1, n2, dilation, wanted)
    _store_pair(out, x, voxels, 0, s0, s2, w0, w2, wanted, weighted)
    _store_pair(out, x, voxels, 1, s0, s3, w0, w3, wanted, weighted)
    _store_pair(out, x, voxels, 2, s0, s4, w0, w4, wanted, weighted)
    _store_pair(out, x, voxels, 3, s0, s5, w0, w5, wanted, weighted)
    _store_pair(out, x, voxels, 4, s1, s2, w1, w2, wanted, weighted)
    _store_pair(out, x, voxels, 5, s1, s3, w1, w3, wanted, weighted)
    _store_pair(out, x, voxels, 6, s1, s4, w1, w4, wanted, weighted)
    _store_pair(out, x, voxels, 7, s1, s5, w1, w5, wanted, weighted)
    _store_pair(out, x, voxels, 8, s2, s4, w2, w4, wanted, weighted)
    _store_pair(out, x, voxels, 9, s2, s5, w2, w5, wanted, weighted)
    _store_pair(out, x, voxels, 10, s3, s4, w3, w4, wanted, weighted)
    _store_pair(out, x, voxels, 11, s3, s5, w3, w5, wanted, weighted)


@triton.jit
def _patch(patches, x, voxels, pair: tl.constexpr, wanted, weighted: tl.constexpr):
    """The mean squared difference in the patches around a pair of neighbours, and what it is divided by."""
    value, count = tl.load(channel(patches, pair, voxels) + x, wanted, 0.0), 1.0
    if weighted:
        count = tl.maximum(tl.load(channel(patches, pair + 12, voxels) + x, wanted, 1.0), 1e-3)
        value = value / count
    return value, count


@triton.jit
def _lowest_and_variance(patches, x, voxels, wanted, weighted: tl.constexpr, block: tl.constexpr):
    """Of the twelve, the smallest and the mean of what the others are above it."""
    lowest = tl.full((block,), float("inf"), tl.float32)
    for pair in tl.static_range(12):
        value, _ = _patch(patches, x, voxels, pair, wanted, weighted)
        lowest = tl.minimum(lowest, value, tl.PropagateNan.ALL)
    total = tl.zeros((block,), tl.float32)
    for pair in tl.static_range(12):
        value, _ = _patch(patches, x, voxels, pair, wanted, weighted)
        total += value - lowest
    return lowest, total / 12


@triton.jit
def _sum_variances(patches, w, parts, voxels, weighted: tl.constexpr, block: tl.constexpr):
    """Each program's share of the sum over the voxels that count."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample = tl.program_id(1)
    wanted = x < voxels
    if weighted:
        patches = channel(patches, 24 * sample, voxels)
        wanted = wanted & (tl.load(channel(w, sample, voxels) + x, wanted, 0.0) > 0)
    else:
        patches = channel(patches, 12 * sample, voxels)
    _, variance = _lowest_and_variance(patches, x, voxels, wanted, weighted, block)
    tl.store(parts + sample * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.where(wanted, variance, 0.0), 0))


@triton.jit
def _describe(patches, typical, out, voxels, weighted: tl.constexpr, block: tl.constexpr):
    """The descriptor: each mean squared difference above the smallest, relative to the variance."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample = tl.program_id(1)
    wanted = x < voxels
    patches, out = channel(patches, (24 if weighted else 12) * sample, voxels), channel(out, 12 * sample, voxels)
    lowest, variance = _lowest_and_variance(patches, x, voxels, wanted, weighted, block)
    usual = tl.load(typical + sample)
    least, most = usual * 1e-3 + 1e-12, usual * 1e3 + 1e-12
    limited = tl.minimum(tl.maximum(variance, least, tl.PropagateNan.ALL), most, tl.PropagateNan.ALL)
    for pair in tl.static_range(12):
        value, _ = _patch(patches, x, voxels, pair, wanted, weighted)
        tl.store(channel(out, pair, voxels) + x, tl.exp((lowest - value) / limited), wanted)


@triton.jit
def _describe_back(patches, typical, gradient, out, voxels, weighted: tl.constexpr, block: tl.constexpr):
    """From the gradient of the descriptor to that of the patches' sums. What the smallest receives is shared by those
    that are equally small."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample = tl.program_id(1)
    wanted = x < voxels
    patches, out = channel(patches, (24 if weighted else 12) * sample, voxels), channel(out, 12 * sample, voxels)
    gradient = channel(gradient, 12 * sample, voxels)
    lowest, variance = _lowest_and_variance(patches, x, voxels, wanted, weighted, block)
    usual = tl.load(typical + sample)
    least, most = usual * 1e-3 + 1e-12, usual * 1e3 + 1e-12
    limited = tl.minimum(tl.maximum(variance, least), most)
    direct, by_variance = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
    equal = tl.zeros((block,), tl.float32)
    for pair in tl.static_range(12):
        value, _ = _patch(patches, x, voxels, pair, wanted, weighted)
        above = (value - lowest) / limited
        received = tl.load(channel(gradient, pair, voxels) + x, wanted, 0.0) * tl.exp(-above) / limited
        direct += received
        by_variance += received * above
        equal += tl.where(value == lowest, 1.0, 0.0)
    by_variance = tl.where((variance > least) & (variance < most), by_variance / 12, 0.0)
    to_lowest = (direct - 12 * by_variance) / equal
    for pair in tl.static_range(12):
        value, count = _patch(patches, x, voxels, pair, wanted, weighted)
        above = (value - lowest) / limited
        received = tl.load(channel(gradient, pair, voxels) + x, wanted, 0.0) * tl.exp(-above) / limited
        to_value = by_variance - received + tl.where(value == lowest, to_lowest, 0.0)
        tl.store(channel(out, pair, voxels) + x, to_value / count, wanted)


@triton.jit
def _pair_back(gradient, x, voxels, pair: tl.constexpr, a, b, weight_a, weight_b, wanted, weighted: tl.constexpr):
    """What the first of a pair of neighbours receives; the second receives as much with the other sign."""
    received = 2 * (a - b) * tl.load(channel(gradient, pair, voxels) + x, wanted, 0.0)
    if weighted:
        received *= weight_a * weight_b
    return received


@triton.jit
def _differences_back(
    image, w, gradient, out, n0, n1, n2, dilation, weighted: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    """From the gradient of the squared differences to that of each of the six neighbours."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample, voxels = tl.program_id(1), n0 * n1 * n2
    image, w = channel(image, sample, voxels), channel(w, sample, voxels)
    gradient, out = channel(gradient, 12 * sample, voxels), channel(out, 6 * sample, voxels)
    wanted = x < voxels
    s0, s1, s2, s3, s4, s5 = _neighbours(image, x, n0, n1, n2, dilation, wanted)
    w0, w1, w2, w3, w4, w5 = s0, s1, s2, s3, s4, s5
    if weighted:
        w0, w1, w2, w3, w4, w5 = _neighbours(w, x, n0, n1, n2, dilation, wanted)
    p02 = _pair_back(gradient, x, voxels, 0, s0, s2, w0, w2, wanted, weighted)
    p03 = _pair_back(gradient, x, voxels, 1, s0, s3, w0, w3, wanted, weighted)
    p04 = _pair_back(gradient, x, voxels, 2, s0, s4, w0, w4, wanted, weighted)
    p05 = _pair_back(gradient, x, voxels, 3, s0, s5, w0, w5, wanted, weighted)
    p12 = _pair_back(gradient, x, voxels, 4, s1, s2, w1, w2, wanted, weighted)
    p13 = _pair_back(gradient, x, voxels, 5, s1, s3, w1, w3, wanted, weighted)
    p14 = _pair_back(gradient, x, voxels, 6, s1, s4, w1, w4, wanted, weighted)
    p15 = _pair_back(gradient, x, voxels, 7, s1, s5, w1, w5, wanted, weighted)
    p24 = _pair_back(gradient, x, voxels, 8, s2, s4, w2, w4, wanted, weighted)
    p25 = _pair_back(gradient, x, voxels, 9, s2, s5, w2, w5, wanted, weighted)
    p34 = _pair_back(gradient, x, voxels, 10, s3, s4, w3, w4, wanted, weighted)
    p35 = _pair_back(gradient, x, voxels, 11, s3, s5, w3, w5, wanted, weighted)
    tl.store(out + x, p02 + p03 + p04 + p05, wanted)
    tl.store(channel(out, 1, voxels) + x, p12 + p13 + p14 + p15, wanted)
    tl.store(channel(out, 2, voxels) + x, p24 + p25 - p02 - p12, wanted)
    tl.store(channel(out, 3, voxels) + x, p34 + p35 - p03 - p13, wanted)
    tl.store(channel(out, 4, voxels) + x, -p04 - p14 - p24 - p34, wanted)
    tl.store(channel(out, 5, voxels) + x, -p05 - p15 - p25 - p35, wanted)


@triton.jit
def _shifted_back(before, behind, x, place, size, stride, wanted, dilation: tl.constexpr, block: tl.constexpr):
    """What a voxel receives as the neighbour of others along an axis; those at the border were read for several."""
    total = tl.zeros((block,), tl.float32)
    total += tl.load(before + (x + dilation * stride), wanted & (place > 0) & (place + dilation < size), 0.0)
    total += tl.load(behind + (x - dilation * stride), wanted & (place + 1 < size) & (place >= dilation), 0.0)
    for d in tl.static_range(dilation + 1):
        total += tl.load(before + (x + d * stride), wanted & (place == 0) & (place + d < size), 0.0)
        total += tl.load(behind + (x - d * stride), wanted & (place + 1 == size) & (place >= d), 0.0)
    return total


@triton.jit
def _neighbours_back(gradient, out, n0, n1, n2, dilation: tl.constexpr, block: tl.constexpr):
    """The adjoint of reading the six neighbours."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample, voxels = tl.program_id(1), n0 * n1 * n2
    out, g0 = channel(out, sample, voxels), channel(gradient, 6 * sample, voxels)
    g1, g2, g3 = channel(g0, 1, voxels), channel(g0, 2, voxels), channel(g0, 3, voxels)
    g4, g5 = channel(g0, 4, voxels), channel(g0, 5, voxels)
    wanted = x < voxels
    i, j, k = index(x, n1, n2)
    total = _shifted_back(g0, g1, x, i, n0, n1 * n2, wanted, dilation, block)
    total += _shifted_back(g2, g3, x, j, n1, n2, wanted, dilation, block)
    total += _shifted_back(g4, g5, x, k, n2, 1, wanted, dilation, block)
    tl.store(out + x, total, wanted)
