"""A step that is shown, beside each image, what a network knows of its anatomy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stepwarp.geometry import Transform
from stepwarp.networks.segmenter import Segmenter
from stepwarp.registrar.steps.images import Images
from stepwarp.registrar.steps.step import Step

#: Brighter than this, in units of bright tissue, is what has structures; the rest is background cut away.
BRAIN = 0.02
#: The codes are part of the weights; drawing them again gives the same.
_SEED = 0


class Segmented(Step):
    """A step on images of 1 + `codes` channels: the image, and its soft segmentation.

    The segmentation is written in few channels: each structure has a random direction in `codes` dimensions, the
    background is 0, and a voxel shows the mean of the directions by their probabilities. Two such codes differ by about
    as much, squared, as the probabilities do (Johnson and Lindenstrauss 1984), and `weight` times their squared
    difference is what a `Guided` step lowers with the image's own dissimilarity. Each image is segmented once, however
    many steps follow; what is moved by them moves its codes too.

    segmenter: trained by label maps, apart from the steps: no gradient reaches it through them."""

    codes: Tensor

    def __init__(self, segmenter: Segmenter, step: Step, codes: int = 8, weight: float = 1.0) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.step = step
        self.weight = weight
        # Named, since a step from a file is first built on no device.
        directions = torch.randn(segmenter.classes, codes, device="cpu", generator=torch.Generator().manual_seed(_SEED))
        directions[0] = 0
        directions[1:] /= directions[1:].norm(dim=1, keepdim=True)
        self.register_buffer("codes", directions)

    def forward(self, fixed: Images, moving: Images) -> Transform:
        return self.step(self.informed(fixed), self.informed(moving))

    def trace(self, fixed: Images, moving: Images) -> Iterator[Transform]:
        yield from self.step.trace(self.informed(fixed), self.informed(moving))

    def around(self, step: Step) -> Segmented:
        """Another step that is shown the same, by the same network."""
        other = Segmented(self.segmenter, step, self.codes.shape[1], self.weight)
        other.codes = self.codes
        return other.train(self.training)

    @torch.no_grad()
    def informed(self, images: Images) -> Images:
        """Images (B, 1, *grid) with their codes, (B, 1 + codes, *grid)."""
        coded = [self.segmenter.expected(image, self.codes) * (image > BRAIN) for image in images.data.split(1)]
        return Images(torch.cat([images.data, self.weight**0.5 * torch.cat(coded)], 1), images.grid)

    @property
    def title(self) -> str:
        return f"Segmented into {self.segmenter.classes - 1} structures"
