"""The linear stage: rigid, similarity or affine, found from many starts.

Hundreds of rotations about the centres of mass are scored on a very coarse grid, the best few are optimised, and the
best of these is refined on finer grids. Nothing is taken from the headers but the voxels' sizes and, as starts among
others, the orientations and positions they claim; so images whose headers put them far apart register as well. Starts
are scored many at a time and optimised side by side, which suits a processor, and is what a GPU needs.

The refinement compares the moving image with the fixed one on the fixed one's grid, and the fixed image with the moving
one on the moving one's, so that it makes no difference which is which. Further pairs of images of the same subjects are
compared on grids of their own, about the same centres; the loss is the mean of all by their weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stepwarp.config import AffineSettings, LinearKind
from stepwarp.errors import RegistrationError
from stepwarp.geometry import Affine, Grid, Image
from stepwarp.kernels.cpu.threading_layer import fitting_threads
from stepwarp.losses.similarities.mi import MutualInformation
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.losses.similarity import Similarity
from stepwarp.progress import Progress, ProgressReport, is_over, silent
from stepwarp.registrar.linear_levels import BothWays, LinearLevel, LinearPair, Together
from stepwarp.registrar.linear_maps import LinearMaps
from stepwarp.registrar.pairs import ImagePair
from stepwarp.registrar.quasi_newton import minimised
from stepwarp.registrar.subject import ImagedSubject, sizes_compared

#: Rotations are scored at half the coarse resolution, this many of them, about 25 degrees from one to the next.
_ROTATIONS = 300
#: A start whose rotation is within this angle of a better one leads to the same place.
_SAME_START_DEGREES = 15
#: How many maps are tried from each start, and in each refinement; and what ends a fit: a step that lowers the loss by
#: less than this. After a rough one, finer grids follow; a fine one is within some hundredths of a millimetre of what
#: further steps find.
_SEARCH, _ROUGH, _FINE = (30, 1e-6), (70, 1e-6), (70, 1e-7)
#: Voxels that are compared at a time, of as many maps as that makes.
_AT_ONCE = 2**18


@dataclass(frozen=True)
class LinearStart:
    """One candidate: where it came from, its turn against the voxel axes, its loss as scored and as optimised."""

    name: str
    degrees: float
    scored: float = math.nan
    optimised: float | None = None


@dataclass(frozen=True)
class LinearFit:
    """The transform found, its loss, and the starts that were optimised, best first. stopped: where the deadline ended
    the search; None where it went to its end."""

    transform: Affine
    loss: float
    starts: tuple[LinearStart, ...]
    stopped: str | None = None


@dataclass(frozen=True, eq=False)
class _Fit:
    """A map, as `LinearPair` has it, (D, D) and (D,), the start that it came from, and its loss."""

    matrix: np.ndarray
    translation: np.ndarray
    start: LinearStart
    loss: float = math.nan


#: A level of all pairs of images, compared on the fixed ones' grids alone, or on the moving ones' as well.
_OneWay = LinearLevel | Together[LinearLevel]
_TwoWays = BothWays | Together[BothWays]


@dataclass(frozen=True, eq=False)
class _Compared:
    """The subjects in one pair of images, what compares these from afar and exactly, and what that counts for."""

    pair: LinearPair
    search: Similarity
    refine: Similarity
    share: float


def register_linear(
    fixed: Image,
    moving: Image,
    kind: LinearKind,
    search: Similarity,
    refine: Similarity,
    settings: AffineSettings,
    *,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    device: torch.device | str = "cpu",
    initial: Affine | None = None,
    further: Sequence[ImagePair] = (),
    deadline: float | None = None,
    progress: Progress = silent,
) -> LinearFit:
    """The linear transform from the fixed to the moving world that makes `moving` most like `fixed`.

    fixed, moving: intensities of about 0 to 1, background near 0, axes in the order and direction of RAS. kind: rigid
    (6 parameters in 3D), similarity (7) or affine (12); none of them mirrors. search: a dissimilarity of whole
    images, such as NCC, which sees from afar. refine: one to end with on the finer grids, such as LNCC, which sees
    exactly. initial: the only start, fixed world -> moving world; what of it the kind may not change stays. further:
    other images of the two subjects. deadline: a `time.monotonic()` after which the best found so far is taken.

    Raises RegistrationError where no start leads to a usable transform."""
    pair = LinearPair(ImagedSubject(fixed, fixed_mask), ImagedSubject(moving, moving_mask), device)
    compared = _all_compared(pair, search, refine, further)
    far = _one_way(compared, settings.across / 2)
    if initial is None:
        starts = _scored_starts(pair, far, settings.candidates, deadline)
    else:
        starts = [_given_start(pair, far, initial)]
    stage = _Stage(pair, len(starts) + 1 + len(settings.refine_across), deadline, progress)
    coarse = _one_way(compared, settings.across)
    fits: list[_Fit] = []
    for some in _parts(starts, coarse):
        found, ended = stage.optimised(some, "rigid" if kind == "rigid" else "similarity", coarse, _SEARCH)
        fits += found
        if not ended:
            break
    stopped = None if ended else f"while {len(fits)} of {len(starts)} starts were optimised"
    fits.sort(key=lambda fit: fit.loss)
    best = fits[0]
    for n, across in enumerate((settings.across, *settings.refine_across)):
        if stopped:
            break
        level = _both_ways(compared, across, exactly=n > 0)
        effort = _FINE if n == len(settings.refine_across) else _ROUGH
        (best,), ended = stage.optimised([best], kind, level, effort)
        stopped = None if ended else f"while it was refined at {level.edge:g} mm"
    stage.over(best.loss)
    tried = tuple(replace(fit.start, optimised=round(fit.loss, 5)) for fit in fits)
    return LinearFit(_to_world(best, pair), best.loss, tried, stopped)


def _all_compared(
    pair: LinearPair, search: Similarity, refine: Similarity, further: Sequence[ImagePair]
) -> list[_Compared]:
    """The first pair of images and the further ones, each with its share of the loss."""
    whole = 1 + sum(each.weight for each in further)
    others = [
        _Compared(pair.in_other_images(each), from_afar(each.similarity), each.similarity, each.weight / whole)
        for each in further
    ]
    return [_Compared(pair, search, refine, 1 / whole), *others]


def from_afar(similarity: Similarity) -> Similarity:
    """What sees from afar, as a dissimilarity of whole images, what a similarity sees exactly."""
    return MutualInformation() if similarity.multimodal else NCC()


def _one_way(compared: Sequence[_Compared], across: float) -> _OneWay:
    levels = [LinearLevel(each.pair, across, each.search) for each in compared]
    return levels[0] if len(levels) == 1 else Together(levels, [each.share for each in compared])


def _both_ways(compared: Sequence[_Compared], across: float, *, exactly: bool) -> _TwoWays:
    levels = [BothWays(each.pair, across, each.refine if exactly else each.search) for each in compared]
    return levels[0] if len(levels) == 1 else Together(levels, [each.share for each in compared])


class _Stage:
    """Fits of a pair until a deadline; `progress` is told of each that ends, of so many in total."""

    def __init__(self, pair: LinearPair, total: int, deadline: float | None, progress: Progress) -> None:
        self.pair, self.total, self.deadline, self.progress = pair, total, deadline, progress
        self.done = 0

    def optimised(
        self, starts: Sequence[_Fit], kind: LinearKind, level: _OneWay | _TwoWays, effort: tuple[int, float]
    ) -> tuple[list[_Fit], bool]:
        """Where each of them leads, and whether all came to an end. The first steps are of one voxel."""
        maps = LinearMaps(kind, *_together(starts, self.pair))

        def function(parameters: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
            matrices, translations, back = maps.at(parameters, which)
            losses, *gradients = level.losses_with_gradients(matrices, translations)
            return losses, back(*gradients)

        voxel = level.edge / self.pair.radius
        with fitting_threads(level.voxels * len(starts)):
            found, losses, ended = minimised(function, maps.start, voxel, *effort, self.deadline, self._ended)
        matrices, translations, _ = maps.at(found, torch.arange(len(found), device=found.device))
        each = zip(matrices.cpu().numpy(), translations.cpu().numpy(), losses.tolist(), starts, strict=True)
        return [_Fit(matrix, shift, start.start, loss) for matrix, shift, loss, start in each], ended

    def over(self, loss: float) -> None:
        """What was not begun for want of time is done as well."""
        if self.done < self.total:
            self.progress(ProgressReport("affine", self.total, self.total, loss))

    def _ended(self, losses: list[float]) -> None:
        for loss in losses:
            self.done += 1
            self.progress(ProgressReport("affine", self.done, self.total, loss))


def _scored_starts(pair: LinearPair, level: _OneWay, most: int, deadline: float | None) -> list[_Fit]:
    """At most so many starts with their loss before any optimisation, best first, no two of them alike. After the
    deadline no further ones are scored."""
    d = pair.fixed.grid.ndim
    scored: list[_Fit] = []
    for some in _parts(_starts(pair), level):
        scored += _scored(some, pair, level)
        if is_over(deadline):
            break
    scored.sort(key=lambda fit: fit.start.scored)
    kept: list[_Fit] = []
    for fit in scored:
        if len(kept) < most and all(_angle(fit.matrix.T @ other.matrix) > _SAME_START_DEGREES for other in kept):
            kept.append(fit)
    # Heads mostly lie as their headers say: that start is tried whatever its score is.
    lying = [fit for fit in scored if fit.start.name == "voxel axes"]
    return (lying[:1] + [fit for fit in kept if fit is not lying[0]])[:most] if d > 1 else kept


def _given_start(pair: LinearPair, level: _OneWay, initial: Affine) -> _Fit:
    """A start that is not searched for, with its loss."""
    linear = initial.matrix[:-1, :-1]
    left, _, right = np.linalg.svd(linear)
    shift = initial(pair.fixed_centre[None])[0] - pair.moving_centre
    return _scored(
        [_Fit(linear, shift / pair.radius, LinearStart("initial", round(_angle(left @ right), 1)))], pair, level
    )[0]


def _scored(starts: Sequence[_Fit], pair: LinearPair, level: _OneWay) -> list[_Fit]:
    """The same with their losses, all at a time."""
    with torch.no_grad(), fitting_threads(level.voxels * len(starts)):
        losses = level.losses(*_together(starts, pair)).tolist()
    return [
        replace(fit, loss=loss, start=replace(fit.start, scored=round(loss, 5)))
        for fit, loss in zip(starts, losses, strict=True)
    ]


def _together(fits: Sequence[_Fit], pair: LinearPair) -> tuple[Tensor, Tensor]:
    """Their matrices (N, D, D) and translations (N, D), where the pair is."""
    both = (np.stack([fit.matrix for fit in fits]), np.stack([fit.translation for fit in fits]))
    matrices, translations = (torch.from_numpy(each).to(pair.device) for each in both)
    return matrices, translations


def _parts(starts: Sequence[_Fit], level: _OneWay) -> Iterator[Sequence[_Fit]]:
    """As many at a time as are compared at once."""
    size = max(1, _AT_ONCE // level.voxels)
    return (starts[first : first + size] for first in range(0, len(starts), size))


def _starts(pair: LinearPair) -> list[_Fit]:
    """Without losses. A turns fixed world vectors into moving world vectors, t is added at the centre of mass."""
    d = pair.fixed.grid.ndim
    still = np.zeros(d)
    # Along the voxel axes, whatever directions the headers give them.
    axes = _directions(pair.moving.grid) @ _directions(pair.fixed.grid).T
    starts = [
        ("voxel axes", axes, still),
        ("header orientation", np.eye(d), still),
        ("header", np.eye(d), pair.fixed_centre - pair.moving_centre),
        (
            "grid centres",
            axes,
            pair.moving.grid.centre - pair.moving_centre - axes @ (pair.fixed.grid.centre - pair.fixed_centre),
        ),
    ]
    starts += [("rotation", axes @ turn, still) for turn in _rotations(d)]
    return [_Fit(turn, shift / pair.radius, LinearStart(name, round(_angle(turn), 1))) for name, turn, shift in starts]


def _directions(grid: Grid) -> np.ndarray:
    """The voxel axes as orthonormal world vectors (D, D), the nearest to the affine's columns."""
    u, _, v = np.linalg.svd(grid.linear / grid.spacing)
    return u @ v


def _rotations(d: int) -> list[np.ndarray]:
    """Rotations spread evenly over all there are: angles in 2D, in 3D the spiral of Alexa (CVPR 2022)."""
    if d == 1:
        return []
    if d == 2:
        angles = np.linspace(0, 2 * math.pi, 36, endpoint=False)[1:]
        return [np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for a in angles]
    s = np.arange(_ROTATIONS) + 0.5
    inner, outer = np.sqrt(s / _ROTATIONS), np.sqrt(1 - s / _ROTATIONS)
    alpha, beta = 2 * math.pi * s / math.sqrt(2), 2 * math.pi * s / 1.533751168755204288118041
    quaternions = np.stack(
        [inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta), outer * np.cos(beta)], 1
    )
    return [_from_quaternion(q) for q in quaternions]


def _from_quaternion(q: np.ndarray) -> np.ndarray:
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _angle(turn: np.ndarray) -> float:
    """Degrees by which a rotation turns."""
    d = len(turn)
    cosine = (np.trace(turn) - 1) / 2 if d == 3 else np.trace(turn) / d
    return math.degrees(math.acos(float(np.clip(cosine, -1, 1))))


def _to_world(fit: _Fit, pair: LinearPair) -> Affine:
    """From centred coordinates to a world matrix."""
    linear = fit.matrix
    offset = pair.moving_centre + pair.radius * fit.translation - linear @ pair.fixed_centre
    if not np.isfinite(linear).all() or abs(np.linalg.det(linear)) < 1e-3:
        raise RegistrationError(
            "the linear stage ended in a singular transform: the images may have nothing in common. By the headers, "
            f"{sizes_compared(pair.fixed, pair.moving)}."
        )
    return Affine(np.column_stack([linear, offset]))
