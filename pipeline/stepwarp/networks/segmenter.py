"""A network that says of every voxel of one image which anatomical structure it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stepwarp.errors import InputError
from stepwarp.networks.layers import CONVOLUTION, crop_to, pad_to_even
from stepwarp.networks.unet import UNetBody


class Segmenter(nn.Module):
    """An image (B, 1, *grid) -> (B, classes, *grid), logits; class 0 is the background.

    Blocks of 2 voxels along each axis are channels of one, on the way in and on the way out (Shi et al. 2016): for an
    eighth of the time the detail of the image's own grid. channels, convolutions: as of `UNetBody`.

    Raises InputError for images smaller than `minimum_size`."""

    def __init__(self, dims: int, classes: int, channels: Sequence[int] = (48, 64, 96), convolutions: int = 2) -> None:
        super().__init__()
        self.classes = classes
        self.body = UNetBody(dims, channels, convolutions, "strided", "group", 2**dims)
        self.last = CONVOLUTION[dims](channels[0], classes * 2**dims, 1)

    @property
    def minimum_size(self) -> int:
        """Voxels that the image needs along each axis."""
        return 2 * self.body.minimum_size - 1

    def forward(self, image: Tensor) -> Tensor:
        if min(image.shape[2:]) < self.minimum_size:
            shape = " x ".join(map(str, image.shape[2:]))
            raise InputError(f"the segmenter needs images of {self.minimum_size} voxels along each axis, not {shape}")
        found = self.last(self.body.features(space_to_depth(pad_to_even(image))))
        return crop_to(depth_to_space(found, self.classes), image)


def space_to_depth(x: Tensor) -> Tensor:
    """(B, C, *grid) of even size -> (B, C 2^D, *grid / 2): the voxels of a block as channels."""
    dims = x.ndim - 2
    split = x.reshape(*x.shape[:2], *(part for n in x.shape[2:] for part in (n // 2, 2)))
    order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]
    return split.permute(order).flatten(1, 1 + dims)


def depth_to_space(x: Tensor, channels: int) -> Tensor:
    """What `space_to_depth` makes, undone: (B, C 2^D, *grid) -> (B, C, *2 grid)."""
    dims = x.ndim - 2
    split = x.reshape(len(x), channels, *[2] * dims, *x.shape[2:])
    order = [0, 1, *(axis for n in range(dims) for axis in (2 + dims + n, 2 + n))]
    return split.permute(order).reshape(len(x), channels, *(2 * n for n in x.shape[2:]))
