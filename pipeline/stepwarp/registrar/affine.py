"""The linear stage: rigid, similarity or affine, found from many starts.

Hundreds of rotations about the centres of mass are scored on a very coarse grid, the best few are optimised, and the
best of these is refined on finer grids. Nothing is taken from the headers but the voxels' sizes and, as starts among
others, the orientations and positions they claim; so images whose headers put them far apart register as well."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stepwarp.config import AffineSettings, LinearKind
from stepwarp.errors import RegistrationError
from stepwarp.geometry import Affine, Image, sampling
from stepwarp.losses.similarity import Similarity
from stepwarp.registrar.progress import Progress, Step, silent

#: Rotations are scored at half the coarse resolution, this many of them, about 25 degrees from one to the next.
_ROTATIONS = 300
#: A start whose rotation is within this angle of a better one leads to the same place.
_SAME_START_DEGREES = 15
#: Millimetres to which the matrix's entries are as sensitive as the translation: about the radius of a head.
_RADIUS_MM = 60.0
#: An image with so much of one face of its box above the background goes on beyond it: outside is unknown there, not 0.
_CUT_FACE = 0.25
#: The share of the fixed image that must keep a partner for a start to count.
_LEAST_OVERLAP = 0.3


@dataclass(frozen=True)
class Start:
    """One candidate: where it came from, its turn against the voxel axes, its loss as scored and as optimised."""

    name: str
    degrees: float
    scored: float
    optimised: float | None = None


@dataclass(frozen=True)
class LinearFit:
    """The transform found, its loss, and the starts that were optimised, best first."""

    transform: Affine
    loss: float
    starts: tuple[Start, ...]


class _Level:
    """Both images at one resolution, with what is needed to score a matrix and a translation.

    A candidate maps a fixed world point x to moving centre + t + A (x - fixed centre)."""

    def __init__(self, pair: _Pair, mm: float) -> None:
        fixed, moving = (_coarsened(image, mm, pair.device) for image in (pair.fixed, pair.moving))
        d = fixed.grid.ndim
        self.similarity = pair.similarity
        self.unknown_outside = pair.unknown_outside
        index = fixed.grid.indices(pair.device)[0].flatten(1)
        offset = torch.tensor(fixed.grid.affine[:-1, -1] - pair.fixed_centre, device=pair.device).float()[:, None]
        self.points = (torch.tensor(fixed.grid.linear, device=pair.device).float() @ index + offset) / _RADIUS_MM
        to_index = moving.grid.inverse_affine
        self.to_index = torch.tensor(to_index[:-1, :-1], device=pair.device).float()
        self.centre_index = torch.tensor(to_index[:-1] @ np.append(pair.moving_centre, 1), device=pair.device).float()
        self.fixed = fixed.data.reshape(1, 1, *[1] * (d - 1), -1)
        self.moving = moving.data[None, None]
        self.sizes = torch.tensor(moving.grid.shape, device=pair.device).float()[:, None]
        self.fixed_weight = None if pair.fixed_mask is None else self._at_fixed(pair.fixed_mask, mm)
        self.moving_weight = None
        if pair.moving_mask is not None:
            self.moving_weight = _coarsened(pair.moving_mask, mm, pair.device).data[None, None]

    def _at_fixed(self, mask: Image, mm: float) -> Tensor:
        return _coarsened(mask, mm, self.fixed.device).data.reshape(self.fixed.shape)

    def loss(self, matrix: Tensor, translation: Tensor) -> Tensor:
        """Dissimilarity under A = matrix (D, D) and t = translation (D,) in units of the radius."""
        world = _RADIUS_MM * (matrix @ self.points + translation[:, None])
        coords = self.to_index @ world + self.centre_index[:, None]
        shape = self.fixed.shape[2:]
        coords = coords.reshape(1, len(coords), *shape)
        moved = sampling.sample(self.moving, coords)
        weight = self.fixed_weight
        if self.unknown_outside:
            inside = ((coords >= 0) & (coords <= self.sizes.reshape(1, -1, *[1] * len(shape)) - 1)).all(1, keepdim=True)
            if inside.float().mean() < _LEAST_OVERLAP:
                return moved.sum() * 0 + 2
            weight = inside.float() if weight is None else weight * inside
        if self.moving_weight is not None:
            trusted = sampling.sample(self.moving_weight, coords)
            weight = trusted if weight is None else weight * trusted
        return self.similarity(self.fixed, moved, weight)


class _Pair:
    """What every level shares: the images, their centres of mass, and where they may be trusted."""

    def __init__(
        self,
        fixed: Image,
        moving: Image,
        fixed_mask: Image | None,
        moving_mask: Image | None,
        similarity: Similarity,
        device: torch.device | str,
    ) -> None:
        self.fixed, self.moving = fixed, moving
        self.fixed_mask, self.moving_mask = fixed_mask, moving_mask
        self.similarity = similarity
        self.device = device
        self.fixed_centre, self.moving_centre = _centre_of_mass(fixed), _centre_of_mass(moving)
        self.unknown_outside = _is_cut(fixed) or _is_cut(moving)


def register_linear(
    fixed: Image,
    moving: Image,
    kind: LinearKind,
    similarity: Similarity,
    settings: AffineSettings,
    *,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> LinearFit:
    """The linear transform from the fixed to the moving world that makes `moving` most like `fixed`.

    fixed, moving: intensities of about 0 to 1, background near 0, axes in the order and direction of RAS. kind: rigid
    (6 parameters in 3D), similarity (7) or affine (12). similarity: a dissimilarity of whole images, such as NCC.

    Raises RegistrationError where no start leads to a usable transform."""
    pair = _Pair(fixed, moving, fixed_mask, moving_mask, similarity, device)
    scored = _scored_starts(pair, 2 * settings.coarse_mm)[: settings.candidates]
    coarse = _Level(pair, settings.coarse_mm)
    total = len(scored) + 3
    fits = []
    for n, (start, matrix, translation) in enumerate(scored):
        model = _Model("rigid" if kind == "rigid" else "similarity", matrix, translation)
        loss = _minimise(coarse, model, 25)
        fits.append((loss, start, model))
        progress(Step("affine", n + 1, total, loss))
    fits.sort(key=lambda fit: fit[0])
    loss, _, model = fits[0]
    for n, mm in enumerate((settings.coarse_mm, settings.fine_mm)):
        model = model.as_kind(kind)
        loss = _minimise(coarse if n == 0 else _Level(pair, mm), model, 60)
        progress(Step("affine", len(scored) + 1 + n, total, loss))
    transform = _to_world(model, pair)
    progress(Step("affine", total, total, loss))
    starts = tuple(Start(s.name, s.degrees, s.scored, round(value, 5)) for value, s, _ in fits)
    return LinearFit(transform, loss, starts)


class _Model:
    """A linear map by its free parameters, around a start: A = turn exp(w) scale (I + strain), and t."""

    def __init__(self, kind: LinearKind, turn: Tensor, translation: Tensor) -> None:
        d = len(turn)
        self.kind = kind
        self.turn = turn.detach()
        self.rotation = torch.zeros(d, d, device=turn.device, requires_grad=True)
        self.log_scale = torch.zeros((), device=turn.device, requires_grad=True)
        self.strain = torch.zeros(d, d, device=turn.device, requires_grad=True)
        self.translation = translation.detach().clone().requires_grad_()

    def parameters(self) -> list[Tensor]:
        free = {"rigid": [self.rotation], "similarity": [self.rotation, self.log_scale], "affine": [self.strain]}
        return [self.translation, *free[self.kind]]

    def matrix(self) -> Tensor:
        if self.kind == "affine":
            return self.turn @ (torch.eye(len(self.turn), device=self.turn.device) + self.strain)
        return self.turn @ torch.linalg.matrix_exp(self.rotation - self.rotation.T) * self.log_scale.exp()

    def as_kind(self, kind: LinearKind) -> _Model:
        """The same map, free to move as another kind does."""
        return _Model(kind, self.matrix(), self.translation)


def _minimise(level: _Level, model: _Model, iterations: int) -> float:
    """L-BFGS on the model's free parameters, in place; the loss at the end."""
    optimiser = torch.optim.LBFGS(
        model.parameters(),
        max_iter=iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = level.loss(model.matrix(), model.translation)
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        return float(level.loss(model.matrix(), model.translation))


def _scored_starts(pair: _Pair, mm: float) -> list[tuple[Start, Tensor, Tensor]]:
    """Starts with their loss before any optimisation, best first, no two of them alike."""
    level = _Level(pair, mm)
    d = pair.fixed.grid.ndim
    scored = []
    with torch.no_grad():
        for name, turn, shift in _starts(pair):
            matrix = torch.tensor(turn, device=pair.device).float()
            translation = torch.tensor(shift / _RADIUS_MM, device=pair.device).float()
            loss = float(level.loss(matrix, translation))
            scored.append((Start(name, round(_angle(turn), 1), round(loss, 5)), matrix, translation))
    scored.sort(key=lambda entry: entry[0].scored)
    kept: list[tuple[Start, Tensor, Tensor]] = []
    for entry in scored:
        if all(_angle((entry[1].T @ other).cpu().numpy()) > _SAME_START_DEGREES for _, other, _ in kept):
            kept.append(entry)
    # Heads mostly lie as their headers say: that start is tried whatever its score is.
    lying = [entry for entry in scored if entry[0].name == "voxel axes"]
    return lying[:1] + [entry for entry in kept if entry is not lying[0]] if d > 1 else kept


def _starts(pair: _Pair) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, A, t in mm): A turns fixed world vectors into moving world vectors, t is added at the centre of mass."""
    d = pair.fixed.grid.ndim
    still = np.zeros(d)
    # Along the voxel axes, whatever directions the headers give them.
    axes = _directions(pair.moving) @ _directions(pair.fixed).T
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


def _directions(image: Image) -> np.ndarray:
    """The voxel axes as orthonormal world vectors (D, D), the nearest to the affine's columns."""
    u, _, v = np.linalg.svd(image.grid.linear / image.grid.spacing)
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


def _coarsened(image: Image, mm: float, device: torch.device | str) -> Image:
    factors = tuple(max(1, round(mm / spacing)) for spacing in image.grid.spacing)
    pooled = sampling.average_pool(image.data[None, None].to(device).float(), factors)[0, 0]
    return Image(pooled, image.grid.coarser(factors), image.name)


def _centre_of_mass(image: Image) -> np.ndarray:
    """World mm of the intensities' centre of mass."""
    mass = image.data.double().clamp_min(0)
    total = float(mass.sum())
    if total <= 0:
        raise RegistrationError(f"{image.name}: there is nothing above the background")
    d = image.grid.ndim
    means = []
    for axis, n in enumerate(image.grid.shape):
        profile = mass.sum(tuple(a for a in range(d) if a != axis))
        means.append(float((profile * torch.arange(n, dtype=torch.float64)).sum()) / total)
    return image.grid.affine[:-1] @ np.append(means, 1)


def _is_cut(image: Image) -> bool:
    """Whether the subject runs on beyond the image's box: much of one of its faces is well above the background."""
    threshold = 0.1 * float(image.data.max())
    faces = (image.data.select(axis, end) for axis in range(image.grid.ndim) for end in (0, -1))
    return any(float((face > threshold).float().mean()) > _CUT_FACE for face in faces)


def _to_world(model: _Model, pair: _Pair) -> Affine:
    """From the model's centred coordinates to a world matrix."""
    linear = model.matrix().detach().double().cpu().numpy()
    shift = _RADIUS_MM * model.translation.detach().double().cpu().numpy()
    offset = pair.moving_centre + shift - linear @ pair.fixed_centre
    if not np.isfinite(linear).all() or abs(np.linalg.det(linear)) < 1e-3:
        raise RegistrationError("the linear stage ended in a singular transform: the images may have nothing in common")
    return Affine(np.column_stack([linear, offset]))
