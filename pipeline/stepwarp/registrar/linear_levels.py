"""How alike two images are under linear maps, many of them at once, with the derivatives in closed form."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from stepwarp.kernels import sampling
from stepwarp.losses.similarity import Similarity
from stepwarp.registrar.pairs import ImagePair
from stepwarp.registrar.subject import Blocks, ImagedSubject, voxel_edge

#: Of the subject's size, the length to which the matrix's entries are as sensitive as the translation: its radius.
_RADIUS = 0.4
#: Voxels around the fixed subject that are compared as well.
_MARGIN = 3
#: Of what the smaller of the two images (or masks) could match, the share that must be matched for a start to count.
_LEAST_OVERLAP = 0.3
#: Worse than any match, and flat: a line search that comes here, or to a mirror image, turns back.
_NO_MATCH = 2.0


class LinearPair:
    """What every level shares: the images, and their centres of mass.

    A candidate maps a fixed world point x to moving centre + radius t + A (x - fixed centre)."""

    def __init__(self, fixed: ImagedSubject, moving: ImagedSubject, device: torch.device | str) -> None:
        self.fixed, self.moving, self.device = fixed, moving, device
        self.fixed_centre, self.moving_centre = fixed.centre_of_mass(), moving.centre_of_mass()
        self.size = max(fixed.size, moving.size)

    @property
    def radius(self) -> float:
        return _RADIUS * self.size

    @property
    def finest(self) -> float:
        return float(min(self.fixed.grid.spacing.min(), self.moving.grid.spacing.min()))

    def swapped(self) -> LinearPair:
        """The same pair the other way round."""
        other = copy.copy(self)
        other.fixed, other.moving = self.moving, self.fixed
        other.fixed_centre, other.moving_centre = self.moving_centre, self.fixed_centre
        return other

    def in_other_images(self, other: ImagePair) -> LinearPair:
        """The same two subjects about the same centres."""
        seen = copy.copy(self)
        seen.fixed, seen.moving = other.subjects()
        return seen


class LinearLevel:
    """Both images at one resolution, with what is needed to score matrices A (n, D, D) and translations t (n, D) in
    units of the radius on the fixed one's grid; both in double precision, on the images' device.

    across: how many of its voxels the subject is across."""

    def __init__(self, pair: LinearPair, across: float, similarity: Similarity) -> None:
        self.similarity, self.radius = similarity, pair.radius
        self.edge = voxel_edge(pair.size, across, pair.finest)
        fixed, moving = pair.fixed, pair.moving
        box = fixed.blocks(fixed.factors(self.edge), _MARGIN)
        everything = moving.all_blocks(moving.factors(self.edge))
        self.fixed, self.fixed_weight = fixed.pooled(box, pair.device)
        self.moving, self.moving_weight = moving.pooled(everything, pair.device)
        self._before = torch.from_numpy(_moved_to(box, pair.fixed_centre)).to(pair.device)
        self._after = torch.from_numpy(np.linalg.inv(_moved_to(everything, pair.moving_centre))).to(pair.device)
        there = moving.blocks(moving.factors(self.edge), _MARGIN)
        volumes = (fixed.known_volume(box), moving.known_volume(there))
        self._most = min(volumes) / abs(np.linalg.det(box.grid.linear))
        self.shape, self.voxels = box.shape, math.prod(box.shape)

    def losses(self, matrices: Tensor, translations: Tensor) -> Tensor:
        """The dissimilarity (n,) under each map."""
        to_index = self._to_index(matrices, translations)
        weight, matched = self._weight(to_index, matrices)
        moved = sampling.warp_linear(self.moving, to_index, self.shape)
        return self._value(self.similarity.values(self.fixed, moved, weight), matched)

    def losses_with_gradients(self, matrices: Tensor, translations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, and the derivatives of each with respect to its matrix and its translation. The weights count as
        constant in them."""
        to_index = self._to_index(matrices, translations)
        weight, matched = self._weight(to_index, matrices)
        with torch.enable_grad():
            moved = sampling.warp_linear(self.moving, to_index.requires_grad_(), self.shape)
            values, to_moved = self.similarity.values_with_gradient(self.fixed, moved, weight)
            # From a number, because to check the shape of a gradient that it is given, torch loads sympy.
            (gradient,) = torch.autograd.grad(torch.dot(moved.flatten(), to_moved.flatten()), to_index)
        to_world = (self._after.T @ gradient @ self._before.T)[:, :-1]
        to_world = torch.where(matched[:, None, None], to_world, 0)
        return self._value(values, matched), to_world[..., :-1], self.radius * to_world[..., -1]

    def _to_index(self, matrices: Tensor, translations: Tensor) -> Tensor:
        """(n, D+1, D+1): index of the fixed grid -> index of the moving one."""
        world = torch.cat([matrices, self.radius * translations[:, :, None]], 2)
        last = world.new_zeros(len(world), 1, world.shape[2])
        last[..., -1] = 1
        return self._after @ torch.cat([world, last], 1) @ self._before

    def _weight(self, to_index: Tensor, matrices: Tensor) -> tuple[Tensor | None, Tensor]:
        """Which voxels count under each map, and whether those are enough, and not a mirror image's (n,)."""
        matched, weight = torch.linalg.det(matrices) > 0, self.fixed_weight
        if self.moving_weight is not None:
            moved = sampling.warp_linear(self.moving_weight, to_index, self.shape, outside="border")
            weight = moved if weight is None else weight * moved
        if weight is not None:
            matched = matched & (weight.flatten(1).sum(1) >= _LEAST_OVERLAP * self._most)
        return weight, matched

    def _value(self, values: Tensor, matched: Tensor) -> Tensor:
        return torch.where(matched, values.double(), _NO_MATCH)


class BothWays:
    """A level as the mean of the two losses that it has from the one image to the other and back."""

    def __init__(self, pair: LinearPair, across: float, similarity: Similarity) -> None:
        self.there = LinearLevel(pair, across, similarity)
        self.back = LinearLevel(pair.swapped(), across, similarity)
        self.edge, self.voxels = self.there.edge, self.there.voxels

    def losses_with_gradients(self, matrices: Tensor, translations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of `LinearLevel`."""
        inverse = torch.linalg.inv_ex(matrices).inverse
        opposite = -(inverse @ translations[:, :, None])
        loss, to_matrix, to_translation = self.there.losses_with_gradients(matrices, translations)
        other, to_inverse, to_opposite = self.back.losses_with_gradients(inverse, opposite[:, :, 0])
        # With B the inverse and u = -B t: dB = -B dA B and du = -B dA u - B dt.
        to_opposite = to_opposite[:, :, None]
        to_matrix = to_matrix - inverse.mT @ (to_inverse @ inverse.mT + to_opposite @ opposite.mT)
        to_translation = to_translation - (inverse.mT @ to_opposite)[:, :, 0]
        return (loss + other) / 2, to_matrix / 2, to_translation / 2


_Level = TypeVar("_Level", bound=LinearLevel | BothWays)


class Together(Generic[_Level]):
    """The levels of several pairs of images as one, about the same centres: the mean by their shares, which add up
    to 1."""

    def __init__(self, levels: Sequence[_Level], shares: Sequence[float]) -> None:
        self.levels, self.shares = levels, shares
        self.edge, self.voxels = levels[0].edge, max(level.voxels for level in levels)

    def losses(self: Together[LinearLevel], matrices: Tensor, translations: Tensor) -> Tensor:
        """As of `LinearLevel`."""
        return self._mean(level.losses(matrices, translations) for level in self.levels)

    def losses_with_gradients(self, matrices: Tensor, translations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of `LinearLevel`."""
        found = [level.losses_with_gradients(matrices, translations) for level in self.levels]
        losses, to_matrix, to_translation = (self._mean(each) for each in zip(*found, strict=True))
        return losses, to_matrix, to_translation

    def _mean(self, each: Iterable[Tensor]) -> Tensor:
        return torch.stack([share * values for share, values in zip(self.shares, each, strict=True)]).sum(0)


def _moved_to(blocks: Blocks, centre: np.ndarray) -> np.ndarray:
    """(D+1, D+1): an index of the blocks -> world mm from `centre`."""
    matrix = blocks.grid.affine.copy()
    matrix[:-1, -1] -= centre
    return matrix
