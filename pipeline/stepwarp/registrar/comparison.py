"""Pairs of images on a level of the deformable stage: how unlike they are in the middle space, and what pulls there.

The loss of several pairs of images of the same two subjects is the geometric mean of theirs. It has no unit, so that
similarities of any size go together; and a pair pulls the more, the better its images come to match. That is the weight
which noise of unknown strength leaves it: where the loss is a mean square, its logarithm is the log-likelihood, by the
voxel (profile likelihood; of correlation, 1 - r^2 is that square). So a pair also counts by the voxels that it knows: a
slab has a say where it is. A pair that is given twice pulls as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stepwarp.geometry import Grid
from stepwarp.kernels import sampling
from stepwarp.kernels.correlation import Rooms
from stepwarp.losses.similarity import Similarity
from stepwarp.registrar.subject import ImagedSubject

#: A loss below this is none, as that of an image and itself may be.
_NONE = 1e-8

#: The displacements that lead from the middle space to the fixed and to the moving image.
Fields = tuple[Tensor, Tensor]


class LevelImage:
    """An image on a level. world: (D+1, D+1), from the middle space's world to the image's. grid: the level's. edge:
    length of its voxels, mm."""

    def __init__(
        self, subject: ImagedSubject, world: np.ndarray, grid: Grid, edge: float, device: torch.device | str
    ) -> None:
        blocks = subject.all_blocks(subject.factors(edge))
        self._to_index = torch.from_numpy(grid.index_map_to(blocks.grid, world)).to(device)
        self._values, self._trusted = subject.pooled(blocks, device)

    def warped(self, displacement: Tensor, room: Tensor | None) -> Tensor:
        return sampling.warp(self._values, displacement, self._to_index, out=room)

    def warped_mask(self, displacement: Tensor) -> Tensor | None:
        """What is known of the outermost voxels is known of all beyond them."""
        if self._trusted is None:
            return None
        return sampling.warp(self._trusted, displacement, self._to_index, outside="border")


class Comparison:
    """A pair of images on a level. weight: what a voxel of theirs counts where one of the first pair counts 1."""

    def __init__(self, images: tuple[LevelImage, LevelImage], similarity: Similarity, weight: float) -> None:
        self._images, self._similarity, self._weight = images, similarity, weight
        # Memory that every iteration uses again, as the back end allots it in the first one.
        self._warped: Rooms = (None, None)
        self._forces: Rooms = (None, None)

    def loss(self, fields: Fields) -> Tensor:
        return self._similarity(*self._compared(fields))

    def loss_and_forces(self, fields: Fields) -> tuple[Tensor, Fields]:
        """The loss, and its derivatives with respect to a step of either field; they last until the next call."""
        loss, to_fixed, to_moving = self._similarity.forces(*self._compared(fields), self._forces)
        self._forces = to_fixed, to_moving
        return loss, (to_fixed, to_moving)

    def votes(self, fields: Fields) -> Tensor:
        """How much all of its voxels count that may be trusted. ()"""
        fixed, _, weight = self._compared(fields)
        return self._weight * (torch.ones_like(fixed) if weight is None else weight).sum()

    def _compared(self, fields: Fields) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both images in the middle space, and what is to be trusted there, None for all."""
        each = zip(self._images, fields, self._warped, strict=True)
        fixed, moved = (image.warped(field, room) for image, field, room in each)
        self._warped = fixed, moved
        seen = zip(self._images, fields, strict=True)
        masks = [mask for image, field in seen if (mask := image.warped_mask(field)) is not None]
        return fixed, moved, masks[0] * masks[-1] if len(masks) == 2 else masks[0] if masks else None


class Comparisons:
    """All pairs of images on a level, which begins with these fields."""

    def __init__(self, each: Sequence[Comparison], fields: Fields) -> None:
        self._first, *self._others = each
        if self._others:
            votes = torch.stack([one.votes(fields) for one in each])
            self._shares = votes / votes.sum()

    def loss(self, fields: Fields) -> Tensor:
        """()"""
        return self._mean([self._first.loss(fields), *(each.loss(fields) for each in self._others)])

    def loss_and_forces(self, fields: Fields) -> tuple[Tensor, Fields]:
        """The loss, and its derivatives as `Comparison` has them, but for a factor."""
        loss, forces = self._first.loss_and_forces(fields)
        losses = [loss]
        for n, each in enumerate(self._others, 1):
            other, theirs = each.loss_and_forces(fields)
            losses.append(other)
            pull = self._shares[n] / self._shares[0] * (loss.clamp_min(_NONE) / other.clamp_min(_NONE))
            for force, their in zip(forces, theirs, strict=True):
                force.add_(their.mul_(pull))
        return self._mean(losses), forces

    def _mean(self, losses: list[Tensor]) -> Tensor:
        if not self._others:
            return losses[0]
        return (self._shares * torch.stack(losses).clamp_min(_NONE).log()).sum().exp()
