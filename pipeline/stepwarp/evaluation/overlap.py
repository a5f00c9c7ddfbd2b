"""Overlap of two label maps on one grid. 0 is the background, as everywhere outside an image, and never scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from stepwarp.errors import InputError
from stepwarp.geometry import Grid, LabelMap

#: Ids that span more than this are counted by sorting: one counter per possible id would not fit in memory.
_LARGEST_SPAN = 1 << 22


@dataclass(frozen=True)
class Overlap:
    """Voxels that hold one label: in the fixed map, in the warped one, and in both at once."""

    fixed: int
    warped: int
    shared: int

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|), dimensionless, 0 to 1."""
        return 2 * self.shared / (self.fixed + self.warped)

    @property
    def jaccard(self) -> float:
        """|A and B| / |A or B|, dimensionless, 0 to 1."""
        return self.shared / (self.fixed + self.warped - self.shared)


def overlaps(fixed: LabelMap, warped: LabelMap, ignore: Iterable[int] = ()) -> dict[int, Overlap]:
    """The overlap of every label of either map, by ascending id; both lie on the fixed grid.

    Labels in `ignore` and the background 0 are left out. Raises InputError if the grids differ."""
    if fixed.grid != warped.grid:
        raise InputError(
            f"{fixed.name} and {warped.name} lie on different grids ({fixed.grid} and {warped.grid}): "
            "warp the moving labels onto the fixed grid first"
        )
    a, b = _ids(fixed), _ids(warped)
    in_fixed, in_warped, shared = _counts(a), _counts(b), _counts(a[a == b])
    labels = sorted((in_fixed.keys() | in_warped.keys()) - {0, *ignore})
    return {n: Overlap(in_fixed.get(n, 0), in_warped.get(n, 0), shared.get(n, 0)) for n in labels}


def dice(fixed: LabelMap, warped: LabelMap, ignore: Iterable[int] = ()) -> dict[int, float]:
    """Dice of every label of either map, by ascending id: see `overlaps`.

    A label that only one of them holds scores 0, so that losing one costs."""
    return {label: overlap.dice for label, overlap in overlaps(fixed, warped, ignore).items()}


def mean_dice(scores: Mapping[int, float]) -> float:
    """The unweighted mean over labels. Raises InputError when there is no label to average."""
    if not scores:
        raise InputError("there is no label to average: both label maps are empty, or every label is ignored")
    return sum(scores.values()) / len(scores)


@dataclass(frozen=True)
class LabelChanges:
    """lost: labels that warping removed; created: labels that it made up (nearest-neighbour reading makes none)."""

    lost: tuple[int, ...]
    created: tuple[int, ...]


def label_changes(moving: LabelMap, warped: LabelMap) -> LabelChanges:
    """Which labels of `moving` are missing in `warped`, and the reverse; the grids may differ."""
    before, after = label_ids(moving), label_ids(warped)
    return LabelChanges(tuple(sorted(before - after)), tuple(sorted(after - before)))


def label_ids(labels: LabelMap) -> frozenset[int]:
    """The labels that occur, without the background 0."""
    return frozenset(_counts(_ids(labels)).keys() - {0})


def millilitres(voxels: int, grid: Grid) -> float:
    """The volume of so many voxels of a grid, ml."""
    return voxels * abs(float(np.linalg.det(grid.linear))) / 1000


def _ids(labels: LabelMap) -> np.ndarray:
    return labels.data.cpu().numpy().ravel()


def _counts(ids: np.ndarray) -> dict[int, int]:
    """Voxels per label that occurs."""
    if ids.size == 0:
        return {}
    lowest, highest = int(ids.min()), int(ids.max())
    if highest - lowest > _LARGEST_SPAN:
        labels, counts = np.unique(ids, return_counts=True)
    else:
        counts = np.bincount(ids.astype(np.int64) - lowest)
        labels = np.flatnonzero(counts)
        counts, labels = counts[labels], labels + lowest
    return dict(zip(labels.tolist(), counts.tolist(), strict=True))
