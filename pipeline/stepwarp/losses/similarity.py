"""Dissimilarities of two images on one grid: 0 for a perfect match, smaller is better, differentiable in both.

Images are (1, 1, *grid) with intensities of about 0 to 1; `weight`, if given, is (1, 1, *grid) in 0..1, and a voxel of
weight 0 has no influence at all. All are means over the weighted voxels, so their values do not depend on the size;
where no voxel has weight they are NaN."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwarp.geometry import sampling, smoothing

#: A variance (of intensities 0..1) that counts as none.
_FAINT = 1e-8


class Similarity(ABC):
    """A dissimilarity of a fixed and a moved image."""

    @abstractmethod
    def __call__(self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
        """The dissimilarity as a scalar tensor."""

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

    def __call__(self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
        w = torch.ones_like(fixed) if weight is None else weight
        size = self._sum(w).clamp_min(1e-3)
        sum_f, sum_m = self._sum(w * fixed), self._sum(w * moved)
        ff = (self._sum(w * fixed * fixed) - sum_f * sum_f / size).clamp_min(0) + self.epsilon * size
        mm = (self._sum(w * moved * moved) - sum_m * sum_m / size).clamp_min(0) + self.epsilon * size
        fm = self._sum(w * fixed * moved) - sum_f * sum_m / size
        return 1 - (w * fm * fm / (ff * mm)).sum() / w.sum()

    def value_and_gradients(
        self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None
    ) -> tuple[float, Tensor, Tensor]:
        if sampling.on_kernels(fixed, moved):
            from stepwarp.losses import cpu

            return cpu.lncc(fixed, moved, weight, self.radius, self.epsilon)
        return super().value_and_gradients(fixed, moved, weight)

    def _sum(self, image: Tensor) -> Tensor:
        """Sums over the window around each voxel; zeros outside."""
        width = 2 * self.radius + 1
        for axis in range(2, image.ndim):
            line = image.movedim(axis, -1)
            flat = line.reshape(-1, 1, line.shape[-1])
            flat = F.avg_pool1d(flat, width, stride=1, padding=self.radius) * width
            image = flat.reshape(line.shape).movedim(-1, axis)
        return image


class NCC(Similarity):
    """1 - correlation of the whole images."""

    def __call__(self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
        w = torch.ones_like(fixed) if weight is None else weight
        count = w.sum()
        f, m = fixed - (w * fixed).sum() / count, moved - (w * moved).sum() / count
        # The variance that is added keeps the gradient of a flat image, such as one moved out of view, in bounds.
        of_fixed, of_moved = (w * f * f).sum() / count + _FAINT, (w * m * m).sum() / count + _FAINT
        return 1 - (w * f * m).sum() / count / (of_fixed * of_moved).sqrt()


class SSD(Similarity):
    """Mean squared difference."""

    def __call__(self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
        squared = (fixed - moved).square()
        return squared.mean() if weight is None else (weight * squared).sum() / weight.sum()


class MutualInformation(Similarity):
    """1 - mutual information over the smaller entropy, from a joint histogram with linear Parzen windows.

    Works across contrasts that have no simple relation. Intensities beyond 0..1 count in the outermost bins."""

    def __init__(self, bins: int = 32) -> None:
        self.bins = bins

    def __call__(self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
        joint = self._joint(fixed.flatten(), moved.flatten(), None if weight is None else weight.flatten())
        of_fixed, of_moved = joint.sum(1), joint.sum(0)
        entropy_fixed, entropy_moved, entropy_joint = map(_entropy, (of_fixed, of_moved, joint))
        information = entropy_fixed + entropy_moved - entropy_joint
        return 1 - information / torch.minimum(entropy_fixed, entropy_moved).clamp_min(1e-6)

    def _joint(self, fixed: Tensor, moved: Tensor, weight: Tensor | None) -> Tensor:
        low_f, part_f = self._bin(fixed)
        low_m, part_m = self._bin(moved)
        joint = torch.zeros(self.bins * self.bins, device=fixed.device, dtype=torch.float64)
        for up_f, up_m in itertools.product((0, 1), repeat=2):
            share = (part_f if up_f else 1 - part_f) * (part_m if up_m else 1 - part_m)
            share = share if weight is None else share * weight
            joint = joint.index_add(0, (low_f + up_f) * self.bins + low_m + up_m, share.double())
        return (joint / joint.sum()).reshape(self.bins, self.bins)

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

    def __call__(self, fixed: Tensor, moved: Tensor, weight: Tensor | None = None) -> Tensor:
        difference = self.descriptor(fixed, weight) - self.descriptor(moved, weight)
        squared = difference.square().mean(1, keepdim=True)
        return squared.mean() if weight is None else (weight * squared).sum() / weight.sum()

    def descriptor(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """(1, 1, *grid) -> (1, pairs of neighbours, *grid), in 0..1; patches count their voxels by their weight."""
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
        within = variance.detach() if weight is None else variance.detach()[weight > 0]
        typical = within.mean()
        variance = variance.clamp(float(typical) * 1e-3 + 1e-12, float(typical) * 1e3 + 1e-12)
        return torch.exp(-stacked / variance)


def _entropy(probability: Tensor) -> Tensor:
    return -(probability * probability.clamp_min(1e-12).log()).sum()


def _shift(image: Tensor, axis: int, by: int) -> Tensor:
    """The image read `by` voxels further along an axis, border values repeated."""
    n = image.shape[axis + 2]
    index = (torch.arange(n, device=image.device) + by).clamp(0, n - 1)
    return image.index_select(axis + 2, index)


#: What `--similarity` takes.
SIMILARITIES = {"lncc": LNCC, "ncc": NCC, "ssd": SSD, "mi": MutualInformation, "mind": MIND}
