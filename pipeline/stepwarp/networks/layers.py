"""The same layer in one, two and three dimensions."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwarp.kernels.precision import in_full_precision

Norm = Literal["none", "instance", "group"]

CONVOLUTION: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
UP_CONVOLUTION: dict[int, type[nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
BATCH_NORM: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}

_Last = TypeVar("_Last", bound=nn.Module)

#: Channels are normalised in so many groups, or fewer where they cannot be split so.
_GROUPS = 8
#: Slope of the activation for negative values, as in most U-Nets of registration.
_SLOPE = 0.2


def block(dims: int, channels_in: int, channels_out: int, norm: Norm = "none") -> nn.Sequential:
    """Convolution of 3 voxels along each axis, norm, LeakyReLU; the size stays."""
    return nn.Sequential(CONVOLUTION[dims](channels_in, channels_out, 3, padding=1), *_after(dims, channels_out, norm))


def halving_block(dims: int, channels_in: int, channels_out: int, norm: Norm = "none") -> nn.Sequential:
    """Convolution of blocks of 2 voxels along each axis, norm, LeakyReLU: half the (even) size.

    A coarse voxel lies in the middle of the fine ones that it is made of, as on `Grid.coarser`."""
    return nn.Sequential(CONVOLUTION[dims](channels_in, channels_out, 2, stride=2), *_after(dims, channels_out, norm))


def pad_to_even(x: Tensor) -> Tensor:
    """One more voxel of zeros at the end of every axis of odd size: images read 0 outside."""
    odd = [padding for n in reversed(x.shape[2:]) for padding in (0, n % 2)]
    return F.pad(x, odd) if any(odd) else x


def channels_last(x: Tensor) -> Tensor:
    """The same values with the channels of a voxel side by side in memory, which convolutions in half precision are
    about twice as fast on; an arrangement that the layers after it keep."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats.get(x.ndim, torch.contiguous_format))


def crop_to(x: Tensor, like: Tensor) -> Tensor:
    """The first voxels of x along each axis, as many as `like` has."""
    for axis, n in enumerate(like.shape[2:], 2):
        x = x.narrow(axis, 0, n)
    return x


def zeroed(layer: _Last) -> _Last:
    """The layer with all its weights at zero: as the last layer, it makes a network that says "stay"."""
    for weights in layer.parameters():
        nn.init.zeros_(weights)
    return layer


def exactly(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear, x: Tensor) -> Tensor:
    """The layer applied to x in full precision: for outputs that are positions."""
    with in_full_precision(x):
        return layer(x.to(layer.weight.dtype))


def _after(dims: int, channels: int, norm: Norm) -> list[nn.Module]:
    return [*_normalised(dims, channels, norm), nn.LeakyReLU(_SLOPE)]


def _normalised(dims: int, channels: int, norm: Norm) -> list[nn.Module]:
    if norm == "group":
        return [nn.GroupNorm(math.gcd(_GROUPS, channels), channels)]
    return [_INSTANCE_NORM[dims](channels, affine=True)] if norm == "instance" else []
