"""How much memory each stage of a registration takes at its peak.

The one place that knows: `register` plans with it before it searches, `batch` and `doctor` from headers alone. What a
stage takes is counted in bytes of each voxel that live at a time, as the code has it; tests/workflow/test_memory.py and
benchmarks/half_millimetre.py hold it against what processes were measured to take."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from stepwarp import limits
from stepwarp.config import Level, Preset
from stepwarp.files import nifti, quiet_nibabel
from stepwarp.geometry import Grid, Image
from stepwarp.limits import in_words
from stepwarp.losses.similarity import find_similarity
from stepwarp.registrar.subject import SHOWN, voxel_edge
from stepwarp.segment.segmentation import MARGIN_MM, MOST_VOXELS, MULTIPLE
from stepwarp.workflow.device import free_gpu_memory

#: What a process holds that has read nothing yet, and what it loads on its way besides.
AT_FIRST, _LOADED = 650 * 2**20, 400 * 2**20
#: Bytes of a single value, and of a vector of three.
_ONE, _VECTOR = 4, 12
#: ITK's copy of an image, and the coefficients of its spline in double precision, twice.
_SPLINE = 4 + 2 * 8
#: Where a subject lies is seen on every so many voxels along each axis.
_STRIDE = 4
#: Voxels around the subject in which the field settles, both sides together; how much further the other one reaches.
_MARGIN, _REACH = 8, 1.05
#: Where only a header is known, the share of its voxels that is taken to show something.
_SHOWN_SHARE = 0.6
#: What may compare images whose similarity follows from them.
_OF_AUTO = ("mi", "lncc")
#: What the stage is called in which a segmenter looks at both images.
STRUCTURES = "structures"
#: Of the shipped one, without reading it: mm of its voxels, and how many there are at least along each axis.
_LOOK_MM, _LEAST_LOOK = 2.0, (88, 104, 88)
#: Bytes of each of its voxels while it looks, and of the image's own while what it found is laid out there.
_LOOKING, _LAID_OUT = 250, 24


@dataclass(frozen=True)
class Extent:
    """What there is to know of an image. grid: its voxels. box: of them, those around its subject along each axis.
    shown: how many show something. itemsize: bytes of a voxel as read. partly: not all of it may be trusted."""

    grid: Grid
    box: tuple[int, ...]
    shown: int
    itemsize: int = _ONE
    partly: bool = True

    @classmethod
    def of_grid(cls, grid: Grid) -> Extent:
        """Of an image of which nothing is known but its grid."""
        return cls(grid, grid.shape, round(_SHOWN_SHARE * math.prod(grid.shape)))

    @classmethod
    def of_file(cls, path: Path) -> Extent | None:
        """By its header; None where that cannot be, of which the reader will speak: more than the file can hold, or
        than any may."""
        try:
            image = quiet_nibabel.load(path)
            itemsize = image.get_data_dtype().itemsize
            nifti.check_shape(image.shape, itemsize, str(path))
            ratio = nifti.LARGEST_RATIO if path.suffix.lower() in (".gz", ".mgz") else 1
            if math.prod(image.shape) * itemsize > path.stat().st_size * ratio:
                return None
            return cls.of_grid(Grid(image.shape[:3], image.affine))
        except Exception:  # nibabel raises whatever its parsers run into
            return None

    @classmethod
    def of_image(cls, scaled: Image, mask: Image | None, itemsize: int) -> Extent:
        """Of an image as it is registered."""
        grid = scaled.grid
        some = (scaled.data[(slice(None, None, _STRIDE),) * grid.ndim] > SHOWN).numpy()
        if not some.any():
            return cls(grid, grid.shape, math.prod(grid.shape), itemsize)
        at = np.argwhere(some)
        low, high = at.min(0), at.max(0)
        box = tuple(min(n, int(_STRIDE * (b - a + 1))) for a, b, n in zip(low, high, grid.shape, strict=True))
        reaches_a_face = bool((low == 0).any() or (high == np.array(some.shape) - 1).any())
        shown = round(float(some.mean()) * math.prod(grid.shape))
        return cls(grid, box, shown, itemsize, mask is not None or reaches_a_face)

    @property
    def voxels(self) -> int:
        return math.prod(self.grid.shape)

    def shown_everywhere(self) -> Image:
        """An image of its grid that shows something in each voxel, and takes no memory."""
        return Image(torch.ones(()).expand(self.grid.shape), self.grid)

    @property
    def shown_mm3(self) -> float:
        return self.shown * abs(float(np.linalg.det(self.grid.linear)))

    @property
    def box_mm(self) -> np.ndarray:
        """The lengths (D,) of the box along its axes."""
        return np.array(self.box) * self.grid.spacing

    @property
    def size(self) -> float:
        """About `ImagedSubject.size`, mm."""
        return float(np.exp(np.log(self.box_mm).mean()))

    def held(self) -> int:
        """Bytes of the image as read, as it is registered, and of its mask."""
        return self.voxels * self.itemsize + self.registered()

    def registered(self) -> int:
        """Bytes of the image as it is registered, and of its mask."""
        return self.voxels * (2 * _ONE if self.partly else _ONE)

    def looked_at(self) -> int:
        """Voxels of the grid on which a segmenter looks for structures."""
        along = -(-(self.box_mm + 2 * MARGIN_MM) // (_LOOK_MM * MULTIPLE)) * MULTIPLE
        return int(min(np.maximum(along, _LEAST_LOOK).prod(), MOST_VOXELS))

    def pooling(self, edge: float) -> int:
        """Bytes for bringing it onto blocks of `edge` mm: it is laid out with blocks around it, and pooled from a
        copy; where not all of it may be trusted, it is weighted as well."""
        laid_out = math.prod(n + 3 * f for n, f in zip(self.grid.shape, self.factors(edge), strict=True))
        return _ONE * (7 if self.partly else 3) * laid_out

    def factors(self, edge: float) -> tuple[int, ...]:
        """As `ImagedSubject.factors`."""
        return tuple(max(1, round(edge / spacing)) for spacing in self.grid.spacing)


@dataclass(frozen=True)
class StageMemory:
    """bytes: what the process holds at the peak of a stage. gpu_bytes: what it takes of a GPU that computes. edge: for
    a level of the preset, its voxels in mm."""

    name: str
    bytes: int
    gpu_bytes: int = 0
    edge: float | None = None


@dataclass(frozen=True)
class Room:
    """Bytes that there are. process: for all that this process holds. gpu: of the GPU, None without one. stated: the
    user's own limit, on the GPU where that computes."""

    process: int
    gpu: int | None = None
    stated: int | None = None

    @classmethod
    def now(cls, stated: int | None, device: torch.device) -> Room:
        """What is free, or as much as the user allows."""
        process = limits.held_memory() + limits.free_memory()
        if device.type != "cuda":
            return cls(process if stated is None else stated, None, stated)
        free = free_gpu_memory(device)
        return cls(process, free if stated is None else min(stated, free), stated)

    def lacks(self, stage: StageMemory) -> str | None:
        """What a stage needs and what there is, in words; None where that is enough."""
        if self.gpu is not None and stage.gpu_bytes > self.gpu:
            return self._words(stage.gpu_bytes, self.gpu, " of the GPU's memory")
        if stage.bytes > self.process:
            return self._words(stage.bytes, self.process, " of memory")
        return None

    def _words(self, needed: int, there: int, what: str) -> str:
        by = " by --max-memory" if there == self.stated else ""
        return f"needs {in_words(needed)}{what}, and there are {in_words(there)}{by}"


@dataclass(frozen=True)
class PairMemory:
    """A pair, and how it is registered.

    kernels: whether they compute the similarity, and not plain torch. gpu: whether a GPU does. before: bytes that the
    process holds besides the images. network: bytes that one takes on its grid, 0 without one. structures: whether a
    segmenter is yet to look at the first two images, perhaps only where contrasts are in doubt. auto: whether a
    similarity may turn out to be another than was planned. cubic: whether splines read the moving images. further: more
    pairs of images. compared_by: the names of their similarities."""

    fixed: Extent
    moving: Extent
    affine_only: bool = False
    kernels: bool = True
    gpu: bool = False
    before: int = AT_FIRST
    network: int = 0
    structures: bool = False
    auto: bool = False
    cubic: bool = False
    further: tuple[tuple[Extent, Extent], ...] = ()
    compared_by: tuple[str, ...] = ()

    def stages(self, recipe: Preset) -> tuple[StageMemory, ...]:
        """All of a registration with this recipe, in their order."""
        searched = [self._computed("affine", self._pooling(self._coarsest(recipe)))]
        if self.structures:
            searched.append(self.looking())
        if self.network:
            searched.append(self._computed("network", self.network))
        if edges := self.edges(recipe):
            searched += [self._level(edge, recipe) for edge in edges]
            searched.append(self._whole_fields(edges[-1]))
        return self.reading(), *searched, *self._finishing()

    def edges(self, recipe: Preset) -> list[float]:
        """The voxels of the preset's levels in mm, each length once; none for a linear registration."""
        levels = () if self.affine_only else recipe.deformable.levels
        return list(dict.fromkeys(self._edge(level) for level in levels))

    def without_finest(self, recipe: Preset) -> Preset | None:
        """The recipe without the levels of its finest voxels; None where there are no others."""
        finest = min(self.edges(recipe), default=0.0)
        coarser = tuple(level for level in recipe.deformable.levels if self._edge(level) > finest)
        if self.affine_only or not coarser:
            return None
        return recipe.model_copy(update={"deformable": recipe.deformable.model_copy(update={"levels": coarser})})

    def _edge(self, level: Level) -> float:
        size = max(self.fixed.size, self.moving.size)
        return voxel_edge(size, level.across, float(self.fixed.grid.spacing.min()))

    def _pairs(self) -> list[tuple[Extent, Extent]]:
        return [(self.fixed, self.moving), *self.further]

    def _all(self) -> list[Extent]:
        return [each for pair in self._pairs() for each in pair]

    def _images(self) -> int:
        return self.before + _LOADED + sum(each.held() for each in self._all())

    def reading(self) -> StageMemory:
        """Quantiles are taken of copies, with an index for each value."""
        return StageMemory("read", self._images() - _LOADED + 18 * max(each.voxels for each in self._all()))

    def _computed(self, name: str, work: int, edge: float | None = None) -> StageMemory:
        """A stage of the search, where that is done, beside the images, one of each pair perhaps in other greys too."""
        work += _ONE * sum(max(f.voxels, m.voxels) for f, m in self._pairs()) if self.auto else 0
        if not self.gpu:
            return StageMemory(name, self._images() + work, 0, edge)
        return StageMemory(name, self._images(), work + sum(each.registered() for each in self._all()), edge)

    def looking(self) -> StageMemory:
        """By the segmenter on its grid, and then in what it found on the image's own."""
        both = (self.fixed, self.moving)
        by_it, own = max(_LOOKING * each.looked_at() for each in both), _LAID_OUT * max(each.voxels for each in both)
        if not self.gpu:
            return self._computed(STRUCTURES, max(by_it, own))
        on_gpu = self._computed(STRUCTURES, by_it)
        return replace(on_gpu, bytes=on_gpu.bytes + own)

    def _coarsest(self, recipe: Preset) -> float:
        """The voxels on which the linear stage scores its starts, mm."""
        finest = min(float(each.grid.spacing.min()) for each in (self.fixed, self.moving))
        return voxel_edge(max(self.fixed.size, self.moving.size), recipe.affine.across / 2, finest)

    def _pooling(self, edge: float) -> int:
        return max(each.pooling(edge) + (_ONE * each.voxels if self.gpu else 0) for each in self._all())

    def _level(self, edge: float, recipe: Preset) -> StageMemory:
        """Of each side the images, warped, with their weights; the field, as it began, moved, and its step; the forces
        of further pairs; what the similarity takes, or mending one of the fields."""
        each = 2 * 4 * _VECTOR + 2 * _VECTOR * len(self.further)
        for fixed, moving in self._pairs():
            each += 2 * 2 * _ONE + (5 * _ONE if fixed.partly or moving.partly else 0)
        names = (recipe.deformable.similarity, *self.compared_by, *(_OF_AUTO if self.auto else ()))
        similarity = max(find_similarity(name).bytes_per_voxel[0 if self.kernels else 1] for name in names)
        mending = 2 * _VECTOR + 3 * _VECTOR
        work = self._box(edge) * (each + max(similarity, mending))
        return self._computed(f"deformable {edge:g} mm", max(work, self._pooling(edge)), edge)

    def _whole_fields(self, finest: float) -> StageMemory:
        """The two halves, joined and turned round on the box's own voxels, while those of the last level remain; then
        what came of them on the images' grids, there and back."""
        box, n = self._box(0), self.fixed.voxels
        joined = 65 * box + 32 * self._box(finest)
        laid_out = max(3 * _VECTOR * box + _VECTOR * n, 2 * _VECTOR * box + 2 * _VECTOR * n, 5 * _VECTOR * n)
        return self._computed("whole fields", max(joined, laid_out))

    def _finishing(self) -> tuple[StageMemory, ...]:
        """Measures; files, two at a time, each laid out as it is written; the fields as SimpleITK reads them, in double
        precision; the page. All the while, the moved images of further pairs."""
        n, fields = self.fixed.voxels, 0 if self.affine_only else 2 * _VECTOR * self.fixed.voxels
        left = self.before + _LOADED + sum(each.voxels * each.itemsize for each in self._all()) + fields
        left += _ONE * n * len(self.further)
        left += _SPLINE * max(moving.voxels for _, moving in self._pairs()) if self.cubic else 0
        extra = {"write": (16, 52), "verify": (20, 58), "report": (40, 40)}
        return (
            self._computed("measure", fields + max(9 * f.voxels + 75 * f.shown for f, _ in self._pairs())),
            *(StageMemory(name, left + n * each[0 if self.affine_only else 1]) for name, each in extra.items()),
        )

    def _box(self, edge: float) -> int:
        """Voxels of `edge` mm, of the image's own for 0, in the box of both subjects."""
        own = self.fixed.grid.spacing
        grown = max(1.0, float(np.prod(self.moving.box_mm / self.fixed.box_mm)) ** (1 / len(own)))
        along = np.ceil(self.fixed.box_mm * grown * _REACH / (own * self.fixed.factors(edge))) + _MARGIN
        return math.prod(int(voxels) for voxels in along)
