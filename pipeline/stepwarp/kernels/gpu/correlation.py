"""See `kernels.correlation`. The windows' sums are taken along one axis after the other, the first and the last of them
in the kernels that make the maps that are summed and that use the sums: six passes lead from two images to forces."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stepwarp.kernels.buffers import into
from stepwarp.kernels.gpu.cells import channel, index, slope
from stepwarp.kernels.gpu.launching import launch, programs, room


class _Pair(NamedTuple):
    """Images, a sample for each channel (N, *grid), and what is known of them. Where there are no weights and nothing
    is known, the fixed images stand in their place and are not read."""

    fixed: Tensor
    moved: Tensor
    weight: Tensor
    known: Tensor
    weighted: bool
    prepared: bool
    radius: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.fixed.shape[1:])

    @property
    def how(self) -> dict[str, Any]:
        """What the first two kernels are told."""
        return {"weighted": self.weighted, "prepared": self.prepared, "radius": self.radius}

    @property
    def extent(self) -> tuple[int, int]:
        """Voxels and samples."""
        return self.fixed.shape[1:].numel(), len(self.fixed)


def box_sum(image: Tensor, radius: int, *, out: Tensor | None = None) -> Tensor:
    """An axis after the other."""
    result = room(out, tuple(image.shape), image)
    voxels, maps = image.shape[2:].numel(), image.shape[0] * image.shape[1]
    n0, n1, n2 = image.shape[2:]
    scratch = torch.empty_like(result)
    launch(_box, voxels, maps, image.contiguous(), result, n2, 1, voxels, radius=radius)
    launch(_box, voxels, maps, result, scratch, n1, n2, voxels, radius=radius)
    launch(_box, voxels, maps, scratch, result, n0, n1 * n2, voxels, radius=radius)
    return result


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
    """Without the coefficients of the gradients."""
    pair = _pair(fixed, moved, weight, known, radius)
    value, _ = _value(pair, _counts(pair), epsilon, 0)
    return into(out, value.view(fixed.shape[:2]).mean(1))


def correlation_with_gradients(
    wanted: tuple[bool, ...],
    fixed: Tensor,
    moved: Tensor,
    weight: Tensor | None,
    known: Tensor | None,
    radius: int,
    epsilon: float,
) -> tuple[Tensor | None, ...]:
    """The values (B,) and the gradients of each channel's; that of the fixed images costs the least."""
    pair = _pair(fixed, moved, weight, known, radius)
    counts = _counts(pair)
    value, sums = _value(pair, counts, epsilon, 5 if wanted[0] else 3)
    to_moved = room(None, tuple(fixed.shape), fixed)
    to_fixed = torch.empty_like(to_moved) if wanted[0] else None
    _use(pair, sums, 2 / counts, to_fixed, to_moved, along_slopes=False)
    return value.view(fixed.shape[:2]).mean(1), to_fixed, to_moved


def forces(
    fixed: Tensor,
    moved: Tensor,
    weight: Tensor | None,
    radius: int,
    epsilon: float,
    *,
    out: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor, Tensor]:
    """The images' slopes are multiplied as the gradients are found."""
    shape = (len(fixed), 3, *fixed.shape[2:])
    to_fixed, to_moved = room(out[0], shape, fixed), room(out[1], shape, fixed)
    pair = _pair(fixed, moved, weight, None, radius)
    counts = _counts(pair)
    value, sums = _value(pair, counts, epsilon, 5)
    _use(pair, sums, 2 / (counts * len(fixed)), to_fixed, to_moved, along_slopes=True)
    return value.mean(), to_fixed, to_moved


def _pair(fixed: Tensor, moved: Tensor, weight: Tensor | None, known: Tensor | None, radius: int) -> _Pair:
    f, m = fixed.detach().flatten(0, 1).contiguous(), moved.detach().flatten(0, 1).contiguous()
    w = f if weight is None else weight.detach().float().flatten(0, 1).contiguous()
    k = f if known is None else known.detach().flatten(0, 1).contiguous()
    return _Pair(f, m, w, k, weight is not None, known is not None, radius)


def _counts(pair: _Pair) -> Tensor:
    """How many voxels count in each sample, (N,) float64; NaN where none do."""
    voxels, samples = pair.extent
    if not pair.weighted:
        return torch.full((samples,), voxels, dtype=torch.float64, device=pair.fixed.device)
    total = pair.weight.flatten(1).sum(1, dtype=torch.float64)
    return torch.where(total > 0, total, torch.nan)


def _value(pair: _Pair, counts: Tensor, epsilon: float, maps: int) -> tuple[Tensor, Tensor]:
    """The values (N,), and so many coefficient maps, summed along the last two axes: (maps, N, *grid)."""
    (voxels, samples), (_, n1, n2) = pair.extent, pair.shape
    stats = 3 if pair.prepared else 5 + pair.weighted
    one = torch.empty(max(stats, maps), samples, *pair.shape, device=pair.fixed.device)
    two = torch.empty_like(one)
    parts = torch.empty(samples, programs(voxels), device=pair.fixed.device)
    launch(_rows, voxels, samples, *pair[:3], one, n2, voxels, **pair.how)
    launch(_box, voxels, stats * samples, one, two, n1, n2, voxels, radius=pair.radius)
    given = (two, pair.weight, pair.known, one, parts, *pair.shape, float(epsilon))
    launch(_coefficients, voxels, samples, *given, maps=maps, **pair.how)
    if maps:
        launch(_box, voxels, maps * samples, one, two, n2, 1, voxels, radius=pair.radius)
        launch(_box, voxels, maps * samples, two, one, n1, n2, voxels, radius=pair.radius)
    return (1 - parts.sum(1, dtype=torch.float64) / counts).float(), one


def _use(
    pair: _Pair, sums: Tensor, scale: Tensor, to_fixed: Tensor | None, to_moved: Tensor, *, along_slopes: bool
) -> None:
    """From the coefficients' sums, what each sample's value times its `scale` / 2 gives to the images, or along their
    slopes to what moves them."""
    voxels, samples = pair.extent
    given = (*pair[:3], sums, scale.float(), to_moved if to_fixed is None else to_fixed, to_moved, *pair.shape)
    how = {"weighted": pair.weighted, "radius": pair.radius, "with_fixed": to_fixed is not None}
    launch(_use_coefficients, voxels, samples, *given, **how, along_slopes=along_slopes)


@triton.jit
def _window(source, x, place, size, stride, wanted, radius: tl.constexpr, block: tl.constexpr):
    """The sum of 2 radius + 1 neighbours along an axis; zeros beyond."""
    total = tl.zeros((block,), tl.float32)
    for d in tl.static_range(-radius, radius + 1):
        total += tl.load(source + (x + d * stride), wanted & (place + d >= 0) & (place + d < size), 0.0)
    return total


@triton.jit
def _box(source, out, size, stride, voxels, radius: tl.constexpr, block: tl.constexpr):
    """Sums along one axis of each map."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    source, out = channel(source, tl.program_id(1), voxels), channel(out, tl.program_id(1), voxels)
    wanted = x < voxels
    tl.store(out + x, _window(source, x, (x // stride) % size, size, stride, wanted, radius, block), wanted)


@triton.jit
def _rows(
    f, m, w, out, n2, voxels,
    weighted: tl.constexpr, prepared: tl.constexpr, radius: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Sums along the last axis of m, m m, f m and, unless they are known of the fixed images, f, f f, 1; each times the
    weight."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample, samples = tl.program_id(1), tl.num_programs(1)
    f, m, w = channel(f, sample, voxels), channel(m, sample, voxels), channel(w, sample, voxels)
    out = channel(out, sample, voxels)
    wanted = x < voxels
    k = x % n2
    of_m, of_mm, of_fm = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
    of_f, of_ff, of_w = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
    for d in tl.static_range(-radius, radius + 1):
        there = wanted & (k + d >= 0) & (k + d < n2)
        fixed, moved = tl.load(f + (x + d), there, 0.0), tl.load(m + (x + d), there, 0.0)
        weighted_f, weighted_m = fixed, moved
        if weighted:
            weight = tl.load(w + (x + d), there, 0.0)
            weighted_f, weighted_m = weight * fixed, weight * moved
            of_w += weight
        of_m += weighted_m
        of_mm += weighted_m * moved
        of_fm += weighted_m * fixed
        of_f += weighted_f
        of_ff += weighted_f * fixed
    tl.store(out + x, of_m, wanted)
    tl.store(channel(out, samples, voxels) + x, of_mm, wanted)
    tl.store(channel(out, 2 * samples, voxels) + x, of_fm, wanted)
    if not prepared:
        tl.store(channel(out, 3 * samples, voxels) + x, of_f, wanted)
        tl.store(channel(out, 4 * samples, voxels) + x, of_ff, wanted)
        if weighted:
            tl.store(channel(out, 5 * samples, voxels) + x, of_w, wanted)


@triton.jit
def _reach(place, size, radius: tl.constexpr):
    """How much of a window along an axis lies inside the image."""
    return tl.minimum(place + radius, size - 1) - tl.maximum(place - radius, 0) + 1


@triton.jit
def _coefficients(
    sums, w, known, out, parts, n0, n1, n2, epsilon,
    maps: tl.constexpr, weighted: tl.constexpr, prepared: tl.constexpr, radius: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The windows' sums along the first axis, and from them each program's share of the summed squared correlation and
    the coefficient maps.

    With s_fm, s_ff, s_mm the centred window sums, a = s_fm / (s_ff s_mm), b = a s_fm / s_mm, c = a s_fm / s_ff:
    maps = a, b, a mean_f - b mean_m for the gradient of the moved image, c, a mean_m - c mean_f for that of the fixed.
    known: mean_f, s_ff and with weights the windows' sizes."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample, samples, voxels = tl.program_id(1), tl.num_programs(1), n0 * n1 * n2
    sums, out, w = channel(sums, sample, voxels), channel(out, sample, voxels), channel(w, sample, voxels)
    wanted = x < voxels
    i, j, k = index(x, n1, n2)
    of_m = _window(sums, x, i, n0, n1 * n2, wanted, radius, block)
    of_mm = _window(channel(sums, samples, voxels), x, i, n0, n1 * n2, wanted, radius, block)
    of_fm = _window(channel(sums, 2 * samples, voxels), x, i, n0, n1 * n2, wanted, radius, block)
    if prepared:
        if weighted:
            known = channel(known, 3 * sample, voxels)
            size = tl.maximum(tl.load(channel(known, 2, voxels) + x, wanted, 1.0), 1e-3)
        else:
            known = channel(known, 2 * sample, voxels)
            size = (_reach(i, n0, radius) * _reach(j, n1, radius) * _reach(k, n2, radius)).to(tl.float32)
        mean_f, ff = tl.load(known + x, wanted, 0.0), tl.load(channel(known, 1, voxels) + x, wanted, 1.0)
    else:
        of_f = _window(channel(sums, 3 * samples, voxels), x, i, n0, n1 * n2, wanted, radius, block)
        of_ff = _window(channel(sums, 4 * samples, voxels), x, i, n0, n1 * n2, wanted, radius, block)
        if weighted:
            of_w = _window(channel(sums, 5 * samples, voxels), x, i, n0, n1 * n2, wanted, radius, block)
            size = tl.maximum(of_w, 1e-3)
        else:
            size = (_reach(i, n0, radius) * _reach(j, n1, radius) * _reach(k, n2, radius)).to(tl.float32)
        mean_f = of_f / size
        ff = tl.maximum(of_ff - of_f * mean_f, 0.0) + epsilon * size
    mean_m = of_m / size
    mm = tl.maximum(of_mm - of_m * mean_m, 0.0) + epsilon * size
    fm = of_fm - of_m * mean_f
    a = fm / (ff * mm)
    if weighted:
        a *= tl.load(w + x, wanted, 0.0)
    tl.store(parts + sample * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.where(wanted, a * fm, 0.0), 0))
    if maps > 0:
        b = a * fm / mm
        tl.store(out + x, a, wanted)
        tl.store(channel(out, samples, voxels) + x, b, wanted)
        tl.store(channel(out, 2 * samples, voxels) + x, a * mean_f - b * mean_m, wanted)
    if maps > 3:
        c = a * fm / ff
        tl.store(channel(out, 3 * samples, voxels) + x, c, wanted)
        tl.store(channel(out, 4 * samples, voxels) + x, a * mean_m - c * mean_f, wanted)


@triton.jit
def _store(out, x, sample, gradient, image, n0, n1, n2, wanted, along_slopes: tl.constexpr):
    """A gradient, or its three products with the image's slopes."""
    voxels = n0 * n1 * n2
    if along_slopes:
        i, j, k = index(x, n1, n2)
        out = channel(out, 3 * sample, voxels)
        tl.store(out + x, gradient * slope(image, x, i, n0, n1 * n2, wanted), wanted)
        tl.store(channel(out, 1, voxels) + x, gradient * slope(image, x, j, n1, n2, wanted), wanted)
        tl.store(channel(out, 2, voxels) + x, gradient * slope(image, x, k, n2, 1, wanted), wanted)
    else:
        tl.store(channel(out, sample, voxels) + x, gradient, wanted)


@triton.jit
def _use_coefficients(
    f, m, w, sums, scale, to_f, to_m, n0, n1, n2,
    weighted: tl.constexpr, with_fixed: tl.constexpr, along_slopes: tl.constexpr, radius: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """The coefficients' sums along the first axis, and from them d(1 - mean)/dm and d(1 - mean)/df; scale: 2 over what
    is counted in a sample."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample, samples, voxels = tl.program_id(1), tl.num_programs(1), n0 * n1 * n2
    f, m, w = channel(f, sample, voxels), channel(m, sample, voxels), channel(w, sample, voxels)
    sums = channel(sums, sample, voxels)
    wanted = x < voxels
    i = x // (n1 * n2)
    by = tl.load(scale + sample)
    if weighted:
        by = by * tl.load(w + x, wanted, 0.0)
    fixed, moved = tl.load(f + x, wanted, 0.0), tl.load(m + x, wanted, 0.0)
    a = _window(sums, x, i, n0, n1 * n2, wanted, radius, block)
    b = _window(channel(sums, samples, voxels), x, i, n0, n1 * n2, wanted, radius, block)
    rest = _window(channel(sums, 2 * samples, voxels), x, i, n0, n1 * n2, wanted, radius, block)
    _store(to_m, x, sample, by * (moved * b + rest - fixed * a), m, n0, n1, n2, wanted, along_slopes)
    if with_fixed:
        c = _window(channel(sums, 3 * samples, voxels), x, i, n0, n1 * n2, wanted, radius, block)
        rest_f = _window(channel(sums, 4 * samples, voxels), x, i, n0, n1 * n2, wanted, radius, block)
        _store(to_f, x, sample, by * (fixed * c + rest_f - moved * a), f, n0, n1, n2, wanted, along_slopes)
