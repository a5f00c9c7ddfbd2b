"""Whether two images show one contrast; where they do not, the greys of one of them as the other shows them.

From their joint histogram where both show their subject: how much of one image's variance any function of the other one
explains (the correlation ratio, Roche et al. 1998), and how much of it a rising straight line does already. After the
greys of one image were replaced by the mean of what the other has there, both show about the same contrast, and
correlation in windows sees as exactly as in images of one kind (after Guimond et al. 2001, there for T1 and T2 by
polynomials)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stepwarp.geometry import Image, Transform
from stepwarp.kernels.correlation import correlation
from stepwarp.kernels.information import joint_histogram
from stepwarp.registrar.masks import trusted_part
from stepwarp.registrar.subject import SHOWN

_BINS = 32
#: Fewer voxels than this in a bin say nothing of its mean, which is then that between its neighbours'.
_FEW = 20
#: One contrast: a rising line explains at least this share of what any function does.
_ALIKE = 0.7
#: As much leaves no doubt: T1 brains have .945 to .98; other gamma or a bias leaves .82 to .95, PD and T1 .92.
_SURELY_ALIKE = 0.93
#: Less than this is explained by chance, or where images are not aligned.
_NOTHING = 0.01
Side = Literal["fixed", "moving"]
#: Of the windows by which the better direction is chosen.
_RADIUS, _FAINT = 2, 1e-6


@dataclass(frozen=True, eq=False)
class Contrasts:
    """What the greys of two images have to do with each other, under some alignment.

    line: the share of the variance that a straight line explains, negative where it falls. of_moving, of_fixed: the
    share of that image's variance that a function of the other image explains. moving_of_fixed, fixed_of_moving: those
    functions, (bins,) at values evenly from 0 to 1."""

    line: float
    of_moving: float
    of_fixed: float
    moving_of_fixed: Tensor
    fixed_of_moving: Tensor

    @property
    def alike(self) -> bool:
        """Whether both show one contrast, or too little in common to say that they do not."""
        return self._by_a_line(_ALIKE)

    @property
    def surely_alike(self) -> bool:
        """Whether there is no doubt about it."""
        return self._by_a_line(_SURELY_ALIKE)

    def as_dict(self) -> dict[str, float | bool]:
        """For a record."""
        shares = {name: round(getattr(self, name), 4) for name in ("line", "of_moving", "of_fixed")}
        return {"alike": self.alike, **shares}

    def _by_a_line(self, share: float) -> bool:
        most = max(self.of_moving, self.of_fixed)
        return most < _NOTHING or self.line >= share * most


@dataclass(frozen=True, eq=False)
class MappedPair:
    """Two images of one contrast: one as it was, the greys of the other replaced."""

    fixed: Image
    moving: Image


def contrasts(
    fixed: Image, moving: Image, transform: Transform, fixed_mask: Image | None = None, moving_mask: Image | None = None
) -> Contrasts:
    """Of two images of intensities of about 0 to 1, where both show their subject and both may be trusted.

    transform: fixed world -> moving world, by which they are about aligned. Where they share nothing, nothing is
    explained."""
    moved, both = _together(fixed, moving, transform, fixed_mask, moving_mask)
    if not both.any():
        still = torch.linspace(0, 1, _BINS, dtype=torch.float64)
        return Contrasts(0.0, 0.0, 0.0, still, still)
    weight = both.to(moved.dtype)
    joint = joint_histogram(_batch(fixed.data), _batch(moved), _batch(weight), _BINS)[0].cpu()
    values = torch.linspace(0, 1, _BINS, dtype=torch.float64)
    few = _FEW / float(weight.sum())
    moving_of_fixed, of_moving = _explained(joint, values, few)
    fixed_of_moving, of_fixed = _explained(joint.T, values, few)
    return Contrasts(_line(joint, values), of_moving, of_fixed, moving_of_fixed, fixed_of_moving)


def mapped_pair(seen: Contrasts, mapped: Side, fixed: Image, moving: Image) -> MappedPair:
    """The pair with the greys of the one image as the other shows them."""
    if mapped == "fixed":
        return MappedPair(_mapped(fixed, seen.moving_of_fixed), moving)
    return MappedPair(fixed, _mapped(moving, seen.fixed_of_moving))


def better_side(
    seen: Contrasts,
    fixed: Image,
    moving: Image,
    transform: Transform,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
) -> Side:
    """Which image to map: the one after which windows inside both correlate better.

    Where several greys of one image are one grey of the other, only the way from the first to the second is a
    function, and the other way leaves less to be seen."""
    _, both = _together(fixed, moving, transform, fixed_mask, moving_mask)

    def dissimilarity(side: Side) -> float:
        pair = mapped_pair(seen, side, fixed, moving)
        moved = pair.moving.warp(transform, fixed.grid)
        return float(correlation(_batch(pair.fixed.data), _batch(moved.data), _batch(both), None, _RADIUS, _FAINT))

    sides: tuple[Side, ...] = ("fixed", "moving")
    return min(sides, key=dissimilarity) if both.any() else "moving"


def _together(
    fixed: Image, moving: Image, transform: Transform, fixed_mask: Image | None, moving_mask: Image | None
) -> tuple[Tensor, Tensor]:
    """The moved image on the fixed grid, and where both show their subject."""
    moved = trusted_part(moving, moving_mask).warp(transform, fixed.grid)
    return moved.data, (trusted_part(fixed, fixed_mask).data > SHOWN) & (moved.data > SHOWN)


def _explained(joint: Tensor, values: Tensor, few: float) -> tuple[Tensor, float]:
    """The mean of the second image at each grey of the first, and the share of its variance that this explains."""
    count = joint.sum(1)
    known = count > few
    means = joint @ values / count.clamp_min(few)
    if known.any():
        means = torch.from_numpy(np.interp(values.numpy(), values[known].numpy(), means[known].numpy()))
    mean = joint.sum(0) @ values
    variance = float(joint.sum(0) @ (values - mean).square())
    # Of a handful of voxels the means of rare greys, which their neighbours tell, vary by more than there is.
    return means, min(1.0, float(count @ (means - mean).square()) / max(variance, 1e-12))


def _line(joint: Tensor, values: Tensor) -> float:
    """r |r| of the correlation r."""
    of_fixed, of_moving = joint.sum(1), joint.sum(0)
    fixed, moving = values - of_fixed @ values, values - of_moving @ values
    spread = float(of_fixed @ fixed.square()) * float(of_moving @ moving.square())
    r = float(fixed @ joint @ moving) / max(spread, 1e-24) ** 0.5
    return r * abs(r)


def _mapped(image: Image, greys: Tensor) -> Image:
    """An image whose greys are replaced; its background stays 0."""
    position = image.data.clamp(0, 1) * (_BINS - 1)
    low = position.floor().clamp_max(_BINS - 2)
    at, part = low.long(), position - low
    greys = greys.to(image.data)
    data = torch.lerp(greys[at], greys[at + 1], part) * (image.data / SHOWN).clamp(0, 1)
    return Image(data, image.grid, image.name, image.outside)


def _batch(values: Tensor) -> Tensor:
    return values.float()[None, None]
