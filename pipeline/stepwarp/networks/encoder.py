"""A network with one answer for the whole image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stepwarp.networks.layers import Norm, block, exactly, halving_block, pad_to_even, zeroed


class Encoder(nn.Module):
    """Two images (B, C, *grid) -> (B, D, D + 1), zeros before training; for `Matrix`.

    channels: of the levels, the finest first, each half the size of the one before. The last level's features are
    averaged over the image, by themselves and times their position along each axis (-1 to 1 from edge to edge): a mean
    alone forgets where things are, and a translation is the difference of two places."""

    def __init__(
        self, dims: int, channels: Sequence[int] = (16, 32, 64, 64), norm: Norm = "none", in_channels: int = 2
    ) -> None:
        super().__init__()
        self.dims = dims
        self.first = block(dims, in_channels, channels[0], norm)
        steps = itertools.pairwise(channels)
        self.levels = nn.ModuleList(
            nn.Sequential(halving_block(dims, a, b, norm), block(dims, b, b, norm)) for a, b in steps
        )
        self.last = zeroed(nn.Linear(channels[-1] * (1 + dims), dims * (dims + 1)))

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        x = self.first(torch.cat([fixed, moving], 1))
        for level in self.levels:
            x = level(pad_to_even(x))
        return exactly(self.last, _moments(x.to(self.last.weight.dtype))).reshape(-1, self.dims, self.dims + 1)


def _moments(features: Tensor) -> Tensor:
    """The means of features (B, C, *grid), and of them times the position along each axis: (B, C (1 + D))."""
    moments = [features.flatten(2).mean(2)]
    for axis in range(2, features.ndim):
        n = features.shape[axis]
        along = features.movedim(axis, -1).reshape(*features.shape[:2], -1, n).mean(2)
        position = (2 * torch.arange(n, device=features.device, dtype=features.dtype) + 1) / n - 1
        moments.append((along * position).mean(2))
    return torch.cat(moments, 1)
