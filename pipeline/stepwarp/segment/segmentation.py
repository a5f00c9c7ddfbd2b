"""The structures of a head, found by a network on voxels of 2 mm and brought onto the image's own grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.evaluation.overlap import millilitres
from stepwarp.geometry import Affine, Grid, Image, LabelMap
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.geometry.orientation import canonical
from stepwarp.registrar.weights.recipe import Spacing
from stepwarp.segment.head import Head, seen_head
from stepwarp.segment.segmenters import HeadSegmenter, KnownStructure

#: Around what an image shows, mm.
MARGIN_MM = 10.0
#: Sizes of the network's grids are multiples of it, so that no level is padded.
MULTIPLE = 8
#: Larger than this the network's grid is not: heads are a tenth of it, and what is larger takes minutes and GiB.
MOST_VOXELS = 16_000_000
#: How much of the fluid around it counts as brain where a voxel has some of both: what skull-stripping keeps.
_FLUID = 0.5


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a segmenter found in an image.

    Parameters
    ----------
    image : Image
        As it was given.
    known : tuple of KnownStructure
        What the classes from 1 on are.
    probabilities : Tensor
        (1 + structures, *grid), of each class at each voxel of the network's grid, float32 on the CPU.
    grid : Grid
        The network's, its axes those of an upright head.
    """

    image: Image
    known: tuple[KnownStructure, ...]
    probabilities: Tensor
    grid: Grid

    @cached_property
    def coarse(self) -> LabelMap:
        """The likeliest structure at each voxel of the network's grid, by its id."""
        return LabelMap(_ids(self.known)[self.probabilities.argmax(0)], self.grid, self.image.name)

    @cached_property
    def head(self) -> Head:
        """Whether, and why, it is taken for a head."""
        return seen_head(self.probabilities, self.grid, self.known)

    @cached_property
    def mask(self) -> LabelMap:
        """The brain, uint8 on the image's grid: 1 in one piece without holes, with its ventricles and the fluid in its
        folds, as skull-stripping leaves it. All 0 where nothing was found."""
        box = self._box()
        inside = torch.zeros(self.image.grid.shape, dtype=torch.uint8)
        share = _read(_brain(self.probabilities, self.known), self.grid, _part(self.image.grid, box))
        inside[box] = torch.from_numpy(one_piece(share.numpy() > 0.5)).to(torch.uint8)
        return LabelMap(inside, self.image.grid, f"brain of {self.image.name}")

    @cached_property
    def structures(self) -> LabelMap:
        """The likeliest structure at each voxel of the image's grid, by its id, 0 for none; those of the brain within
        `mask` alone."""
        box = self._box()
        onto = _part(self.image.grid, box)
        best = _read(self.probabilities[0], self.grid, onto)
        labels = torch.zeros(onto.shape, dtype=torch.uint8)
        for number, _ in self._classes():
            share = _read(self.probabilities[number], self.grid, onto)
            better = share > best
            labels[better] = number
            best = torch.where(better, share, best)
        in_brain = torch.tensor([False, *(each.brain for each in self.known)])[labels.long()]
        labels[in_brain & (self.mask.data[box] == 0)] = 0
        whole = torch.zeros(self.image.grid.shape, dtype=torch.int16)
        whole[box] = _ids(self.known)[labels.long()]
        return LabelMap(whole, self.image.grid, f"structures of {self.image.name}")

    @cached_property
    def volumes(self) -> dict[str, float]:
        """Millilitres of each structure by its name, and of the mask, which is called "brain mask"."""
        grid = self.image.grid
        voxels = torch.bincount(self.structures.data.flatten(), minlength=1 + max(each.id for each in self.known))
        counted = {"brain mask": int(self.mask.data.sum()), **{each.name: int(voxels[each.id]) for each in self.known}}
        return {name: round(millilitres(count, grid), 3) for name, count in counted.items()}

    def _classes(self) -> Iterator[tuple[int, KnownStructure]]:
        return enumerate(self.known, 1)

    def _box(self) -> tuple[slice, ...]:
        """The voxels of the image around all that may be something."""
        seen = (self.probabilities[0] < 0.5).nonzero().numpy()
        if not len(seen):
            return (slice(0, 1),) * 3
        low, high = seen.min(0) - 1, seen.max(0) + 1
        corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3)
        index = self.image.grid.index(self.grid.world(corners))
        first = np.clip(np.floor(index.min(0)), 0, np.array(self.image.grid.shape) - 1).astype(int)
        last = np.clip(np.ceil(index.max(0)) + 1, first + 1, self.image.grid.shape).astype(int)
        return tuple(slice(*ends) for ends in zip(first, last, strict=True))


def segment(image: Image, segmenter: HeadSegmenter, upright: Affine | None = None) -> Segmentation:
    """The structures of a head in an image of any contrast, spacing and orientation, whole or skull-stripped.

    The header has to say rightly which way is up and how large voxels are. It is looked at as a whole, and then, where
    it shows more than the network was trained on, once more around the brain that was found.

    Parameters
    ----------
    image : Image
        Three axes.
    segmenter : HeadSegmenter
        As of `load_segmenter`.
    upright : Affine, optional
        A rotation from the image's world to one in which the head is upright, where the header does not say so.

    Returns
    -------
    Segmentation
        Of whatever it is: ask its `head` whether it is one.

    Raises
    ------
    InputError
        For an image in which nothing stands out from the background, or that spans much more than a body.
    """
    lying = Affine.identity(3) if upright is None else upright
    scaled = scale_intensities(canonical(replace(image, grid=_turned(image.grid, lying))))
    grid = _around(scaled, segmenter)
    probabilities = _looked_at(scaled, grid, segmenter)
    closer = _closer(probabilities, grid, segmenter)
    if closer is not None:
        grid, probabilities = closer, _looked_at(scaled, closer, segmenter)
    return Segmentation(image, segmenter.structures, probabilities, _turned(grid, lying.inverse()))


def one_piece(mask: np.ndarray) -> np.ndarray:
    """The largest piece of a mask (neighbours share a face), without holes; nothing of nothing."""
    pieces, count = ndimage.label(mask)
    if count == 0:
        return mask
    largest = 1 + np.bincount(pieces.ravel())[1:].argmax()
    return ndimage.binary_fill_holes(pieces == largest)


def _around(scaled: Image, segmenter: HeadSegmenter) -> Grid:
    """The network's grid around all that the image shows, as large as those of the training at least."""
    try:
        whole = Spacing(mm=segmenter.header.mm, multiple=MULTIPLE, margin_mm=MARGIN_MM).grid(scaled)
    except InputError as error:
        extent = " x ".join(f"{n * mm:.0f}" for n, mm in zip(scaled.grid.shape, scaled.grid.spacing, strict=True))
        raise InputError(
            f"{scaled.name}: is {extent} mm by its header, and no head is that large. Correct the header, or cut the "
            "image to the head."
        ) from error
    if np.prod(whole.shape, dtype=float) > MOST_VOXELS:
        extent = " x ".join(f"{n * segmenter.header.mm:.0f}" for n in whole.shape)
        raise InputError(f"{scaled.name}: shows {extent} mm, and no head is that large. Cut it to the head.")
    return _of_shape(whole, np.maximum(whole.shape, segmenter.header.box), np.array(whole.shape) / 2)


def _closer(probabilities: Tensor, grid: Grid, segmenter: HeadSegmenter) -> Grid | None:
    """A grid of the training's size around the brain that was found; None where the first one is no larger, or where
    none was found."""
    box = np.array(segmenter.header.box)
    if (np.array(grid.shape) <= box + MULTIPLE).all():
        return None
    found = np.argwhere(one_piece(_brain(probabilities, segmenter.structures).numpy() > 0.5))
    if not len(found):
        return None
    low, high = found.min(0), found.max(0) + 1
    wanted = np.maximum(box, -(-(high - low) // MULTIPLE) * MULTIPLE)
    return None if (wanted >= grid.shape).all() else _of_shape(grid, wanted, (low + high) / 2)


def _turned(grid: Grid, by: Affine) -> Grid:
    return Grid(grid.shape, by.matrix @ grid.affine)


def _looked_at(scaled: Image, grid: Grid, segmenter: HeadSegmenter) -> Tensor:
    spacing = Spacing(mm=segmenter.header.mm)
    return segmenter.probabilities(spacing.read(scaled, Affine.identity(3), grid))


def _of_shape(grid: Grid, shape: np.ndarray, middle: np.ndarray) -> Grid:
    """A grid of another shape on the same lattice, around a point in voxels, of which the first begins at 0."""
    affine = grid.affine.copy()
    affine[:-1, -1] = grid.world(np.round(middle - shape / 2))
    return Grid(tuple(int(n) for n in shape), affine)


def _brain(probabilities: Tensor, known: tuple[KnownStructure, ...]) -> Tensor:
    """How much of each voxel is brain, from 0 to 1."""
    weights = torch.tensor([0.0, *(1.0 if each.brain else _FLUID for each in known)])
    return torch.tensordot(weights, probabilities, 1)


def _read(values: Tensor, grid: Grid, onto: Grid) -> Tensor:
    return Image(values.contiguous(), grid).warp(Affine.identity(3), onto).data


def _part(grid: Grid, box: tuple[slice, ...]) -> Grid:
    affine = grid.affine.copy()
    affine[:-1, -1] = grid.world(np.array([part.start for part in box]))
    return Grid(tuple(part.stop - part.start for part in box), affine)


def _ids(known: tuple[KnownStructure, ...]) -> Tensor:
    return torch.tensor([0, *(each.id for each in known)], dtype=torch.int16)
