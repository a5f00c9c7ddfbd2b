"""The linear stage: rigid, similarity or affine, found from many starts.

Hundreds of rotations about the centres of mass are scored on a very coarse grid, the best few are optimised, and the
best of these is refined on finer grids. Nothing is taken from the headers but the voxels' sizes and, as starts among
others, the orientations and positions they claim; so images whose headers put them far apart register as well.

The refinement compares the moving image with the fixed one on the fixed one's grid, and the fixed image with the moving
one on the moving one's, so that it makes no difference which is which. Further pairs of images of the same subjects are
compared on grids of their own, about the same centres; the loss is the mean of all by their weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from stepwarp.config import AffineSettings, LinearKind
from stepwarp.errors import RegistrationError
from stepwarp.geometry import Affine, Grid, Image
from stepwarp.kernels import sampling
from stepwarp.kernels.cpu.threading_layer import fitting_threads
from stepwarp.losses.similarities.mi import MutualInformation
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.losses.similarity import Similarity
from stepwarp.progress import Progress, ProgressReport, is_over, silent
from stepwarp.registrar.pairs import ImagePair
from stepwarp.registrar.subject import Blocks, ImagedSubject, sizes_compared, voxel_edge

#: Rotations are scored at half the coarse resolution, this many of them, about 25 degrees from one to the next.
_ROTATIONS = 300
#: A start whose rotation is within this angle of a better one leads to the same place.
_SAME_START_DEGREES = 15
#: Of the subject's size, the length to which the matrix's entries are as sensitive as the translation: its radius.
_RADIUS = 0.4
#: Voxels around the fixed subject that are compared as well.
_MARGIN = 3
#: L-BFGS iterations for each start, and for each refinement.
_SEARCH_ITERATIONS, _REFINE_ITERATIONS = 25, 60
#: What ends a fit: an iteration that lowers the loss by less than this share of it. After a rough one, finer grids
#: follow; a fine one is within some hundredths of a millimetre of what further iterations find.
_ROUGH, _FINE = 1e-6, 1e-7
#: Of what the smaller of the two images (or masks) could match, the share that must be matched for a start to count.
_LEAST_OVERLAP = 0.3


@dataclass(frozen=True)
class LinearStart:
    """One candidate: where it came from, its turn against the voxel axes, its loss as scored and as optimised."""

    name: str
    degrees: float
    scored: float
    optimised: float | None = None


@dataclass(frozen=True)
class LinearFit:
    """The transform found, its loss, and the starts that were optimised, best first. stopped: where the deadline ended
    the search; None where it went to its end."""

    transform: Affine
    loss: float
    starts: tuple[LinearStart, ...]
    stopped: str | None = None


class _LinearPair:
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

    def swapped(self) -> _LinearPair:
        """The same pair the other way round."""
        other = copy.copy(self)
        other.fixed, other.moving = self.moving, self.fixed
        other.fixed_centre, other.moving_centre = self.moving_centre, self.fixed_centre
        return other

    def in_other_images(self, other: ImagePair) -> _LinearPair:
        """The same two subjects about the same centres."""
        seen = copy.copy(self)
        seen.fixed, seen.moving = other.subjects()
        return seen


class _Level:
    """Both images at one resolution, with what is needed to score a matrix and a translation on the fixed one's grid.

    across: how many of its voxels the subject is across. share: what the loss counts for."""

    def __init__(self, pair: _LinearPair, across: float, similarity: Similarity, share: float = 1) -> None:
        self.similarity, self.share, self.radius = similarity, share, pair.radius
        self.edge = voxel_edge(pair.size, across, pair.finest)
        fixed, moving = pair.fixed, pair.moving
        box = fixed.blocks(fixed.factors(self.edge), _MARGIN)
        everything = moving.all_blocks(moving.factors(self.edge))
        self.fixed, self.fixed_weight = fixed.pooled(box, pair.device)
        self.moving, self.moving_weight = moving.pooled(everything, pair.device)
        self.before, self.after = _moved_to(box, pair.fixed_centre), _moved_to(everything, pair.moving_centre)
        there = moving.blocks(moving.factors(self.edge), _MARGIN)
        volumes = (fixed.known_volume(box), moving.known_volume(there))
        self.most = min(volumes) / abs(np.linalg.det(box.grid.linear))
        self.voxels = math.prod(box.shape)

    def loss(self, matrix: Tensor, translation: Tensor) -> float:
        """Dissimilarity under A = matrix (D, D) and t = translation (D,) in units of the radius, on the CPU.

        Where these want a gradient, it is added to theirs. The weights count as constant in it."""
        world = torch.cat([torch.cat([matrix, self.radius * translation[:, None]], 1), self.before[-1:]])
        to_index = torch.linalg.solve(self.after, world @ self.before)
        shape = tuple(self.fixed.shape[2:])
        moved = sampling.warp_linear(self.moving, to_index, shape)
        with torch.no_grad():
            weight, overlap = self._weight(to_index, shape)
        if overlap < _LEAST_OVERLAP or float(torch.linalg.det(matrix.detach())) <= 0:
            # Worse than any match, and flat: a line search that comes here, or to a mirror image, turns back.
            value, to_moved = 2.0, torch.zeros_like(moved)
        else:
            found, _, to_moved = self.similarity.value_and_gradients(self.fixed, moved.detach(), weight)
            value = float(found)
        if moved.requires_grad:
            # From a number, because to check the shape of a gradient that it is given, torch loads sympy. The way back
            # shares the matrix.
            torch.dot(moved.flatten(), self.share * to_moved.flatten()).backward(retain_graph=True)
        return self.share * value

    def _weight(self, to_index: Tensor, shape: tuple[int, ...]) -> tuple[Tensor | None, float]:
        """Which voxels count under a map of indices, and their share of those that at best could."""
        weight = self.fixed_weight
        if self.moving_weight is not None:
            still = torch.zeros(1, len(shape), *shape, device=self.moving.device)
            moved = sampling.warp(self.moving_weight, still, to_index, outside="border")
            weight = moved if weight is None else weight * moved
        return weight, 1.0 if weight is None else float(weight.sum()) / self.most


class _BothWays:
    """A level as the mean of the two losses that it has from the one image to the other and back."""

    def __init__(self, pair: _LinearPair, across: float, similarity: Similarity, share: float = 1) -> None:
        self.there = _Level(pair, across, similarity, share / 2)
        self.back = _Level(pair.swapped(), across, similarity, share / 2)
        self.edge, self.voxels = self.there.edge, self.there.voxels

    def loss(self, matrix: Tensor, translation: Tensor) -> float:
        inverse = torch.linalg.inv(matrix)
        return self.there.loss(matrix, translation) + self.back.loss(inverse, -inverse @ translation)


class _Together:
    """The levels of several pairs of images as one; the shares say what each counts for."""

    def __init__(self, levels: Sequence[_Level | _BothWays]) -> None:
        self.levels = levels
        self.edge, self.voxels = levels[0].edge, max(level.voxels for level in levels)

    def loss(self, matrix: Tensor, translation: Tensor) -> float:
        return sum(level.loss(matrix, translation) for level in self.levels)


_AnyLevel = _Level | _BothWays | _Together


@dataclass(frozen=True, eq=False)
class _Compared:
    """The subjects in one pair of images, what compares these from afar and exactly, and what that counts for."""

    pair: _LinearPair
    search: Similarity
    refine: Similarity
    share: float


def _level(kind: type[_Level | _BothWays], all_of: Sequence[_Compared], across: float, exactly: bool) -> _AnyLevel:
    """A level of all pairs of images: of one, or the mean of several."""
    levels = [kind(each.pair, across, each.refine if exactly else each.search, each.share) for each in all_of]
    return levels[0] if len(levels) == 1 else _Together(levels)


def _all_compared(
    pair: _LinearPair, search: Similarity, refine: Similarity, further: Sequence[ImagePair]
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


def _moved_to(blocks: Blocks, centre: np.ndarray) -> Tensor:
    """(D+1, D+1): an index of the blocks -> world mm from `centre`."""
    matrix = blocks.grid.affine.copy()
    matrix[:-1, -1] -= centre
    return torch.from_numpy(matrix)


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
    pair = _LinearPair(ImagedSubject(fixed, fixed_mask), ImagedSubject(moving, moving_mask), device)
    compared = _all_compared(pair, search, refine, further)
    far = _level(_Level, compared, settings.across / 2, exactly=False)
    if initial is None:
        starts = _scored_starts(pair, far, settings.candidates, deadline)
    else:
        starts = [_given_start(pair, far, initial)]
    total = len(starts) + 1 + len(settings.refine_across)
    coarse = _level(_Level, compared, settings.across, exactly=False)
    fits = []
    for start, matrix, translation in starts:
        model = _Model("rigid" if kind == "rigid" else "similarity", matrix, translation)
        loss, ended = _minimise(coarse, model, _SEARCH_ITERATIONS, _ROUGH, deadline)
        fits.append((loss, start, model))
        progress(ProgressReport("affine", len(fits), total, loss))
        if not ended:
            break
    stopped = None if ended else f"at start {len(fits)} of {len(starts)}"
    fits.sort(key=lambda fit: fit[0])
    loss, _, model = fits[0]
    for n, across in enumerate((settings.across, *settings.refine_across), len(starts) + 1):
        if stopped:
            progress(ProgressReport("affine", total, total, loss))
            break
        model = model.as_kind(kind)
        level = _level(_BothWays, compared, across, exactly=n > len(starts) + 1)
        loss, ended = _minimise(level, model, _REFINE_ITERATIONS, _FINE if n == total else _ROUGH, deadline)
        stopped = None if ended else f"while it was refined at {level.edge:g} mm"
        progress(ProgressReport("affine", n, total, loss))
    tried = tuple(LinearStart(start.name, start.degrees, start.scored, round(value, 5)) for value, start, _ in fits)
    return LinearFit(_to_world(model, pair), loss, tried, stopped)


class _Model:
    """A linear map by its free parameters, around a start: A = turn exp(w) scale (I + strain), and t."""

    def __init__(self, kind: LinearKind, turn: Tensor, translation: Tensor) -> None:
        d = len(turn)
        self.kind = kind
        self.turn = turn.detach()
        self.rotation = torch.zeros(d, d, dtype=torch.float64, requires_grad=True)
        self.log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
        self.strain = torch.zeros(d, d, dtype=torch.float64, requires_grad=True)
        self.translation = translation.detach().clone().requires_grad_()

    def parameters(self) -> list[Tensor]:
        free = {"rigid": [self.rotation], "similarity": [self.rotation, self.log_scale], "affine": [self.strain]}
        return [self.translation, *free[self.kind]]

    def matrix(self) -> Tensor:
        if self.kind == "affine":
            return self.turn @ (torch.eye(len(self.turn), dtype=torch.float64) + self.strain)
        return self.turn @ torch.linalg.matrix_exp(self.rotation - self.rotation.T) * self.log_scale.exp()

    def as_kind(self, kind: LinearKind) -> _Model:
        """The same map, free to move as another kind does."""
        return _Model(kind, self.matrix(), self.translation)


class _TimeUpError(Exception):
    """No further evaluation starts."""


def _minimise(
    level: _AnyLevel, model: _Model, iterations: int, tolerance: float, deadline: float | None
) -> tuple[float, bool]:
    """L-BFGS on the model's free parameters, in place; the loss at the end, and whether it came to an end.

    After the deadline, of which the first evaluation takes no notice, the best so far is kept."""
    free = model.parameters()
    best = (math.inf, np.empty(0))

    def place(flat: np.ndarray) -> None:
        parts = np.split(flat, np.cumsum([p.numel() for p in free])[:-1])
        for parameter, part in zip(free, parts, strict=True):
            parameter.data = torch.from_numpy(part.copy()).reshape(parameter.shape)
            parameter.grad = None

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        if best[1].size and is_over(deadline):
            raise _TimeUpError
        place(flat)
        loss = level.loss(model.matrix(), model.translation)
        if loss < best[0] or not best[1].size:
            best = (loss, flat.copy())
        return loss, torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in free]).numpy()

    start = torch.cat([p.detach().flatten() for p in free]).numpy()
    options = {"maxiter": iterations, "gtol": 1e-6, "ftol": tolerance}
    try:
        with fitting_threads(level.voxels):
            found = scipy.optimize.minimize(loss_and_gradient, start, method="L-BFGS-B", jac=True, options=options)
    except _TimeUpError:
        place(best[1])
        return best[0], False
    place(found.x)
    return float(found.fun), True


def _scored_starts(
    pair: _LinearPair, level: _AnyLevel, most: int, deadline: float | None
) -> list[tuple[LinearStart, Tensor, Tensor]]:
    """At most so many starts with their loss before any optimisation, best first, no two of them alike. After the
    deadline no further one is scored."""
    d = pair.fixed.grid.ndim
    scored = []
    with torch.no_grad(), fitting_threads(level.voxels):
        for name, turn, shift in _starts(pair):
            matrix, translation = torch.tensor(turn), torch.tensor(shift / pair.radius)
            loss = level.loss(matrix, translation)
            scored.append((LinearStart(name, round(_angle(turn), 1), round(loss, 5)), matrix, translation))
            if is_over(deadline):
                break
    scored.sort(key=lambda entry: entry[0].scored)
    kept: list[tuple[LinearStart, Tensor, Tensor]] = []
    for entry in scored:
        if len(kept) < most and all(_angle((entry[1].T @ other).numpy()) > _SAME_START_DEGREES for _, other, _ in kept):
            kept.append(entry)
    # Heads mostly lie as their headers say: that start is tried whatever its score is.
    lying = [entry for entry in scored if entry[0].name == "voxel axes"]
    return (lying[:1] + [entry for entry in kept if entry is not lying[0]])[:most] if d > 1 else kept


def _given_start(pair: _LinearPair, level: _AnyLevel, initial: Affine) -> tuple[LinearStart, Tensor, Tensor]:
    """A start that is not searched for, with its loss, as `_scored_starts` has them."""
    linear = initial.matrix[:-1, :-1]
    shift = initial(pair.fixed_centre[None])[0] - pair.moving_centre
    left, _, right = np.linalg.svd(linear)
    matrix, translation = torch.tensor(linear), torch.tensor(shift / pair.radius)
    scored = LinearStart("initial", round(_angle(left @ right), 1), round(level.loss(matrix, translation), 5))
    return scored, matrix, translation


def _starts(pair: _LinearPair) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, A, t in mm): A turns fixed world vectors into moving world vectors, t is added at the centre of mass."""
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
    return starts + [("rotation", axes @ turn, still) for turn in _rotations(d)]


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


def _to_world(model: _Model, pair: _LinearPair) -> Affine:
    """From the model's centred coordinates to a world matrix."""
    linear = model.matrix().detach().numpy()
    shift = pair.radius * model.translation.detach().numpy()
    offset = pair.moving_centre + shift - linear @ pair.fixed_centre
    if not np.isfinite(linear).all() or abs(np.linalg.det(linear)) < 1e-3:
        raise RegistrationError(
            "the linear stage ended in a singular transform: the images may have nothing in common. By the headers, "
            f"{sizes_compared(pair.fixed, pair.moving)}."
        )
    return Affine(np.column_stack([linear, offset]))
