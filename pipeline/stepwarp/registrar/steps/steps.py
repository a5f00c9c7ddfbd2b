"""The steps that find something: a network's output read as a displacement, a velocity, or a matrix.

Each takes a network of both images' tensors (B, C, *grid), fixed first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from stepwarp.geometry import Affine, DisplacementField
from stepwarp.geometry.grid import float64
from stepwarp.kernels import sampling, smoothing
from stepwarp.kernels.precision import in_full_precision
from stepwarp.registrar.steps.images import Images
from stepwarp.registrar.steps.step import Step

#: What a network's output of 1 means: one voxel, or the way from the first voxel's centre to the last one's.
Unit = Literal["voxels", "extent"]


class VectorField(Step):
    """A network's D channels as a displacement, `scale` units for an output of 1."""

    def __init__(self, net: nn.Module, scale: float = 1.0, unit: Unit = "voxels") -> None:
        super().__init__()
        self.net = net
        self.scale = scale
        self.unit: Unit = unit

    def forward(self, fixed: Images, moving: Images) -> DisplacementField:
        return DisplacementField(_vectors(self.net, fixed, moving, self.scale, self.unit), fixed.grid)

    @property
    def title(self) -> str:
        return f"VectorField of {type(self.net).__name__}"


class Velocity(Step):
    """A network's D channels as a stationary velocity, followed for one unit of time by scaling and squaring.

    Of a velocity that is smooth for its grid the result is invertible. squarings: the velocity is first divided by
    2^squarings; then the map is composed with itself as often. kernel: (standard deviation in mm, weight) of
    Gaussians; where there are any, the output is a momentum, and the velocity is what their sum makes of it (vector
    momentum-parameterised stationary velocity fields, Shen et al. 2019; sums of kernels, Risser et al. 2011)."""

    def __init__(
        self,
        net: nn.Module,
        squarings: int = 6,
        scale: float = 1.0,
        unit: Unit = "voxels",
        kernel: Sequence[tuple[float, float]] = (),
    ) -> None:
        super().__init__()
        self.net = net
        self.squarings = squarings
        self.scale = scale
        self.unit: Unit = unit
        self.kernel = tuple(kernel)

    def forward(self, fixed: Images, moving: Images) -> DisplacementField:
        vectors = _vectors(self.net, fixed, moving, self.scale, self.unit)
        with in_full_precision(vectors):
            velocity = vectors if not self.kernel else self._smoothed(vectors, float(fixed.grid.spacing.mean()))
            return DisplacementField(exponential(velocity, self.squarings), fixed.grid)

    def _smoothed(self, momentum: Tensor, mm: float) -> Tensor:
        """mm: length of a voxel."""
        parts = [weight * smoothing.gaussian(momentum, sigma / mm) for sigma, weight in self.kernel]
        return torch.stack(parts).sum(0)

    @property
    def title(self) -> str:
        what = "Momentum" if self.kernel else "Velocity"
        return f"{what} of {type(self.net).__name__}, {self.squarings} squarings"


class Matrix(Step):
    """A network's (B, D, D + 1) as an affine about the grid's centre; an output of 0 is the identity.

    The output is [M | t] in the directions of the grid's axes: a point at p mm from the centre goes to
    p + M p + t r, with r half of the grid's longest side in mm. So it means the same on any spacing, and a rotation is
    one on voxels of any shape."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, fixed: Images, moving: Images) -> Affine:
        _check_one_grid(fixed, moving)
        output = self.net(fixed.data, moving.data).double()
        grid = fixed.grid
        with in_full_precision(output):
            axes, centre = (float64(a).to(output.device) for a in (grid.linear / grid.spacing, grid.centre))
            radius = float((np.array(grid.shape) * grid.spacing).max() / 2)
            change = axes @ output[..., :-1] @ torch.linalg.inv(axes)
            shift = radius * (axes @ output[..., -1:]) - change @ centre[:, None]
            linear = change + torch.eye(grid.ndim, device=output.device, dtype=output.dtype)
            return Affine(torch.cat([linear, shift], -1))

    @property
    def title(self) -> str:
        return f"Matrix of {type(self.net).__name__}"


def exponential(velocity: Tensor, squarings: int) -> Tensor:
    """The displacement after one unit of time in a stationary velocity, (B, D, *grid) in voxels both."""
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = sampling.compose(displacement, displacement)
    return displacement


def _vectors(net: nn.Module, fixed: Images, moving: Images, scale: float, unit: Unit) -> Tensor:
    """The network's output in voxels, (B, D, *grid), in single precision at least."""
    _check_one_grid(fixed, moving)
    output = net(fixed.data, moving.data)
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    if unit == "voxels":
        return output if scale == 1 else scale * output
    extent = torch.tensor(fixed.grid.shape, device=output.device, dtype=output.dtype) - 1
    return output * (scale * extent).view(1, -1, *[1] * fixed.grid.ndim)


def _check_one_grid(fixed: Images, moving: Images) -> None:
    if fixed.grid != moving.grid:
        raise ValueError(f"a step needs both images on one grid, not on {fixed.grid} and {moving.grid}")
