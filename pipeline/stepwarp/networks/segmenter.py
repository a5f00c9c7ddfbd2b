"""A network that says of every voxel of one image which anatomical structure it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stepwarp.networks.layers import CONVOLUTION, crop_to, pad_to_even
from stepwarp.networks.unet import UNetBody


class Segmenter(UNetBody):
    """An image (B, 1, *grid) -> (B, classes, *grid), logits; class 0 is the background.

    Blocks of 2 voxels along each axis are channels of one, on the way in and on the way out (Shi et al. 2016): for an
    eighth of the time the detail of the image's own grid. channels, convolutions: as of `UNetBody`."""

    def __init__(self, dims: int, classes: int, channels: Sequence[int] = (48, 64, 96), convolutions: int = 2) -> None:
        block = 2**dims
        super().__init__(dims, channels, convolutions, "strided", "group", block)
        self.classes = classes
        self.last = CONVOLUTION[dims](channels[0], classes * block, 1)

    def forward(self, image: Tensor) -> Tensor:
        found = unfolded(self.last(self.features(folded(pad_to_even(image)))), self.classes)
        return crop_to(found, image)


def folded(x: Tensor) -> Tensor:
    """(B, C, *grid) of even size -> (B, C 2^D, *grid / 2): the voxels of a block as channels."""
    dims = x.ndim - 2
    split = x.reshape(*x.shape[:2], *(part for n in x.shape[2:] for part in (n // 2, 2)))
    order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]
    return split.permute(order).flatten(1, 1 + dims)


def unfolded(x: Tensor, channels: int) -> Tensor:
    """What `folded` makes, undone: (B, C 2^D, *grid) -> (B, C, *2 grid)."""
    dims = x.ndim - 2
    split = x.reshape(len(x), channels, *[2] * dims, *x.shape[2:])
    order = [0, 1, *(axis for n in range(dims) for axis in (2 + dims + n, 2 + n))]
    return split.permute(order).reshape(len(x), channels, *(2 * n for n in x.shape[2:]))
