"""Whether what a segmenter found is a head: it names structures in anything, as a sleeper sees faces in clouds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from stepwarp.geometry import Grid
from stepwarp.segment.segmenters import KnownStructure

#: A structure is plausible from so much of the least to so many times the most of it in the training's heads: children,
#: and half a head, are to be taken for what they are.
_SLACK = 2.0
#: Limits of what is a head. On 28 brains, two whole heads, three contrasts of an average and two templates: certainty
#: .88 to .91, plausible 1, layout 1 to 4 mm; inverted greys .86 and 1; half a head .87, .94 and 10 mm. On chests,
#: spheres, noise, a head upside down: at most .71 and .71; a brain's outline of one grey, or of shuffled voxels, .80.
CERTAINTY, PLAUSIBLE, LAYOUT_MM = 0.83, 0.8, 12.0
#: Fewer structures than this have no layout.
_LEAST_FOUND = 4


@dataclass(frozen=True)
class Head:
    """How much what was found is like a head.

    certainty: 0 to 1, how likely the structures are where they are the likeliest, each counting as much, 0 for one that
    is nowhere. plausible: the share of the structures of the brain whose volume can be. layout_mm: how far (root mean
    square) their centres lie from those of the mean head, which may be moved, turned and scaled; None for too few.
    millilitres: of the brain."""

    certainty: float
    plausible: float
    layout_mm: float | None
    millilitres: float

    @property
    def why_not(self) -> str | None:
        """What speaks against a head, in words; None where nothing does."""
        if self.certainty >= CERTAINTY and self.plausible >= PLAUSIBLE and (self.layout_mm or 0) <= LAYOUT_MM:
            return None
        layout = "have no layout" if self.layout_mm is None else f"lie {self.layout_mm:.1f} mm from where they belong"
        return (
            f"of the structures of a brain {self.plausible:.0%} have a volume that can be (heads: {PLAUSIBLE:.0%} at "
            f"least), they are {self.certainty:.2f} certain (heads: {CERTAINTY:g}), and {layout} (heads: at most "
            f"{LAYOUT_MM:g} mm); brain-like is {self.millilitres:.0f} ml"
        )

    def as_dict(self) -> dict[str, Any]:
        """For a record."""
        return {**vars(self), "is_head": self.why_not is None}


def seen_head(probabilities: Tensor, grid: Grid, known: Sequence[KnownStructure]) -> Head:
    """What the probabilities (1 + structures, *grid) of a segmenter are like."""
    likeliest = probabilities.argmax(0)
    brain = [(number, each) for number, each in enumerate(known, 1) if each.brain]
    certainty, millilitres, centres = [], [], []
    voxel = abs(float(np.linalg.det(grid.linear))) / 1000
    for number, _ in brain:
        at = likeliest == number
        count = int(at.sum())
        certainty.append(float(probabilities[number][at].mean()) if count else 0.0)
        millilitres.append(count * voxel)
        centres.append(at.nonzero().double().mean(0).numpy() if count else np.full(3, np.nan))
    can_be = [
        each.millilitres[0] / _SLACK <= found <= each.millilitres[1] * _SLACK
        for (_, each), found in zip(brain, millilitres, strict=True)
    ]
    layout = _layout(grid.world(np.array(centres)), np.array([each.centre for _, each in brain]))
    return Head(
        round(float(np.mean(certainty)), 4), round(float(np.mean(can_be)), 4), layout, round(sum(millilitres), 1)
    )


def _layout(found: np.ndarray, expected: np.ndarray) -> float | None:
    """How far, root mean square, points (N, 3) lie from others after the best motion and scaling; NaN where one is
    missing. (Umeyama 1991.)"""
    there = ~np.isnan(found).any(1)
    if there.sum() < _LEAST_FOUND:
        return None
    a, b = (points[there] - points[there].mean(0) for points in (expected, found))
    left, stretches, right = np.linalg.svd(a.T @ b)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right)) or 1.0])
    turned = a @ (left * signs) @ right
    scale = (stretches * signs).sum() / (a**2).sum()
    return round(float(np.sqrt(((b - scale * turned) ** 2).sum(1).mean())), 2)
