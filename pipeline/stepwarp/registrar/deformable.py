"""Deformable registration by direct optimisation of the classical objective, symmetric and coarse to fine.

Two displacements lead from a middle space to the fixed and to the moving image. Both are moved down the gradient of
the dissimilarity of the two warped images at once, so neither image is preferred and the way from one to the other is
halved: each field stays further from folding than one field that goes the whole way (after SyN, Avants et al. 2008,
but with the full gradient of the windowed correlation and greedy composition).

A step is the gradient smoothed by a Gaussian (what makes it a flow of smooth maps), scaled so that a long vector of it
has a set length; it is composed into the field, and the field is smoothed a little in turn and goes a little down the
gradient of (J - 1)^2 / 2J, J its Jacobian determinant: volume changes where the images ask for it, to the half as
readily as to the double.

Each level works on the box of both subjects, whatever surrounds them in the files, and beyond a face that cuts its
subject an image has no say. Fields continue as they end where a box ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stepwarp.config import DeformableSettings, Level
from stepwarp.errors import RegistrationError
from stepwarp.geometry import Affine, DisplacementField, Grid, Image
from stepwarp.kernels import jacobian, sampling, smoothing
from stepwarp.kernels.cpu.threading_layer import fitting_threads
from stepwarp.kernels.order import nth_smallest
from stepwarp.losses.similarity import Similarity, find_similarity
from stepwarp.progress import Progress, ProgressReport, is_over, silent
from stepwarp.registrar.comparison import Comparison, Comparisons, Fields, LevelImage
from stepwarp.registrar.pairs import ImagePair
from stepwarp.registrar.subject import ImagedSubject, sizes_compared, voxel_edge

#: The step's length is set by a vector than which so many are longer, as a share of the subject's voxels: so that a few
#: strong edges do not slow down all the rest, and what surrounds the subject has no influence.
_LONGER = 0.06
#: Vectors are looked at every third voxel along each axis.
_STRIDE = 3
#: The least voxels that the subject is across along an axis on a level that is worth running.
_SMALLEST_LEVEL = 8
#: Voxels around both subjects in which the field can settle.
_MARGIN = 4
#: Both subjects together may be so many times as long as the fixed one: its voxels would fill the memory.
_LONGEST = 4
#: The field is checked for approaching folds once in so many iterations, and then the losses of a GPU are read: to look
#: at them is to wait for all that it was told.
_MEND_EVERY = 5
#: The whole map, composed of two halves that each keep their distance from folding, is mended below this.
_SMALLEST_AT_THE_END = 0.1
_MEND_AT_MOST = 20


#: Receives a level's mm and the warp so far, on the level's grid.
Watch = Callable[[float, DisplacementField], None]


@dataclass(frozen=True)
class Deformation:
    """The deformable part of a registration, on the fixed grid, to be followed by the affine.

    warp: fixed world -> fixed world, before the affine; inverse_warp undoes it.
    trace: one {level_mm, iteration, loss} per iteration. stopped: why the last level ended."""

    warp: DisplacementField
    inverse_warp: DisplacementField
    trace: list[dict[str, float]]
    stopped: str


@dataclass(frozen=True)
class _UsefulLevel:
    """A level as it is run: its settings, the length of its voxels in mm, and of how many of the fixed image they are
    made."""

    settings: Level
    edge: float
    factors: tuple[int, ...]


class _Side:
    """One of the two subjects, as the field that leads to it from the middle space."""

    def __init__(self, world: np.ndarray, device: torch.device | str, field: DisplacementField | None) -> None:
        self.world = world  # (D+1, D+1), from the middle space's world to the subject's
        self.device = device
        self.field = field

    def enter(self, grid: Grid) -> None:
        """Bring the field onto a level's grid."""
        if self.field is None:
            self.field = DisplacementField(torch.zeros(1, grid.ndim, *grid.shape, device=self.device), grid)
        else:
            self.field = DisplacementField(self.field.on(grid).displacement.contiguous(), grid)

    @property
    def displacement(self) -> Tensor:
        assert self.field is not None
        return self.field.displacement

    def on(self, grid: Grid) -> Tensor:
        """The displacement on a grid, as far as it came."""
        if self.field is None:
            return torch.zeros(1, grid.ndim, *grid.shape, device=self.device)
        return self.field.on(grid).displacement

    def move(self, step: Tensor, scale: Tensor, level: Level, room: Tensor | None) -> Tensor:
        """The displacement's own memory takes the one that follows it. Returns what is not needed any more."""
        moved = sampling.compose_step(self.displacement, step, scale, level.step, out=room)
        smoothing.gaussian(moved, level.smooth_field, out=self.displacement)
        if level.keep_volume:
            jacobian.volume_change_gradient(self.displacement, out=moved)
            self.displacement.sub_(moved, alpha=level.keep_volume)
        return moved

    def mend(self, smallest: float) -> None:
        assert self.field is not None
        self.field = DisplacementField(mended(self.displacement, smallest).contiguous(), self.field.grid)


@dataclass
class _Rooms:
    """Memory of one side that every iteration of a level uses again: as the back end allots it in the first one."""

    step: Tensor | None = None
    moved: Tensor | None = None


def optimise(
    fixed: Image,
    moving: Image,
    affine: Affine,
    settings: DeformableSettings,
    *,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    device: torch.device | str = "cpu",
    start: DisplacementField | None = None,
    further: Sequence[ImagePair] = (),
    deadline: float | None = None,
    progress: Progress = silent,
    watch: Watch | None = None,
) -> Deformation:
    """Find the deformation that, followed by `affine`, makes `moving` look like `fixed`.

    fixed, moving: intensities of about 0 to 1, background 0. Masks: 1 where an image may be trusted, on that image's
    own grid. start: what to begin with in place of the identity, fixed world -> fixed world before the affine, on any
    grid; where it folds it is smoothed. device: where to compute, and where the result is. further: other images of the
    two subjects, which pull as well; see `registrar.comparison`. deadline: a `time.monotonic()` after which no further
    iteration starts. watch: is told how far each level came.

    Raises RegistrationError when the loss stops being a number, and for subjects of quite different sizes."""
    towards_fixed, towards_moving = (None, None) if start is None else _halves(start, settings, device)
    subjects = ImagedSubject(fixed, fixed_mask), ImagedSubject(moving, moving_mask)
    sides = (
        _Side(np.eye(fixed.grid.ndim + 1), device, towards_fixed),
        _Side(affine.matrix, device, towards_moving),
    )
    around = affine.inverse()(subjects[1].outline())
    _check_sizes(subjects, around)
    voxels = _mean_volume(subjects, affine) / abs(float(np.linalg.det(fixed.grid.linear)))
    pairs = [
        _ComparedSubjects(subjects, make_similarity(settings)),
        *(_ComparedSubjects(each.subjects(), each.similarity, each.weight) for each in further),
    ]
    trace: list[dict[str, float]] = []
    stopped = "every level was run"
    for level in _useful_levels(settings, *subjects):
        if is_over(deadline):  # a level that does nothing would still take its time, and make a start coarser
            stopped = f"the time budget was spent at {level.edge:g} mm"
            break
        grid = subjects[0].blocks(level.factors, _MARGIN, around).grid
        for side in sides:
            side.enter(grid)
        compared = [pair.on(grid, level.edge, sides) for pair in pairs]
        with fitting_threads(math.prod(grid.shape)):
            losses = _run_level(level, sides, voxels / math.prod(level.factors), compared, settings, deadline, progress)
        del compared
        if watch is not None:
            so_far = _forward(sides[0].on(grid), sides[1].on(grid), settings.smallest_jacobian)
            watch(level.edge, DisplacementField(so_far, grid))
        trace += [{"level_mm": level.edge, "iteration": n, "loss": loss} for n, loss in enumerate(losses)]
        if is_over(deadline):
            stopped = f"the time budget was spent at {level.edge:g} mm"
            break
    if all(side.field is None for side in sides):
        still = DisplacementField.identity(fixed.grid, device)
        return Deformation(still, still, trace, stopped)
    box = subjects[0].blocks([1] * fixed.grid.ndim, _MARGIN, around).grid
    forward, backward = _there_and_back(box, sides, settings.smallest_jacobian)
    warp = DisplacementField(forward, box).on(fixed.grid)
    del forward
    return Deformation(warp, DisplacementField(backward, box).on(fixed.grid), trace, stopped)


def as_deformation(warp: DisplacementField, grid: Grid, settings: DeformableSettings, stopped: str) -> Deformation:
    """A deformation that was found elsewhere, on the fixed grid and with its inverse, as `optimise` leaves its own.

    warp: fixed world -> fixed world, before the affine, on any grid; where it folds it is smoothed."""
    # Where there are folds, they are found and smoothed on few voxels first.
    sound = DisplacementField(_unfolded(warp.displacement, settings.smallest_jacobian), warp.grid)
    forward = _unfolded(sound.on(grid).displacement, settings.smallest_jacobian)
    backward = _balanced(forward, -forward)
    return Deformation(DisplacementField(forward, grid), DisplacementField(backward, grid), [], stopped)


def make_similarity(settings: DeformableSettings) -> Similarity:
    """The dissimilarity that the settings name."""
    return find_similarity(settings.similarity).of(settings)


def mended(displacement: Tensor, smallest: float) -> Tensor:
    """The displacement, smoothed where a one-sided Jacobian determinant is below `smallest`: once, and only there.

    On a GPU nobody looks whether there is such a place: what is smoothed nowhere is the same to the last bit."""
    close = _near_a_fold(displacement, smallest)
    return _smoothed(displacement, close) if _must_wait(close) or close.any() else displacement


def _near_a_fold(displacement: Tensor, smallest: float) -> Tensor:
    return jacobian.smallest_corner_determinant(displacement)[:, None] < smallest


def _smoothed(displacement: Tensor, close: Tensor) -> Tensor:
    # The sum of a few Gaussians around each such voxel, cut at 1: a soft ball that covers all its neighbours.
    weight = (4 * smoothing.gaussian(4 * close.to(displacement.dtype), 1.2)).clamp_max(1)
    smooth = smoothing.gaussian(displacement, 1.0)
    return torch.lerp(displacement, smooth, weight, out=smooth)


def level_edges(settings: DeformableSettings, fixed: ImagedSubject, moving: ImagedSubject) -> list[float]:
    """The length in mm of the voxels of each level."""
    size = max(fixed.size, moving.size)
    return [voxel_edge(size, level.across, float(fixed.grid.spacing.min())) for level in settings.levels]


def _useful_levels(settings: DeformableSettings, fixed: ImagedSubject, moving: ImagedSubject) -> list[_UsefulLevel]:
    """The levels that are finer than the one before and have enough voxels; one at least."""
    levels: list[_UsefulLevel] = []
    for level, edge in zip(settings.levels, level_edges(settings, fixed, moving), strict=True):
        useful = _UsefulLevel(level, edge, fixed.factors(edge))
        if not levels or useful.factors != levels[-1].factors:
            levels.append(useful)
    box = fixed.high - fixed.low
    return [level for level in levels if (-(-box // level.factors)).min() >= _SMALLEST_LEVEL] or levels[-1:]


def _check_sizes(subjects: tuple[ImagedSubject, ImagedSubject], around: np.ndarray) -> None:
    fixed, moving = subjects
    both = fixed.blocks([1] * fixed.grid.ndim, 0, around)
    longer = (np.array(both.shape) * fixed.grid.spacing).max() / ((fixed.high - fixed.low) * fixed.grid.spacing).max()
    if longer > _LONGEST:
        raise RegistrationError(
            f"after the linear stage both subjects together are {longer:.1f} times as long as the fixed one. By the "
            f"headers, {sizes_compared(fixed, moving)}."
        )


def _mean_volume(subjects: tuple[ImagedSubject, ImagedSubject], affine: Affine) -> float:
    """Cubic mm of a subject in the fixed world: the mean of both."""
    return (subjects[0].volume + subjects[1].volume / abs(float(np.linalg.det(affine.matrix[:-1, :-1])))) / 2


@dataclass(frozen=True, eq=False)
class _ComparedSubjects:
    """A pair of images, by the subjects in them. weight: beside the first pair's."""

    subjects: tuple[ImagedSubject, ImagedSubject]
    similarity: Similarity
    weight: float = 1.0

    def on(self, grid: Grid, edge: float, sides: tuple[_Side, _Side]) -> Comparison:
        """Pooled for a level."""
        fixed, moving = (
            LevelImage(subject, side.world, grid, edge, side.device)
            for subject, side in zip(self.subjects, sides, strict=True)
        )
        return Comparison((fixed, moving), self.similarity, self.weight)


def _run_level(
    level: _UsefulLevel,
    sides: tuple[_Side, _Side],
    voxels: float,
    each: Sequence[Comparison],
    settings: DeformableSettings,
    deadline: float | None,
    progress: Progress,
) -> list[float]:
    """Iterate on one level until it no longer pays; the loss before every iteration and after the last.

    voxels: of the level, that the subject has. A level that ends worse than it began leaves the fields as they were."""
    losses: list[float] = []
    unread: list[Tensor] = []
    rooms = _Rooms(), _Rooms()
    before = [side.displacement.clone() for side in sides]
    look_every = _MEND_EVERY if _must_wait(before[0]) else 1
    compared = Comparisons(each, _fields(sides))
    stage, most = f"deformable {level.edge:g} mm", level.settings.iterations
    for n in range(most):
        if is_over(deadline) or _settled(losses, settings):
            break
        unread.append(_iterate(level.settings, sides, voxels, rooms, compared))
        if len(unread) == look_every:
            losses += _read(unread, level)
        if n % _MEND_EVERY == _MEND_EVERY - 1:
            for side in sides:
                side.mend(settings.smallest_jacobian)
        progress(ProgressReport(stage, n + 1, most, losses[-1] if losses else None))
    if losses or unread:
        losses += _read([*unread, compared.loss(_fields(sides))], level)
        if losses[-1] > losses[0]:
            for side, displacement in zip(sides, before, strict=True):
                side.displacement.copy_(displacement)
    progress(ProgressReport(stage, most, most, losses[-1] if losses else None))
    return losses


def _must_wait(values: Tensor) -> bool:
    """Whether to look at values is to wait for them: a GPU has not even begun when it was told what to do."""
    return values.device.type != "cpu"


def _read(unread: list[Tensor], level: _UsefulLevel) -> list[float]:
    """The losses as numbers, in one go; none is unread afterwards."""
    values = torch.stack(unread).tolist()
    unread.clear()
    for value in values:
        if not math.isfinite(value):
            raise RegistrationError(
                f"the dissimilarity became {value} at {level.edge:g} mm: check the intensities of both images"
            )
    return values


def _settled(losses: list[float], settings: DeformableSettings) -> bool:
    """Whether the last `patience` iterations improved the loss by less than `tolerance` of itself."""
    if len(losses) <= settings.patience:
        return False
    before, now = losses[-1 - settings.patience], losses[-1]
    return before - now < settings.tolerance * abs(before)


def _fields(sides: tuple[_Side, _Side]) -> Fields:
    return sides[0].displacement, sides[1].displacement


def _iterate(
    level: Level, sides: tuple[_Side, _Side], voxels: float, rooms: tuple[_Rooms, _Rooms], compared: Comparisons
) -> Tensor:
    """One step of both fields; the loss before it, which nothing here waits for."""
    one, other = rooms
    loss, forces = compared.loss_and_forces(_fields(sides))
    one.step, other.step = steps = [
        smoothing.gaussian(force, level.smooth_update, out=room.step) for room, force in zip(rooms, forces, strict=True)
    ]
    longest = torch.maximum(*[_typical_length(step, voxels) for step in steps])
    scale = torch.where(longest > 0, -level.step / longest, 0)
    for side, room, step in zip(sides, rooms, steps, strict=True):
        room.moved = side.move(step, scale, level, room.moved)
    return loss


def _typical_length(step: Tensor, voxels: float) -> Tensor:
    """The length in voxels that all but a share of the subject's vectors do not exceed; the longest, where that is
    zero. voxels: of the subject. ()"""
    some = step[(slice(None), slice(None)) + (slice(None, None, _STRIDE),) * (step.ndim - 2)]
    lengths = some.square().sum(1).sqrt().flatten()
    longer = round(_LONGER * voxels / _STRIDE ** (step.ndim - 2))
    typical = nth_smallest(lengths, max(1, lengths.numel() - longer))
    return torch.where(typical > 0, typical, lengths.max()).double()


def _halves(
    start: DisplacementField, settings: DeformableSettings, device: torch.device | str
) -> tuple[DisplacementField, DisplacementField]:
    """A start as what leads to the fixed and to the moving image from the points half-way, x + u(x) / 2.

    Both on the start's grid; to_moving o to_fixed^-1 is the start."""
    whole = _unfolded(start.displacement.float().to(device), settings.smallest_jacobian)
    to_fixed = jacobian.invert(whole / 2)
    to_moving = sampling.compose(whole, to_fixed)
    return DisplacementField(to_fixed, start.grid), DisplacementField(to_moving, start.grid)


def _there_and_back(grid: Grid, sides: tuple[_Side, _Side], smallest: float) -> tuple[Tensor, Tensor]:
    """Fixed -> moving and back on a grid, each as one displacement.

    Of a fine grid these are the largest that there are: each makes room for the next as soon as it was read."""
    to_fixed, to_moving = (side.on(grid) for side in sides)
    forward = _forward(to_fixed, to_moving, smallest)
    to_middle = jacobian.invert(to_moving)
    del to_moving
    start = sampling.compose(to_fixed, to_middle)
    del to_fixed, to_middle
    return forward, _balanced(forward, start)


def _forward(to_fixed: Tensor, to_moving: Tensor, smallest: float) -> Tensor:
    """Fixed -> middle -> moving as one displacement, free of folds."""
    return _unfolded(sampling.compose(to_moving, jacobian.invert(to_fixed)), smallest)


def _unfolded(displacement: Tensor, smallest: float) -> Tensor:
    """The displacement, smoothed where it folds or is about to, until it does not."""
    for _ in range(_MEND_AT_MOST):
        close = _near_a_fold(displacement, min(smallest, _SMALLEST_AT_THE_END))
        if not close.any():
            break
        displacement = _smoothed(displacement, close)
    return displacement


def _balanced(forward: Tensor, start: Tensor) -> Tensor:
    """The inverse, as exact after the forward map as before it; it takes the memory of `start`, its first guess.

    Inverting voxel by voxel makes forward(inverse(y)) = y at the voxels of the inverse, and leaves all the error of
    interpolating it to inverse(forward(x)). Half of that error, taken back, makes both about equal."""
    inverse = jacobian.invert(forward, start, out=start)
    error = sampling.compose(inverse, forward)
    taken_back = sampling.compose(error, inverse).sub_(inverse)
    return inverse.sub_(taken_back, alpha=0.5)
