"""Partial volumes of a label map elsewhere: of each label, how much of a voxel it fills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.files.json import write_json
from stepwarp.files.nifti import SUFFIXES, write_nifti_series
from stepwarp.geometry import Grid, Image, LabelMap, Transform


def list_of(path: Path) -> Path:
    """The file beside partial volumes that lists their labels."""
    suffix = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(suffix))
    return path.with_name(path.name[: -len(suffix)] + ".json")


def write_partial_volumes(
    path: Path, labels: LabelMap, transform: Transform, grid: Grid, overwrite: bool
) -> tuple[list[int], list[int]]:
    """Write (i, j, k, label) float32, and beside it a .json with the labels in their order, as BIDS names them.

    Each label is 1 in its voxels and 0 elsewhere, read linearly on `grid` through `transform`; 0 is one of them, and
    all that there is where the label map ends, so that they sum to 1 everywhere. One is in memory at a time. Returns
    the labels, and those of which nothing is left.

    Raises InputError where that is all of them but 0, OutputError as `write_nifti`."""
    values = sorted({0, *torch.unique(labels.data).tolist()})
    lost: list[int] = []

    def each() -> Iterator[Tensor]:
        for value in values:
            part = Image((labels.data == value).float(), labels.grid, labels.name, outside=float(value == 0))
            moved = part.warp(transform, onto=grid).data
            if not moved.any():
                lost.append(value)
            yield moved
        if 0 < len(values) - 1 == len(set(lost) - {0}):
            raise InputError(
                f"{labels.name}: nothing of it falls on the new grid. Check the transform and its direction."
            )

    write_nifti_series(path, each(), (*grid.shape, len(values)), grid.affine, overwrite=overwrite)
    write_json(list_of(path), {"LabelMap": values}, overwrite)
    return values, lost
