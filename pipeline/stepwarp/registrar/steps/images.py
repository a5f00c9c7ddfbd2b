"""Batches of images on one grid, as steps see them: on their device, and differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stepwarp.geometry import Grid, Image, Transform
from stepwarp.kernels import sampling
from stepwarp.kernels.precision import in_full_precision

_AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True, eq=False)
class Images:
    """A batch of images on one grid. data: (B, C, *grid.shape)."""

    data: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if tuple(self.data.shape[2:]) != self.grid.shape:
            raise ValueError(f"images of shape {tuple(self.data.shape)} do not fit {self.grid}")

    @classmethod
    def stack(cls, images: Sequence[Image], device: torch.device | str = "cpu") -> Images:
        """Single-channel images of one grid as a batch of float32, (B, 1, *grid.shape)."""
        grid = images[0].grid
        if any(image.grid != grid for image in images):
            raise ValueError("a batch needs images on one grid: resample them onto one first")
        return cls(torch.stack([image.data.to(device).float() for image in images])[:, None], grid)

    def pooled(self, factor: int = 2, corner_aligned: bool = False) -> Images:
        """The means over blocks of `factor` voxels along each axis, on the grid of the blocks' centres.

        corner_aligned: place them as icon_registration does instead, on a grid whose outermost centres are those of
        this grid. Then a mean is taken to lie up to half a fine voxel from where it was formed, and a last block that
        is incomplete is the mean of what it has. For networks that were trained so, and for nothing else."""
        if not corner_aligned:
            factors = (factor,) * self.grid.ndim
            return Images(sampling.average_pool(self.data, factors), self.grid.coarser(factor))
        pooled = _AVERAGE_POOL[self.grid.ndim](self.data, factor, ceil_mode=True)
        return Images(pooled, corner_aligned_grid(self.grid, factor))

    def warp(self, through: Transform, outside: sampling.Outside = "zero") -> Images:
        """These images pulled back: at each voxel x, their value at through(x). Linear, and 0 outside the grid.

        outside: "border" reads the border's value there, as icon_registration does."""
        still = torch.eye(self.grid.ndim + 1, dtype=torch.float64)
        with in_full_precision(self.data):
            warped = sampling.warp(self.data, through.on(self.grid).displacement, still, outside=outside)
        return Images(warped, self.grid)


def corner_aligned_grid(grid: Grid, factor: int) -> Grid:
    """A grid of 1 / `factor` as many voxels (rounded up) whose outermost centres are those of `grid`."""
    fine = np.array(grid.shape)
    coarse = -(-fine // factor)
    if coarse.min() < 2:
        raise ValueError(f"{grid} is too small to be pooled by {factor} with its corners in place")
    return Grid(tuple(coarse), grid.affine @ np.diag([*((fine - 1) / (coarse - 1)), 1.0]))
