"""Deformable registration by direct optimisation of the classical objective, symmetric and coarse to fine.

Two displacements lead from a middle space to the fixed and to the moving image. Both are moved down the gradient of
the dissimilarity of the two warped images at once, so neither image is preferred and the way from one to the other is
halved: each field stays further from folding than one field that goes the whole way (after SyN, Avants et al. 2008,
but with the full gradient of the windowed correlation and greedy composition).

A step is the gradient smoothed by a Gaussian (what makes it a flow of smooth maps), scaled so that its 98th percentile
has a set length; it is composed into the field, and the field is smoothed a little in turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stepwarp.config import DeformableSettings, Level
from stepwarp.errors import RegistrationError
from stepwarp.geometry import Affine, DisplacementField, Grid, Image
from stepwarp.kernels import jacobian, sampling, smoothing
from stepwarp.losses import regularity
from stepwarp.losses.similarity import Similarity, find_similarity
from stepwarp.progress import Progress, ProgressReport, is_over, silent
from stepwarp.registrar.masks import pooled

#: The step's length is set by this quantile, so that a few strong edges do not slow down all the rest.
_QUANTILE = 0.98
#: Quantiles are taken over every third voxel along each axis.
_STRIDE = 3


#: The least voxels along an axis that a level is worth running on.
_SMALLEST_LEVEL = 8
#: The field is checked for approaching folds once in so many iterations.
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


class _Side:
    """One of the two images with the field that leads to it from the middle space."""

    def __init__(
        self,
        image: Image,
        world: np.ndarray,
        mask: Image | None,
        device: torch.device | str,
        field: DisplacementField | None,
    ) -> None:
        self.image = image
        self.mask = mask
        self.world = world  # (D+1, D+1), from the middle space's world to the image's
        self.device = device
        self.field = field

    def enter(self, grid: Grid, factors: tuple[int, ...]) -> None:
        """Prepare a level: image and mask pooled, and the field brought onto the level's grid."""
        self.matrix = torch.from_numpy(grid.index_map_to(self.image.grid.coarser(factors), self.world))
        self.values, self.trusted = pooled(self.image, self.mask, factors, self.device)
        if self.field is None:
            self.field = DisplacementField(torch.zeros(1, grid.ndim, *grid.shape, device=self.device), grid)
        else:
            self.field = DisplacementField(self.field.on(grid).displacement.contiguous(), grid)

    @property
    def displacement(self) -> Tensor:
        assert self.field is not None
        return self.field.displacement

    def warped(self, room: Tensor | None) -> Tensor:
        return sampling.warp(self.values, self.displacement, self.matrix, out=room)

    def warped_mask(self) -> Tensor | None:
        return None if self.trusted is None else sampling.warp(self.trusted, self.displacement, self.matrix)

    def move(self, step: Tensor, scale: Tensor, level: Level, room: Tensor | None) -> Tensor:
        """The displacement's own memory takes the one that follows it. Returns what is not needed any more."""
        moved = sampling.compose_step(self.displacement, step, scale, level.step, out=room)
        smoothing.gaussian(moved, level.smooth_field, out=self.displacement)
        return moved

    def mend(self, smallest: float) -> None:
        assert self.field is not None
        self.field = DisplacementField(mended(self.displacement, smallest).contiguous(), self.field.grid)


@dataclass
class _Rooms:
    """Memory of one side that every iteration of a level uses again: as the back end allots it in the first one."""

    image: Tensor | None = None
    force: Tensor | None = None
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
    deadline: float | None = None,
    progress: Progress = silent,
    watch: Watch | None = None,
) -> Deformation:
    """Find the deformation that, followed by `affine`, makes `moving` look like `fixed`.

    fixed, moving: intensities of about 0 to 1, background 0. Masks: 1 where an image may be trusted, on that image's
    own grid. start: what to begin with in place of the identity, fixed world -> fixed world before the affine, on any
    grid; where it folds it is smoothed. deadline: a `time.monotonic()` after which no further iteration starts. watch:
    is told how far each level came.

    Raises RegistrationError when the loss stops being a number."""
    towards_fixed, towards_moving = (None, None) if start is None else _halves(start, settings, device)
    sides = (
        _Side(fixed, np.eye(fixed.grid.ndim + 1), fixed_mask, device, towards_fixed),
        _Side(moving, affine.matrix, moving_mask, device, towards_moving),
    )
    similarity = make_similarity(settings)
    trace: list[dict[str, float]] = []
    stopped = "every level was run"
    for level in _useful_levels(settings, fixed.grid):
        if is_over(deadline):  # a level that does nothing would still take its time, and make a start coarser
            stopped = f"the time budget was spent at {level.mm:g} mm"
            break
        grid = fixed.grid.coarser(_factors(fixed.grid, level))
        for side in sides:
            side.enter(grid, _factors(side.image.grid, level))
        losses = _run_level(level, sides, similarity, settings, deadline, progress)
        if watch is not None:
            so_far = _forward(*_fields(grid, sides), settings.smallest_jacobian)
            watch(level.mm, DisplacementField(so_far, grid))
        trace += [{"level_mm": level.mm, "iteration": n, "loss": loss} for n, loss in enumerate(losses)]
        if is_over(deadline):
            stopped = f"the time budget was spent at {level.mm:g} mm"
            break
    if all(side.field is None for side in sides):
        still = DisplacementField.identity(fixed.grid)
        return Deformation(still, still, trace, stopped)
    to_fixed, to_moving = _fields(fixed.grid, sides)
    forward = _forward(to_fixed, to_moving, settings.smallest_jacobian)
    backward = _balanced(forward, sampling.compose(to_fixed, jacobian.invert(to_moving)))
    return Deformation(DisplacementField(forward, fixed.grid), DisplacementField(backward, fixed.grid), trace, stopped)


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
    """The displacement, smoothed where a one-sided Jacobian determinant is below `smallest`: once, and only there."""
    close = jacobian.smallest_corner_determinant(displacement)[:, None] < smallest
    if not close.any():
        return displacement
    # The sum of a few Gaussians around each such voxel, cut at 1: a soft ball that covers all its neighbours.
    weight = (4 * smoothing.gaussian(4 * close.to(displacement.dtype), 1.2)).clamp_max(1)
    return torch.lerp(displacement, smoothing.gaussian(displacement, 1.0), weight)


def _useful_levels(settings: DeformableSettings, grid: Grid) -> list[Level]:
    """The levels with enough voxels; the last one always."""
    sizes = [min(grid.coarser(_factors(grid, level)).shape) for level in settings.levels]
    kept = [lv for lv, size in zip(settings.levels, sizes, strict=True) if size >= _SMALLEST_LEVEL]
    return kept or [settings.levels[-1]]


def _factors(grid: Grid, level: Level) -> tuple[int, ...]:
    """How many voxels of the grid make one of the level, along each axis."""
    return tuple(max(1, round(level.mm / spacing)) for spacing in grid.spacing)


def _run_level(
    level: Level,
    sides: tuple[_Side, _Side],
    similarity: Similarity,
    settings: DeformableSettings,
    deadline: float | None,
    progress: Progress,
) -> list[float]:
    """Iterate on one level until it no longer pays; the loss of every iteration."""
    losses: list[float] = []
    rooms = _Rooms(), _Rooms()
    for n in range(level.iterations):
        if is_over(deadline) or _settled(losses, settings):
            break
        losses.append(float(_iterate(level, sides, rooms, similarity, settings)))
        if not math.isfinite(losses[-1]):
            raise RegistrationError(
                f"the dissimilarity became {losses[-1]} at {level.mm:g} mm: check the intensities of both images"
            )
        if n % _MEND_EVERY == _MEND_EVERY - 1:
            for side in sides:
                side.mend(settings.smallest_jacobian)
        progress(ProgressReport(f"deformable {level.mm:g} mm", n + 1, level.iterations, losses[-1]))
    progress(
        ProgressReport(
            f"deformable {level.mm:g} mm", level.iterations, level.iterations, losses[-1] if losses else None
        )
    )
    return losses


def _settled(losses: list[float], settings: DeformableSettings) -> bool:
    """Whether the last `patience` iterations improved the loss by less than `tolerance` of itself."""
    if len(losses) <= settings.patience:
        return False
    before, now = losses[-1 - settings.patience], losses[-1]
    return before - now < settings.tolerance * abs(before)


def _iterate(
    level: Level,
    sides: tuple[_Side, _Side],
    rooms: tuple[_Rooms, _Rooms],
    similarity: Similarity,
    settings: DeformableSettings,
) -> Tensor:
    """One step of both fields; the loss before it, which nothing here waits for."""
    one, other = rooms
    one.image, other.image = fixed, moved = [side.warped(room.image) for side, room in zip(sides, rooms, strict=True)]
    masks = [mask for side in sides if (mask := side.warped_mask()) is not None]
    weight = masks[0] * masks[-1] if len(masks) == 2 else masks[0] if masks else None
    loss, *forces = similarity.forces(fixed, moved, weight, (one.force, other.force))
    one.force, other.force = forces
    steps = []
    for side, room, force in zip(sides, rooms, forces, strict=True):
        if settings.regularity != "none":
            force = force + settings.regularity_weight * regularity.gradient(settings.regularity, side.displacement)
        steps.append(smoothing.gaussian(force, level.smooth_update, out=room.step))
    one.step, other.step = steps
    longest = torch.maximum(*[_typical_length(step) for step in steps])
    scale = torch.where(longest > 0, -level.step / longest, 0)
    for side, room, step in zip(sides, rooms, steps, strict=True):
        room.moved = side.move(step, scale, level, room.moved)
    return loss


def _typical_length(step: Tensor) -> Tensor:
    """The length in voxels that `_QUANTILE` of the vectors do not exceed; the longest, where most are zero. ()"""
    some = step[(slice(None), slice(None)) + (slice(None, None, _STRIDE),) * (step.ndim - 2)]
    lengths = some.square().sum(1).sqrt().flatten()
    rank = max(1, round(_QUANTILE * lengths.numel()))
    typical = lengths.kthvalue(rank).values
    return torch.where(typical > 0, typical, lengths.max()).double()


def _halves(
    start: DisplacementField, settings: DeformableSettings, device: torch.device | str
) -> tuple[DisplacementField, DisplacementField]:
    """A start as what leads to the fixed and to the moving image from the points half-way, x + u(x) / 2.

    Both on the start's grid; to_moving o to_fixed^-1 is the start."""
    whole = _unfolded(start.displacement.float().cpu(), settings.smallest_jacobian)
    to_fixed = jacobian.invert(whole / 2)
    to_moving = sampling.compose(whole, to_fixed)
    return DisplacementField(to_fixed.to(device), start.grid), DisplacementField(to_moving.to(device), start.grid)


def _fields(grid: Grid, sides: tuple[_Side, _Side]) -> tuple[Tensor, Tensor]:
    """The way to the fixed and the way to the moving image, on a grid."""
    to_fixed, to_moving = (
        torch.zeros(1, grid.ndim, *grid.shape) if side.field is None else side.field.on(grid).displacement.cpu()
        for side in sides
    )
    return to_fixed, to_moving


def _forward(to_fixed: Tensor, to_moving: Tensor, smallest: float) -> Tensor:
    """Fixed -> middle -> moving as one displacement, free of folds."""
    return _unfolded(sampling.compose(to_moving, jacobian.invert(to_fixed)), smallest)


def _unfolded(displacement: Tensor, smallest: float) -> Tensor:
    """The displacement, smoothed where it folds or is about to, until it does not."""
    for _ in range(_MEND_AT_MOST):
        following = mended(displacement, min(smallest, _SMALLEST_AT_THE_END))
        if following is displacement:
            break
        displacement = following
    return displacement


def _balanced(forward: Tensor, start: Tensor) -> Tensor:
    """The inverse, as exact after the forward map as before it.

    Inverting voxel by voxel makes forward(inverse(y)) = y at the voxels of the inverse, and leaves all the error of
    interpolating it to inverse(forward(x)). Half of that error, taken back, makes both about equal."""
    inverse = jacobian.invert(forward, start)
    error = sampling.compose(inverse, forward)
    return inverse - 0.5 * (sampling.compose(error, inverse) - inverse)
