"""The U-Net of icon_registration and uniGradICON (`tallUNet2`), restated so that their weights can be used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwarp.errors import InputError
from stepwarp.networks.layers import AVERAGE_POOL, BATCH_NORM, CONVOLUTION, UP_CONVOLUTION, crop_to, exactly, zeroed

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class IconUNet(nn.Module):
    """Two images (B, C, *grid) -> (B, D, *grid) in multiples of the grid's extent; zeros before training.

    Parameters are named as there: `downConvs.N`, `upConvs.N`, `batchNorms.N`, `lastConv`. The moving image comes
    first among the channels. down: channels of the levels, those of both images first; up: of the levels on the way
    back, the finest first.

    Raises InputError for images smaller than `minimum_size`."""

    def __init__(
        self,
        dims: int,
        down: Sequence[int] = (2, 16, 32, 64, 256, 512),
        up: Sequence[int] = (16, 32, 64, 128, 256),
    ) -> None:
        super().__init__()
        if len(down) != len(up) + 1:
            raise ValueError(f"{len(down)} levels down need {len(down) - 1} levels up, not {len(up)}")
        self.dims = dims
        levels = range(len(up))
        below = [skipped + up_again for skipped, up_again in zip(down[1:], [*up[1:], 0], strict=True)]
        self.downConvs = nn.ModuleList(CONVOLUTION[dims](down[n], down[n + 1], 3, 2, 1) for n in levels)
        self.upConvs = nn.ModuleList(UP_CONVOLUTION[dims](below[n], up[n], 4, 2, 1) for n in levels)
        self.batchNorms = nn.ModuleList(BATCH_NORM[dims](up[n]) for n in levels)
        self.lastConv = zeroed(CONVOLUTION[dims](down[0] + up[0], dims, 3, padding=1))

    @property
    def minimum_size(self) -> int:
        """Voxels along each axis: of fewer, the coarsest level would be pooled from a single one."""
        return 2 ** (len(self.upConvs) - 1) + 1

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        if min(fixed.shape[2:]) < self.minimum_size:
            shape = " x ".join(map(str, fixed.shape[2:]))
            raise InputError(
                f"this U-Net needs images of {self.minimum_size} voxels along each axis, not {shape}:"
                " give it finer or larger images"
            )
        x = torch.cat([moving, fixed], 1)
        skipped = []
        for convolution in self.downConvs:
            skipped.append(x)
            y = convolution(F.leaky_relu(x))
            x = y + _with_channels(AVERAGE_POOL[self.dims](x, 2, ceil_mode=True), y.shape[1])
        for level in reversed(range(len(self.upConvs))):
            y = self.upConvs[level](F.leaky_relu(x))
            kept = _with_channels(x, y.shape[1])
            x = y + F.interpolate(kept, scale_factor=2.0, mode=_LINEAR[self.dims], align_corners=False)
            x = crop_to(self.batchNorms[level](x), skipped[level])
            x = torch.cat([x, skipped[level]], 1)
        return exactly(self.lastConv, x) / 10


def _with_channels(x: Tensor, channels: int) -> Tensor:
    """The first `channels` channels of x, or all of them after as many of zeros as are missing."""
    missing = channels - x.shape[1]
    return x[:, :channels] if missing <= 0 else torch.cat([x.new_zeros(len(x), missing, *x.shape[2:]), x], 1)
