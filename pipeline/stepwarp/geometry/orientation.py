"""Bringing a volume's axes into the order and direction of RAS, without touching a value."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation
from torch import Tensor

from stepwarp.geometry.grid import Grid
from stepwarp.geometry.volume import Volume

V = TypeVar("V", bound=Volume)


def canonical(volume: V) -> V:
    """The same volume with its axes nearest to right, anterior, superior: only permuted and flipped.

    All 48 ways of storing one 3D image become the same tensor. Images of one and two axes stay as they are."""
    if volume.grid.ndim != 3:
        return volume
    orientation = io_orientation(volume.grid.affine)
    order = np.argsort(orientation[:, 0]).astype(int).tolist()
    flipped = [axis for axis, start in enumerate(order) if orientation[start, 1] < 0]

    def turned(values: Tensor) -> Tensor:
        return values.permute(*order).flip(flipped).contiguous()

    data = turned(volume.data)
    affine = volume.grid.affine @ inv_ornt_aff(orientation, volume.grid.shape)
    missing = None if volume.missing is None else turned(volume.missing)
    return replace(volume, data=data, grid=Grid(tuple(data.shape), affine), missing=missing)
