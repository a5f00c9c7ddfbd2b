"""What the search knows of an image: where its subject lies, how large it is, and where the scan cut it off.

The search works on grids that are laid around the subject, of voxels that are a part of the subject's size. So neither
the empty space that a file keeps around it, nor the unit of length, has any influence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stepwarp.errors import RegistrationError
from stepwarp.geometry import Grid, Image
from stepwarp.registrar.masks import pooled, trusted_part

#: Scaled intensities above this belong to the subject.
SHOWN = 0.05
#: A slice that shows less than this share of what the subject's largest slice shows holds specks.
_SPECKS = 1e-3
#: Noise in the air is darker than this share of the brightest.
_BRIGHT = 0.1
#: A face of the image with so much of the subject's largest slice cuts it: the subject goes on there, unseen.
_CUT_FACE = 0.25
#: Planes of an image that are in double precision at a time.
_PLANES = 8
#: The subject's outline is told by about so many points along each axis.
_OUTLINE = 32


class ImagedSubject:
    """An image of intensities of about 0 to 1, background 0, with the box of voxels around what it shows.

    mask: 1 where the image may be trusted, on its grid. low, high: the first voxel (D,) of the box, and the one after
    its last; the whole image where it shows nothing. cut: (D, 2) bool, whether the subject goes on beyond the image's
    first and last slice of each axis."""

    def __init__(self, image: Image, mask: Image | None = None) -> None:
        self.image, self.mask = image, mask
        self._trusted = trusted_part(image, mask).data
        shown = self._trusted > SHOWN
        slices = _slices(shown if shown.any() else torch.ones_like(shown))
        ends = np.array([np.flatnonzero(along > _SPECKS * along.max())[[0, -1]] for along in slices])
        self.low, self.high = ends[:, 0], ends[:, 1] + 1
        #: Cubic mm of what is shown.
        self.volume = float(slices[0].sum(dtype=np.float64)) * abs(float(np.linalg.det(self.grid.linear)))
        bright = _slices(self._trusted > _BRIGHT * float(self._trusted.max()))
        self.cut = np.array([along[[0, -1]] > _CUT_FACE * along.max() for along in bright])

    @property
    def grid(self) -> Grid:
        return self.image.grid

    @property
    def size(self) -> float:
        """The mean (geometric) of the lengths of the box along its axes, mm."""
        return float(np.exp(np.log((self.high - self.low) * self.grid.spacing).mean()))

    def centre_of_mass(self) -> np.ndarray:
        """World mm (D,) of the centre of mass of the intensities that may be trusted; RegistrationError without any."""
        means = []
        for axis, n in enumerate(self.grid.shape):
            profile = _masses(self._trusted.movedim(axis, 0))
            if not profile.sum() > 0:
                raise RegistrationError(f"{self.image.name}: there is nothing above the background")
            places = torch.arange(n, dtype=torch.float64, device=profile.device)
            means.append(float((profile * places).sum() / profile.sum()))
        return self.grid.world(np.array(means))

    def outline(self) -> np.ndarray:
        """World points (N, D) that reach as far as the subject does, to a few voxels."""
        every = [max(1, (high - low) // _OUTLINE) for low, high in zip(self.low, self.high, strict=True)]
        box = tuple(slice(*part) for part in zip(self.low, self.high, every, strict=True))
        shown = self._trusted[box] > SHOWN
        found = (shown if shown.any() else torch.ones_like(shown)).nonzero().cpu().numpy()
        return self.grid.world(found * every + self.low)

    def factors(self, edge: float) -> tuple[int, ...]:
        """How many voxels make one of about `edge` mm, along each axis."""
        return tuple(max(1, round(edge / spacing)) for spacing in self.grid.spacing)

    def blocks(self, factors: Sequence[int], margin: int, around: np.ndarray | None = None) -> Blocks:
        """Blocks of `factors` voxels from the box's first voxel on, and `margin` more of them on all sides.

        around: world points (N, D) that the box reaches to as well, though not beyond where the subject is cut. It
        grows by whole blocks, so that the lattice stays where the subject is."""
        f, low, high = np.array(factors), self.low, self.high
        if around is not None:
            index = self.grid.index(around)
            ends = np.array([[0.0, n] for n in self.grid.shape])
            first, last = np.where(self.cut, ends, [-math.inf, math.inf]).T
            reach = np.minimum(low, np.maximum(np.floor(index.min(0)), first)).astype(int)
            low = low - -(-(low - reach) // f) * f
            high = np.maximum(high, np.minimum(np.ceil(index.max(0)) + 1, last)).astype(int)
        return Blocks(self.grid, tuple(f), low - margin * f, -(-(high - low) // f) + 2 * margin)

    def all_blocks(self, factors: Sequence[int]) -> Blocks:
        """Those of the same lattice that cover the whole image, and one more on all sides."""
        f, shape = np.array(factors), np.array(self.grid.shape)
        before, after = -(-self.low // f) + 1, -(-(shape - self.low) // f) + 1
        return Blocks(self.grid, tuple(f), self.low - before * f, before + after)

    def pooled(self, blocks: Blocks, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
        """Means over blocks, and the share of each that may be trusted, None for all: (1, 1, *grid of the blocks).

        Beyond the image is background, which is known as well as the image, except where the subject goes on there."""
        return pooled(_laid_out(self.image.data.to(device), blocks), self.known(blocks, device), blocks.factors)

    def known_volume(self, blocks: Blocks) -> float:
        """Cubic mm of what may be trusted of the blocks."""
        known = self.known(blocks, self.image.data.device)
        voxels = math.prod(blocks.shape_in_voxels) if known is None else float(known.sum())
        return voxels * abs(float(np.linalg.det(self.grid.linear)))

    def known(self, blocks: Blocks, device: torch.device | str) -> Tensor | None:
        """(*voxels of the blocks): 1 for those that may be trusted, not beyond a cut, nor outside the mask,
        which goes on as it ends. None where all may."""
        known = None
        if self.mask is not None:
            known = self.mask.data.to(device).float()
            for axis, at in enumerate(blocks.voxels()):
                known = known.index_select(axis, torch.from_numpy(at.clip(0, known.shape[axis] - 1)).to(device))
        for axis, (at, n) in enumerate(zip(blocks.voxels(), self.grid.shape, strict=True)):
            before, after = self.cut[axis]
            unseen = ((at < 0) & before) | ((at >= n) & after)
            if unseen.any():
                known = torch.ones(blocks.shape_in_voxels, device=device) if known is None else known
                known.movedim(axis, 0)[torch.from_numpy(unseen).to(device)] = 0
        return known


class Blocks:
    """A lattice of blocks of an image's voxels. factors: voxels of a block along each axis. start: (D,) the voxel with
    which the first block begins, perhaps outside of the image. shape: how many blocks."""

    def __init__(self, of: Grid, factors: tuple[int, ...], start: np.ndarray, shape: np.ndarray) -> None:
        self.factors = tuple(int(f) for f in factors)
        self.start, self.shape = start, tuple(int(n) for n in shape)
        affine = of.affine.copy()
        affine[:-1, -1] = of.world(start)
        self.grid = Grid(self.shape_in_voxels, affine).coarser(self.factors)

    @property
    def shape_in_voxels(self) -> tuple[int, ...]:
        return tuple(n * f for n, f in zip(self.shape, self.factors, strict=True))

    def voxels(self) -> list[np.ndarray]:
        """Along each axis, the image's voxels that the blocks hold."""
        return [s + np.arange(n) for s, n in zip(self.start, self.shape_in_voxels, strict=True)]


def sizes_compared(fixed: ImagedSubject, moving: ImagedSubject) -> str:
    """How large two subjects are by their headers, and what to do where that cannot be."""
    return (
        f"what {fixed.image.name} shows is {fixed.size:.3g} mm across, what {moving.image.name} shows {moving.size:.3g}"
        " mm. If that is not so, correct the voxel sizes in the header that is wrong"
    )


def voxel_edge(size: float, across: float, finest: float) -> float:
    """The length of the voxels of which about `across` make up `size`: the finest length times a power of two, so that
    the grids of a pyramid fit into each other."""
    return finest * 2 ** max(0, round(math.log2(size / across / finest)))


def _slices(shown: Tensor) -> list[np.ndarray]:
    """Along each axis, how many voxels of each slice are shown."""
    shown = shown.float()  # ten times as fast as counting, and exact up to slices of 16 million voxels
    others = [tuple(a for a in range(shown.ndim) if a != axis) for axis in range(shown.ndim)]
    return [(shown.sum(dims) if dims else shown).cpu().numpy() for dims in others]


def _masses(planes: Tensor) -> Tensor:
    """The sum of what is above 0 in each plane, in double precision, of which there are a few planes at a time."""
    return torch.cat([some.double().clamp_min(0).reshape(len(some), -1).sum(1) for some in planes.split(_PLANES)])


def _laid_out(values: Tensor, blocks: Blocks) -> Tensor:
    """The voxels of the blocks, 0 where the image has none."""
    before = [-int(s) for s in blocks.start]
    after = [n - b - size for n, b, size in zip(blocks.shape_in_voxels, before, values.shape, strict=True)]
    return F.pad(values, [p for ends in reversed(list(zip(before, after, strict=True))) for p in ends])
