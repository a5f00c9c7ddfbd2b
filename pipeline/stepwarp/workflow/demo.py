"""A registration whose answer is known, from nothing but what is installed.

The MNI152 brain that nilearn carries in its package is the fixed image. The moving one is made from it by a random
diffeomorphism and an affine, both recorded, and then by what another scanner would do: other grid, other contrast, a
bias field, noise. The two are registered as two files of a user are, and the result is compared with the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepwarp.config import Preset
from stepwarp.data.mni152 import MARGIN_MM, Template, mni152
from stepwarp.errors import OutputError
from stepwarp.evaluation.distances import DistanceSummary
from stepwarp.evaluation.overlap import dice
from stepwarp.files import write_affine, write_displacement, write_volume
from stepwarp.files.lock import locked
from stepwarp.geometry import Affine, DisplacementField, Grid, Image, LabelMap, Transform
from stepwarp.kernels import jacobian, sampling
from stepwarp.kernels.smoothing import gaussian
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.workflow.outputs import claimed, is_result
from stepwarp.workflow.register import register
from stepwarp.workflow.registration import Registration

#: What a demonstration writes into its folder, besides the result; the last is a folder.
TRUTH = "truth"
OWN_NAMES = ("fixed.nii.gz", "moving.nii.gz", "fixed_labels.nii.gz", "moving_labels.nii.gz", TRUTH)

#: The longest displacement inside the brain (mm); the scales of the deformation (sigma, mm) and their amplitudes.
_LONGEST_MM = 12.0
_SCALES_MM = {20.0: 1.0, 10.0: 0.3}
#: No one-sided Jacobian determinant of the deformation falls below this.
_SMALLEST_DETERMINANT = 0.2

_TURN_DEGREES, _STRETCH, _SHIFT_MM = 8.0, 0.06, 10.0
_MOVING_SPACING = np.array([1.0, 1.1, 1.0])
_BIAS, _BIAS_MM, _NOISE = 0.12, 40.0, 0.02

TISSUES = {1: "grey matter", 2: "white matter"}


@dataclass(frozen=True, eq=False)
class DemoPair:
    """Two brains and the truth about them.

    warp, inverse_warp: on the fixed grid; `affine @ warp` maps points of the fixed world to points of the moving world.
    fixed_labels, moving_labels: 1 grey matter, 2 white matter. mask: bool, fixed grid's shape, where the brain is."""

    fixed: Image
    moving: Image
    fixed_labels: LabelMap
    moving_labels: LabelMap
    affine: Affine
    warp: DisplacementField
    inverse_warp: DisplacementField
    mask: Tensor

    @property
    def transform(self) -> Transform:
        """The true map from points of the fixed world to points of the moving world."""
        return self.affine @ self.warp

    @property
    def inverse(self) -> Transform:
        """The true map back."""
        return self.inverse_warp @ self.affine.inverse()


@dataclass(frozen=True)
class Accuracy:
    """One transform beside the truth. error: of points inside the brain. dice: of each tissue, by its name."""

    error: DistanceSummary
    dice: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Demonstration:
    """A registration, the folder of its results, and how good it is: `before`, after the `affine`, and `after` all."""

    registration: Registration
    folder: Path
    accuracy: Mapping[str, Accuracy]

    def rows(self) -> dict[str, tuple[float, ...]]:
        """Label -> its number for each of the keys of `accuracy`."""
        return _rows(self.accuracy)


def demo(
    out: str | Path,
    *,
    preset: str | Path | Preset = "default",
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Demonstration:
    """Make a pair of brains, register their files, and compare the result with the truth.

    Writes into `out`: fixed.nii.gz and moving.nii.gz with their label maps, `truth/` with the true transform in the
    files of a registration, and `result/`, which `Registration.save` wrote. Equal seeds give equal pairs.

    Raises what `register` and `save` raise, and OutputError if `out` cannot take the files."""
    out = Path(out)
    with locked(out, "demo", OWN_NAMES, known=_was_made(out)), claimed(out / "result", overwrite) as place:
        return _demonstrated(out, place, preset, seed, device, threads, overwrite, progress)


def _was_made(out: Path) -> bool:
    """Whether a demonstration has been made there: a result alone may be of a user's own `fixed.nii.gz`."""
    return is_result(out / "result") and all((out / name).exists() for name in OWN_NAMES)


def _demonstrated(
    out: Path,
    place: Path,
    preset: str | Path | Preset,
    seed: int,
    device: str,
    threads: int | None,
    overwrite: bool,
    progress: Progress,
) -> Demonstration:
    pair = make_pair(mni152(), seed, progress)
    save_pair(pair, out, overwrite)
    registration = register(
        out / "fixed.nii.gz",
        out / "moving.nii.gz",
        preset=preset,
        device=device,
        threads=threads,
        progress=progress,
    )
    transforms = {"before": Affine.identity(3), "affine": registration.affine, "after": registration.transform}
    accuracy = {name: measured(pair, transform) for name, transform in transforms.items()}
    truth = {name: (values[0], values[-1]) for name, values in _rows(accuracy).items()}
    folder = registration.save(out / "result", overwrite=overwrite, progress=progress, truth=truth, place=place)
    return Demonstration(registration, folder, accuracy)


def make_pair(template: Template, seed: int, progress: Progress = silent) -> DemoPair:
    """A template as the fixed image, and a second brain made from it; equal seeds give equal pairs."""
    rng = np.random.default_rng(seed)
    grid = template.brain.grid
    progress(ProgressReport("second brain", 0, 3))
    warp, inverse_warp = _random_diffeomorphism(template, rng)
    progress(ProgressReport("second brain", 1, 3))
    affine = _random_affine(template, rng)
    moving_grid = _grid_around(affine @ warp, template)
    # The true inverse, inverse_warp after affine^-1, written as an affine after a field on the moving grid: in this
    # form the kernels read it, and the brain is interpolated once.
    turned = DisplacementField(inverse_warp.displacement, Grid(grid.shape, affine.matrix @ grid.affine))
    back = affine.inverse() @ turned.on(moving_grid)
    brain, *tissues = (image.warp(back, onto=moving_grid) for image in (template.brain, *template.tissues))
    progress(ProgressReport("second brain", 2, 3))
    pair = DemoPair(
        fixed=Image((template.brain.data * 255).round(), grid, "fixed"),
        moving=_as_from_another_scanner(brain, rng),
        fixed_labels=_labels(template.tissues, "fixed labels"),
        moving_labels=_labels(tissues, "moving labels"),
        affine=affine,
        warp=warp,
        inverse_warp=inverse_warp,
        mask=template.mask,
    )
    progress(ProgressReport("second brain", 3, 3))
    return pair


def measured(pair: DemoPair, transform: Transform, every: int = 8) -> Accuracy:
    """How far a transform, fixed world to moving world, is from the truth at every `every`-th voxel of the brain."""
    grid = pair.fixed.grid
    points = grid.world(pair.mask.nonzero()[::every].numpy())
    error = np.linalg.norm(transform(points) - pair.transform(points), axis=1)
    scores = dice(pair.fixed_labels, pair.moving_labels.warp(transform, onto=grid))
    return Accuracy(DistanceSummary.of(error), {name: scores[label] for label, name in TISSUES.items()})


def _random_diffeomorphism(template: Template, rng: np.random.Generator) -> tuple[DisplacementField, DisplacementField]:
    """exp(v) and its inverse exp(-v) for a smooth random velocity v, at most _LONGEST_MM inside the brain."""
    grid, mask = template.brain.grid, template.mask
    velocity = _smooth_noise(grid, 3, _SCALES_MM, rng) * _near(template)
    velocity *= _LONGEST_MM / _lengths(velocity, grid)[mask].max()
    forward = _exponential(velocity)
    while jacobian.smallest_corner_determinant(forward).min() < _SMALLEST_DETERMINANT:
        velocity *= 0.9
        forward = _exponential(velocity)
    return DisplacementField(forward, grid), DisplacementField(_exponential(-velocity), grid)


def _near(template: Template) -> Tensor:
    """1 inside the brain, falling smoothly to about 0 within the margin: nothing flows in from beyond the grid."""
    margin = MARGIN_MM / template.brain.grid.spacing.mean()
    near = gaussian(template.mask[None, None].float(), margin / 2)
    return gaussian((2 * near).clamp_max(1), margin / 6)


def _smooth_noise(grid: Grid, channels: int, scales_mm: Mapping[float, float], rng: np.random.Generator) -> Tensor:
    """A sum of smoothed white noise, (1, channels, *grid.shape): sigma in mm -> standard deviation."""
    # Made on a grid that is fine enough for its scales, and smoothed once more where linear interpolation left edges.
    factor = max(1, round(3 / grid.spacing.mean()))
    coarse = grid.coarser(factor)
    total = torch.zeros(1, channels, *coarse.shape)
    for sigma, amplitude in scales_mm.items():
        noise = torch.from_numpy(rng.standard_normal(total.shape, dtype=np.float32))
        noise = gaussian(noise, sigma / coarse.spacing.mean())
        total += amplitude * noise / noise.std()
    fine = [Image(channel, coarse).warp(Affine.identity(3), onto=grid).data for channel in total[0]]
    return gaussian(torch.stack(fine)[None], factor / 2)


def _exponential(velocity: Tensor, squarings: int = 7) -> Tensor:
    """The displacement after flowing along a stationary velocity for unit time, by scaling and squaring."""
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = sampling.compose(displacement, displacement)
    return displacement


def _lengths(displacement: Tensor, grid: Grid) -> Tensor:
    """Millimetres, grid.shape."""
    return DisplacementField(displacement, grid).millimetres().norm(dim=-1)


def _random_affine(template: Template, rng: np.random.Generator) -> Affine:
    """A turn, a stretch along each axis and a shift, about the middle of the brain."""
    axis = rng.standard_normal(3)
    axis *= np.radians(_TURN_DEGREES) / np.linalg.norm(axis)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = torch.linalg.matrix_exp(torch.from_numpy(skew)).numpy()
    linear = turn * (1 + rng.uniform(-_STRETCH, _STRETCH, 3))
    centre = template.brain.grid.centre
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre - linear @ centre + rng.uniform(-_SHIFT_MM, _SHIFT_MM, 3)
    return Affine(matrix)


def _grid_around(transform: Transform, template: Template) -> Grid:
    """A grid in LAS order with another spacing, around where the brain is sent."""
    grid = template.brain.grid
    points = transform(grid.world(template.mask.nonzero()[::50].numpy()))
    low, high = points.min(0) - MARGIN_MM, points.max(0) + MARGIN_MM
    spacing = _MOVING_SPACING * grid.spacing
    affine = np.diag([*(spacing * (-1, 1, 1)), 1.0])
    affine[:3, 3] = high[0], low[1], low[2]
    return Grid(tuple(np.ceil((high - low) / spacing).astype(int)), affine)


def _as_from_another_scanner(brain: Image, rng: np.random.Generator) -> Image:
    """Another contrast, a bias field, and noise where there is tissue; whole numbers up to a few thousand."""
    bias = (_BIAS * _smooth_noise(brain.grid, 1, {_BIAS_MM: 1.0}, rng)[0, 0]).clamp(-2 * _BIAS, 2 * _BIAS).exp()
    noise = torch.from_numpy(rng.standard_normal(brain.grid.shape, dtype=np.float32)) * _NOISE
    values = brain.data**1.5 * bias + noise
    return Image(torch.where(brain.data > 0, 1000 * values, 0).clamp_min(0).round(), brain.grid, "moving")


def _labels(tissues: tuple[Image, ...] | list[Image], name: str) -> LabelMap:
    """The likeliest tissue of each voxel, counted from 1; 0 where none has half of the probability."""
    probability, label = torch.stack([tissue.data for tissue in tissues]).max(0)
    return LabelMap(torch.where(probability > 0.5, label + 1, 0).to(torch.uint8), tissues[0].grid, name)


def save_pair(pair: DemoPair, out: Path, overwrite: bool) -> None:
    """Write fixed and moving images with their label maps into a folder, and the true transform into its `truth/`."""
    truth = out / TRUTH
    try:
        truth.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{truth}: cannot be made ({error.strerror}). Choose another folder.") from error
    write_volume(out / "fixed.nii.gz", pair.fixed, overwrite, torch.uint8)
    write_volume(out / "moving.nii.gz", pair.moving, overwrite, torch.int16)
    write_volume(out / "fixed_labels.nii.gz", pair.fixed_labels, overwrite)
    write_volume(out / "moving_labels.nii.gz", pair.moving_labels, overwrite)
    write_affine(truth / "0GenericAffine.mat", pair.affine, overwrite=overwrite)
    write_displacement(truth / "1Warp.nii.gz", pair.warp, overwrite)
    write_displacement(truth / "1InverseWarp.nii.gz", pair.inverse_warp, overwrite)


def _rows(accuracy: Mapping[str, Accuracy]) -> dict[str, tuple[float, ...]]:
    errors = {"mean": "mean_mm", "95 %": "p95_mm", "largest": "max_mm"}
    stages = accuracy.values()
    rows = {f"error, {name} (mm)": tuple(getattr(a.error, field) for a in stages) for name, field in errors.items()}
    return rows | {f"Dice of {name}": tuple(a.dice[name] for a in stages) for name in TISSUES.values()}
