"""What the voxels look like: a label map or an image, whole head or brain alone, a brain's T1 or something else.

The limits were set on the development images: T1 brains of 31 people and templates, whole heads, T2, PD,
probability and label maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from torch import Tensor

from stepwarp.doctor.findings import Finding
from stepwarp.errors import InputError
from stepwarp.geometry import Grid, Image
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.printable import counted

#: Fewer values than this, or more of the tissue at the highest one, and contrast is lost.
_FEWEST_VALUES, _CLIPPED = 32, 5e-3
#: Neighbouring voxels of an image correlate by more than this.
_SMOOTH = 0.3
#: Below this (Hounsfield units) there is air.
_AIR = -500.0

#: The subject is looked at in voxels of about this size, and is what is brighter than this share of bright tissue.
_COARSE_MM, _DIM = 4.0, 0.12
#: A part smaller than this share of the largest one is not of the subject.
_LARGE_PART = 0.1
#: Volumes (ml) and lengths (mm) of brains without skull, of heads, and of what may be either.
_BRAIN_ML, _HEAD_ML, _LARGEST_ML = (300.0, 2400.0), 2700.0, 6500.0
_LENGTHS_MM = (70.0, 340.0)
#: Median brightness at 20 to 30 mm below the surface of a brain over that at 5 to 10 mm: white matter over cortex.
_T1_RATIO = (1.08, 1.9)


@dataclass(frozen=True)
class ShownSubject:
    """What stands out from the background. shows: brain (alone), head, or unclear. inner_to_outer: see _T1_RATIO."""

    millilitres: float
    lengths_mm: tuple[float, ...]
    shows: str
    inner_to_outer: float | None


def label_facts(labelled: Tensor) -> dict[str, Any]:
    """How many labels there are, and which: the first twenty."""
    labels = np.unique(labelled.numpy()).tolist()
    return {"labels": len(labels), "label_ids": labels[:20]}


def intensity_findings(data: Tensor, name: str) -> Iterator[Finding]:
    """Clipped, quantised, noise; for the voxels (i, j, k) of an image, finite and not constant."""
    values = data.numpy()
    low, high = float(values.min()), float(values.max())
    tissue = values[values > low + 0.05 * (high - low)]
    at_the_top = float((tissue == high).mean())
    distinct = len(np.unique(tissue[:: max(1, tissue.size // 200_000)]))
    if distinct < _FEWEST_VALUES:
        yield Finding(
            "warning",
            "intensities",
            name,
            f"Its tissue has only {counted(distinct, 'different value')}.",
            "Check that it is an image, not a mask or a label map (those go with --labels or --fixed-mask).",
        )
    elif at_the_top > _CLIPPED:
        yield Finding(
            "warning",
            "clipped",
            name,
            f"{at_the_top:.1%} of its tissue has the highest value, {high:g}: intensities were cut off.",
            "Export it without a window, or with a wider one, if white matter is part of what was cut off.",
        )
    if _smoothness(values) < _SMOOTH:
        yield Finding(
            "warning",
            "not-a-brain-t1",
            name,
            "Neighbouring voxels have little to do with each other, as in noise.",
            "Look at it, and check how it was made.",
        )


def subject_of(data: Tensor, grid: Grid, name: str) -> ShownSubject | None:
    """What the image shows, roughly; None where nothing stands out from the background."""
    axes = zip(grid.shape, grid.spacing, strict=True)
    factors = tuple(min(n, max(1, round(_COARSE_MM / float(s)))) for n, s in axes)
    coarse = Image(data, grid, name).coarser(factors)
    try:
        values = np.pad(scale_intensities(coarse).data.numpy(), 4)
    except InputError:
        return None
    bright = values > _DIM
    parts, count = ndimage.label(bright)
    if not count:
        return None
    sizes = ndimage.sum(bright, parts, range(count + 1))
    large = (sizes > _LARGE_PART * sizes.max())[parts]
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(large, iterations=3) | large)
    spacing = coarse.grid.spacing
    depth = ndimage.distance_transform_edt(filled, sampling=spacing)
    outer, skull, inner = (_median(values, depth, *ends) for ends in ((5, 10), (10, 20), (20, 30)))
    index = np.argwhere(filled)
    lengths = (index.max(0) - index.min(0) + 1) * spacing
    volume = float(filled.sum() * np.prod(spacing) / 1000)
    rises = outer is not None and skull is not None and skull > outer
    shows = "unclear"
    if _BRAIN_ML[0] < volume < _BRAIN_ML[1] and not _is_like_head(outer, skull):
        shows = "brain"
    elif volume > _HEAD_ML and not rises:
        shows = "head"
    ratio = None if outer is None or inner is None or outer == 0 else round(inner / outer, 3)
    return ShownSubject(round(volume, 1), tuple(round(float(n), 1) for n in lengths), shows, ratio)


def subject_facts(subject: ShownSubject | None) -> dict[str, Any]:
    """As a fact of the report."""
    return {"subject": None if subject is None else asdict(subject) | {"lengths_mm": list(subject.lengths_mm)}}


def subject_findings(subject: ShownSubject | None, lowest: float, name: str) -> Iterator[Finding]:
    """Why the image is likely no T1 of a brain. lowest: its darkest value."""
    reason = None
    if lowest < _AIR:
        reason = f"Its darkest value is {lowest:g}, that of air in CT."
    elif subject is None:
        reason = "Nothing stands out from its background."
    elif not _BRAIN_ML[0] < subject.millilitres < _LARGEST_ML:
        reason = (
            f"What it shows has {subject.millilitres:.0f} ml; the brain of an adult has 900 to 2200, a head up to 5000."
        )
    elif not all(_LENGTHS_MM[0] < n < _LENGTHS_MM[1] for n in subject.lengths_mm):
        lengths = " x ".join(f"{n:.0f}" for n in subject.lengths_mm)
        reason = f"What it shows measures {lengths} mm, which is neither a brain nor a head."
    elif subject.shows == "brain" and subject.inner_to_outer is not None:
        low, high = _T1_RATIO
        if not low < subject.inner_to_outer < high:
            reason = (
                f"Deep inside it is {subject.inner_to_outer:.2f} times as bright as near its surface, where T1 of a "
                f"brain has {low:g} to {high:g} (white matter over cortex)."
            )
    if reason:
        yield Finding(
            "warning",
            "not-a-brain-t1",
            name,
            f"It is likely no T1 of a brain. {reason}",
            "If it is another organ or contrast, use --similarity mi for pairs of different contrasts, and no network "
            "that was trained on brains.",
        )


def _is_like_head(outer: float | None, below: float | None) -> bool:
    """A bright scalp above a dark skull."""
    return outer is not None and below is not None and below < 0.85 * outer


def _median(values: np.ndarray, depth: np.ndarray, low: float, high: float) -> float | None:
    chosen = values[(depth > low) & (depth <= high)]
    return float(np.median(chosen)) if chosen.size > 20 else None


def _smoothness(values: np.ndarray) -> float:
    """The correlation of voxels with their next neighbours, the least of the three axes."""
    sparse = values[:: max(1, values.shape[0] // 64)]
    pairs = (
        (values[:-1:4], values[1::4][: len(values[:-1:4])]),
        (sparse[:, :-1], sparse[:, 1:]),
        (sparse[:, :, :-1], sparse[:, :, 1:]),
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        found = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs if a.size > 100]
    return float(np.nanmin(found)) if found and np.isfinite(found).any() else 1.0
