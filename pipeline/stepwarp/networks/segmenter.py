"""A network that says of every voxel of one image which anatomical structure it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwarp.errors import InputError
from stepwarp.kernels.precision import in_full_precision
from stepwarp.networks.layers import CONVOLUTION, crop_to, pad_to_even
from stepwarp.networks.unet import UNetBody

#: Planes of blocks whose logits are held at a time.
_SLAB = 4


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
        return crop_to(depth_to_space(self.last(self._features(image)), self.classes), image)

    @torch.no_grad()
    def expected(self, image: Tensor, values: Tensor) -> Tensor:
        """The mean of (classes, C) values by the classes' probabilities at each voxel: (B, C, *grid), single precision.

        What the softmax of the logits times the values is, a slab at a time, straight to its place and with the classes
        side by side: to move the logits of a whole image, hundreds of MiB, takes longer than to compute them."""
        assert self.last.bias is not None
        weights, bias = (_by_block(each, self.classes) for each in (self.last.weight.flatten(1), self.last.bias))
        slabs = self._features(image).movedim(1, -1).split(_SLAB, 1)
        channels, shape = values.shape[1], [2 * n for n in slabs[0].shape[2:-1]]
        found = values.new_empty(len(image), channels, 2 * sum(slab.shape[1] for slab in slabs), *shape)
        for slab, place in zip(slabs, found.split(2 * _SLAB, 2), strict=True):
            logits = F.linear(slab, weights, bias).unflatten(-1, (-1, self.classes))
            with in_full_precision(image):
                blocks = logits.float().softmax(-1) @ values
            place.copy_(depth_to_space(blocks.movedim((-1, -2), (1, 2)).flatten(1, 2), channels))
        return crop_to(found, image)

    def _features(self, image: Tensor) -> Tensor:
        if min(image.shape[2:]) < self.minimum_size:
            shape = " x ".join(map(str, image.shape[2:]))
            raise InputError(f"the segmenter needs images of {self.minimum_size} voxels along each axis, not {shape}")
        return self.body.features(space_to_depth(pad_to_even(image)))


def _by_block(weights: Tensor, classes: int) -> Tensor:
    """Weights (classes 2^D, ...) with all classes of a block's first voxel first, then those of the next."""
    return weights.unflatten(0, (classes, -1)).transpose(0, 1).flatten(0, 1)


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
