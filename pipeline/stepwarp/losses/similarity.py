"""Dissimilarities of two images on one grid: smaller is better, differentiable in both.

Of an image and itself NCC, SSD and MIND are 0. LNCC is the share of its windows that are flat, which are like nothing;
mutual information is 0.2 to 0.3, since its windows spread each value over two bins of the histogram.

Images are (B, 1, *grid) with intensities of about 0 to 1; `weight`, if given, is (B, 1, *grid) in 0..1, and a voxel of
weight 0 has no influence at all. A batch of one on any side is broadcast to the others. The weight counts as constant:
moving a mask away improves nothing. All are means over the weighted voxels, so their values do not depend on the size;
where no voxel has weight they are NaN. Of a batch they are the mean of its pairs' values."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwarp.geometry import sampling, smoothing

#: A variance (of intensities 0..1) that counts as none.
_FAINT = 1e-8


class Similarity(ABC):
    """A dissimilarity of a fixed and a moved image."""

    @abstractmethod
    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        """See `values`; the three have the same shape and type."""

    def values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
        """The dissimilarity of each pair of a batch, (B,)."""
        if weight is not None:
            weight = weight.detach().to(fixed)
            fixed, moved, weight = torch.broadcast_tensors(fixed, moved, weight)
        else:
            fixed, moved = torch.broadcast_tensors(fixed, moved)
        return self._values(fixed, moved, weight)

    def __call__(self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
        """The dissimilarity as a scalar tensor: the mean over the batch."""
        return self.values(fixed, moved, weight).mean()

    def prepare(self, fixed: Tensor, weight: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The dissimilarity to one fixed image as a function of the moved one, for many of them or many steps.

        What depends on the fixed image alone is computed once, where that pays; it receives no gradient."""
        fixed = fixed.detach()
        return lambda moved: self(fixed, moved, weight)

    def value_and_gradients(
        self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None
    ) -> tuple[float, Tensor, Tensor]:
        """The value, and its derivatives with respect to every voxel of the fixed and of the moved image."""
        fixed, moved = fixed.detach().requires_grad_(), moved.detach().requires_grad_()
        with torch.enable_grad():
            value = self(fixed, moved, weight)
            to_fixed, to_moved = torch.autograd.grad(value, (fixed, moved))
        return float(value.detach()), to_fixed, to_moved


class LNCC(Similarity):
    """1 - mean squared correlation of the windows of (2 radius + 1)^D voxels (Avants et al. 2008, ANTs' `CC`).

    A window counts the voxels inside the image, by their weight: an image that is cut off has no edge there.

    Blind to contrast that changes slowly, and to its sign. epsilon: variance added to every window; it decides how
    faint a structure still counts (intensities 0..1) and has a large effect on accuracy in flat tissue."""

    def __init__(self, radius: int = 2, epsilon: float = 1e-6) -> None:
        self.radius = radius
        self.epsilon = epsilon

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        if sampling.on_kernels(fixed, moved, differentiable=True):
            from stepwarp.losses import cpu

            return cpu.LocalCorrelation.apply(fixed, moved, weight, None, self.radius, self.epsilon)
        w = torch.ones_like(fixed) if weight is None else weight
        mean_f, ff, size = self._statistics(fixed, w)
        sum_m = self._sum(w * moved)
        mm = (self._sum(w * moved * moved) - sum_m * sum_m / size).clamp_min(0) + self.epsilon * size
        fm = self._sum(w * fixed * moved) - mean_f * sum_m
        return 1 - _mean(fm * fm / (ff * mm), weight)

    def prepare(self, fixed: Tensor, weight: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        if not sampling.on_kernels(fixed, differentiable=True):
            return super().prepare(fixed, weight)
        from stepwarp.losses import cpu

        fixed = fixed.detach()
        weight = None if weight is None else weight.detach().to(fixed).expand_as(fixed)
        statistics = self._statistics(fixed, torch.ones_like(fixed) if weight is None else weight)
        known = torch.stack(statistics[: 2 if weight is None else 3], 2)

        def dissimilarity(moved: Tensor) -> Tensor:
            f, w, k = (None if t is None else t.expand(len(moved), *t.shape[1:]) for t in (fixed, weight, known))
            return cpu.LocalCorrelation.apply(f, moved, w, k, self.radius, self.epsilon).mean()

        return dissimilarity

    def _statistics(self, fixed: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the window around each voxel of the fixed image: the mean, the centred sum of squares, the size."""
        size = self._sum(w).clamp_min(1e-3)
        total = self._sum(w * fixed)
        squares = (self._sum(w * fixed * fixed) - total * total / size).clamp_min(0) + self.epsilon * size
        return total / size, squares, size

    def _sum(self, image: Tensor) -> Tensor:
        """Sums over the window around each voxel; zeros outside."""
        if sampling.on_kernels(image):
            from stepwarp.losses import cpu

            return cpu.box_sum(image, self.radius)
        width = 2 * self.radius + 1
        for axis in range(2, image.ndim):
            line = image.movedim(axis, -1)
            flat = line.reshape(-1, 1, line.shape[-1])
            flat = F.avg_pool1d(flat, width, stride=1, padding=self.radius) * width
            image = flat.reshape(line.shape).movedim(-1, axis)
        return image


class NCC(Similarity):
    """1 - correlation of the whole images."""

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        each = (-1, *[1] * (fixed.ndim - 1))
        f, m = fixed - _mean(fixed, weight).view(each), moved - _mean(moved, weight).view(each)
        # The variance that is added keeps the gradient of a flat image, such as one moved out of view, in bounds.
        of_fixed, of_moved = _mean(f * f, weight) + _FAINT, _mean(m * m, weight) + _FAINT
        return 1 - _mean(f * m, weight) / (of_fixed * of_moved).sqrt()


class SSD(Similarity):
    """Mean squared difference."""

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        return _mean((fixed - moved).square(), weight)


class MutualInformation(Similarity):
    """1 - mutual information over the smaller entropy, from a joint histogram with linear Parzen windows.

    Works across contrasts that have no simple relation. What an image shares with itself is less than its entropy
    where values lie between the centres of bins: both are spread over two of them, each for itself. Intensities beyond
    0..1 count in the outermost bins."""

    def __init__(self, bins: int = 32) -> None:
        self.bins = bins

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        joint = self._joint(fixed.flatten(1), moved.flatten(1), None if weight is None else weight.flatten(1))
        of_fixed, of_moved = joint.sum(2), joint.sum(1)
        entropy_fixed, entropy_moved, entropy_joint = map(_entropy, (of_fixed, of_moved, joint.flatten(1)))
        information = entropy_fixed + entropy_moved - entropy_joint
        return 1 - information / torch.minimum(entropy_fixed, entropy_moved).clamp_min(1e-6)

    def _joint(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        """Values (B, N) of two images -> how often they meet, (B, bins, bins)."""
        low_f, part_f = self._bin(fixed)
        low_m, part_m = self._bin(moved)
        batch, cells = len(fixed), self.bins * self.bins
        first = torch.arange(batch, device=fixed.device)[:, None] * cells
        joint = torch.zeros(batch * cells, device=fixed.device, dtype=torch.float64)
        for up_f, up_m in itertools.product((0, 1), repeat=2):
            share = (part_f if up_f else 1 - part_f) * (part_m if up_m else 1 - part_m)
            share = share if weight is None else share * weight
            where = first + (low_f + up_f) * self.bins + low_m + up_m
            joint = joint.index_add(0, where.flatten(), share.double().flatten())
        joint = joint.view(batch, self.bins, self.bins)
        return joint / joint.sum((1, 2), keepdim=True)

    def _bin(self, values: Tensor) -> tuple[Tensor, Tensor]:
        position = values.clamp(0, 1) * (self.bins - 1)
        low = position.detach().floor().clamp_max(self.bins - 2)
        return low.long(), position - low


class MIND(Similarity):
    """Mean squared difference of the two images' self-similarity context (MIND-SSC, Heinrich et al. 2013).

    At each voxel, the squared distances of the small patches around its six neighbours to one another, relative to
    their mean: the same across contrasts, and blind to a slowly varying bias."""

    def __init__(self, dilation: int = 2, sigma: float = 0.8) -> None:
        self.dilation = dilation
        self.sigma = sigma

    def _values(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        difference = self.descriptor(fixed, weight) - self.descriptor(moved, weight)
        return _mean(difference.square().mean(1, keepdim=True), weight)

    def descriptor(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """(B, 1, *grid) -> (B, pairs of neighbours, *grid), in 0..1; patches count their voxels by their weight."""
        d = image.ndim - 2
        neighbours = [(axis, sign) for axis in range(d) for sign in (-1, 1)]
        shifted = {(axis, sign): _shift(image, axis, sign * self.dilation) for axis, sign in neighbours}
        # Opposite neighbours are left out: at distance 2 dilation they are no part of the context of the voxel.
        pairs = [(a, b) for a, b in itertools.combinations(neighbours, 2) if a[0] != b[0]]
        if not pairs:
            pairs = list(itertools.combinations(neighbours, 2))
        kernel = smoothing.gaussian_kernel(self.sigma)
        stacked = torch.cat([(shifted[a] - shifted[b]).square() for a, b in pairs], 1)
        if weight is None:
            stacked = smoothing.convolve_axes(stacked, kernel)
        else:
            counts = {(axis, sign): _shift(weight.to(image), axis, sign * self.dilation) for axis, sign in neighbours}
            count = torch.cat([counts[a] * counts[b] for a, b in pairs], 1)
            stacked = smoothing.convolve_axes(count * stacked, kernel)
            stacked = stacked / smoothing.convolve_axes(count, kernel).clamp_min(1e-3)
        stacked = stacked - stacked.amin(1, keepdim=True)
        variance = stacked.mean(1, keepdim=True)
        within = None if weight is None else (weight > 0).to(variance)
        typical = _mean(variance.detach(), within).view(-1, *[1] * (d + 1))
        variance = torch.minimum(torch.maximum(variance, typical * 1e-3 + 1e-12), typical * 1e3 + 1e-12)
        return torch.exp(-stacked / variance)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The weighted mean of each sample, (B, 1, *grid) -> (B,); NaN where nothing has weight."""
    if weight is None:
        return values.flatten(1).mean(1)
    return (weight * values).flatten(1).sum(1) / weight.flatten(1).sum(1)


def _entropy(probability: Tensor) -> Tensor:
    """Of distributions (B, cells): (B,)."""
    return -(probability * probability.clamp_min(1e-12).log()).sum(1)


def _shift(image: Tensor, axis: int, by: int) -> Tensor:
    """The image read `by` voxels further along an axis, border values repeated."""
    n = image.shape[axis + 2]
    index = (torch.arange(n, device=image.device) + by).clamp(0, n - 1)
    return image.index_select(axis + 2, index)


#: What `--similarity` takes.
SIMILARITIES = {"lncc": LNCC, "ncc": NCC, "ssd": SSD, "mi": MutualInformation, "mind": MIND}
