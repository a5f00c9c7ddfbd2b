"""A small U-Net."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwarp.errors import InputError
from stepwarp.networks.layers import (
    AVERAGE_POOL,
    CONVOLUTION,
    Norm,
    block,
    channels_last,
    crop_to,
    exactly,
    halving_block,
    pad_to_even,
    zeroed,
)

Down = Literal["strided", "pooled"]


class UNetBody(nn.Module):
    """What U-Nets have in common: everything but their last layer.

    channels: of the levels, the finest first, each level half the size of the one before. convolutions: on each level
    on the way down, and again on the way up. down: how the size is halved, "strided" by a convolution of blocks of 2
    voxels, which is deterministic on GPUs, or "pooled", by their means. Sizes may be odd: a level is padded by at most
    one voxel along each axis."""

    def __init__(
        self, dims: int, channels: Sequence[int], convolutions: int, down: Down, norm: Norm, in_channels: int
    ) -> None:
        super().__init__()
        self.dims = dims
        self.norm: Norm = norm
        self.down: Down = down

        def convolved(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                *(block(dims, inputs if n == 0 else outputs, outputs, norm) for n in range(convolutions))
            )

        steps = list(itertools.pairwise(channels))
        self.first = convolved(in_channels, channels[0])
        self.halvings = nn.ModuleList(halving_block(dims, a, a, norm) for a, _ in steps if down == "strided")
        self.encoders = nn.ModuleList(convolved(a, b) for a, b in steps)
        self.decoders = nn.ModuleList(convolved(a + b, a) for a, b in steps)

    @property
    def minimum_size(self) -> int:
        """Voxels that the images need along each axis, so that the coarsest level is one block of them at least."""
        smallest = 2 ** len(self.encoders)
        return smallest if self.norm == "none" else smallest + 1

    def features(self, x: Tensor) -> Tensor:
        """(B, in_channels, *grid) -> (B, channels[0], *grid). Raises InputError for less than `minimum_size`."""
        if min(x.shape[2:]) < self.minimum_size:
            shape = " x ".join(map(str, x.shape[2:]))
            raise InputError(
                f"a U-Net of {len(self.encoders) + 1} levels needs images of {self.minimum_size} voxels along each"
                f" axis, not {shape}: give it fewer levels, or finer images"
            )
        x = self.first(channels_last(x))
        skipped = []
        for level, encoder in enumerate(self.encoders):
            skipped.append(x)
            x = pad_to_even(x)
            x = encoder(self.halvings[level](x) if self.down == "strided" else AVERAGE_POOL[self.dims](x, 2))
        for decoder, fine in zip(reversed(self.decoders), reversed(skipped), strict=True):
            x = decoder(torch.cat([crop_to(F.interpolate(x, scale_factor=2.0, mode="nearest"), fine), fine], 1))
        return x


class UNet(UNetBody):
    """Two images (B, C, *grid) -> (B, out, *grid), zeros before training; see `UNetBody`.

    Convolutions in mixed precision, the last one in single: its output is a position.

    Raises InputError for images smaller than `minimum_size`."""

    def __init__(
        self,
        dims: int,
        channels: Sequence[int] = (16, 32, 32, 32),
        convolutions: int = 1,
        down: Down = "strided",
        norm: Norm = "none",
        in_channels: int = 2,
        out_channels: int | None = None,
    ) -> None:
        super().__init__(dims, channels, convolutions, down, norm, in_channels)
        self.last = zeroed(CONVOLUTION[dims](channels[0], dims if out_channels is None else out_channels, 3, padding=1))

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        return exactly(self.last, self.features(torch.cat([fixed, moving], 1))).contiguous()
