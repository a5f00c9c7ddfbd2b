"""A network that sees all pixels at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stepwarp.errors import InputError
from stepwarp.networks.layers import exactly, zeroed


class FCNet(nn.Module):
    """Two images (B, 1, *shape) -> a displacement (B, D, *shape), zeros before training.

    Both images' pixels in one row, `hidden` layers with ReLU, and one output per pixel and axis. Made for one shape;
    `VectorField` reads its output with unit="extent", 1 being the image's width.

    shape: pixels along each axis; a number alone stands for a square of that size. Raises InputError for images of
    another."""

    def __init__(self, shape: int | Sequence[int] = 28, hidden: Sequence[int] = (50, 50)) -> None:
        super().__init__()
        self.shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        pixels = math.prod(self.shape)
        widths = [2 * pixels, *hidden]
        layers = [module for a, b in itertools.pairwise(widths) for module in (nn.Linear(a, b), nn.ReLU())]
        self.hidden = nn.Sequential(*layers)
        self.last = zeroed(nn.Linear(widths[-1], len(self.shape) * pixels))

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        if tuple(fixed.shape[1:]) != (1, *self.shape):
            given, made = ("x".join(map(str, shape)) for shape in (fixed.shape[1:], (1, *self.shape)))
            raise InputError(f"this network was made for images of {made} (channels x pixels), not {given}")
        x = self.hidden(torch.cat([fixed, moving], 1).flatten(1))
        return exactly(self.last, x).reshape(-1, len(self.shape), *self.shape)
