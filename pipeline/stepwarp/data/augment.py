"""Pairs varied on the fly, so that a network sees no pair twice: on the device where their tensors lie.

Everything that moves voxels becomes one map for each image, and the image is read through it once. What is drawn is a
few numbers from the caller's generator, and noise that is the same on every device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial.legendre import legvander
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation
from torch import Tensor

from stepwarp.data.noise import white_noise
from stepwarp.data.scans import Labelled
from stepwarp.data.settings import AffineAmounts, AugmentSettings
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Transform
from stepwarp.geometry.grid import float64
from stepwarp.kernels import sampling
from stepwarp.kernels.smoothing import gaussian

#: Control points that move by less than this share of their distance cannot fold space.
_NO_FOLD = 0.4
#: The degree of the polynomial whose exponential a bias field is.
_BIAS_DEGREE = 3
#: Of an axis, the least and the most that is cut off.
_CUT = (0.02, 0.2)
#: An image that shows nothing is divided by this.
_TINY = 1e-6


@dataclass(frozen=True, eq=False)
class Motion:
    """A change of shape: at a point x of the box one sees what was at affine(x + u(x)).

    affine: (4, 4) float64, world mm. bend: u as a displacement (1, 3, *grid.shape) in voxels, or None. mirrored:
    whether the affine turns left into right."""

    grid: Grid
    affine: np.ndarray
    bend: Tensor | None = None
    mirrored: bool = False

    @property
    def is_still(self) -> bool:
        """Whether nothing moves."""
        return self.bend is None and np.array_equal(self.affine, np.eye(4))

    def apply(self, values: Tensor, of: Grid, mode: sampling.Interpolation = "linear") -> Tensor:
        """Values (1, C, *of.shape) on any grid after the motion, (1, C, *grid.shape), of the same type and on their
        device; 0 comes in from outside."""
        if self.is_still and of == self.grid:
            return values
        still = torch.zeros(1, 1, 1, 1, 1, device=values.device).expand(1, 3, *self.grid.shape)
        matrix = float64(self.grid.index_map_to(of, self.affine))
        return sampling.warp(values, still if self.bend is None else self.bend, matrix, mode)

    def coarser(self, factor: int) -> Motion:
        """This motion on blocks of `factor` voxels along each axis: that of their centres."""
        if factor == 1:
            return self
        bend = None if self.bend is None else sampling.average_pool(self.bend, (factor,) * 3) / factor
        return Motion(self.grid.coarser(factor), self.affine, bend, self.mirrored)

    def transform(self) -> Transform:
        """Where a point of the box is read from, world mm."""
        affine = Affine(self.affine)
        return affine if self.bend is None else Composition.of(affine, DisplacementField(self.bend, self.grid))


class Augmentation:
    """What `AugmentSettings` say. grid: of the scans, along the world's axes. device: where they lie.

    partners: label -> label of the other side, for the mirroring of label maps; where there are labels and no
    partners nothing is mirrored."""

    def __init__(
        self,
        settings: AugmentSettings,
        grid: Grid,
        partners: Mapping[int, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings
        self.grid = grid
        self.partners = dict(partners or {})
        self.device = torch.device(device)
        self._spline = [
            _spline_weights(n, spacing, settings).to(self.device)
            for n, spacing in zip(grid.shape, grid.spacing, strict=True)
        ]

    def motions(self, rng: np.random.Generator, labelled: bool = False) -> tuple[Motion, Motion]:
        """How the fixed and how the moving image are moved, bent and mirrored."""
        may_flip = not labelled or bool(self.partners)
        mirrored = bool(rng.random() < self.settings.flip) and may_flip
        centre = self.grid.centre
        both = _about(centre, np.diag([-1.0, 1, 1]) if mirrored else np.eye(3)) @ _random_affine(
            self.settings.both, centre, rng
        )
        apart = both @ _random_affine(self.settings.one, centre, rng)
        return (
            Motion(self.grid, both, self._bend(rng), mirrored),
            Motion(self.grid, apart, self._bend(rng), mirrored),
        )

    def vary(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Intensities (1, 1, *shape), on any grid, with bias field, contrast, blur, slices, noise and a part cut off;
        neither below 0 nor above the brightest before. What is 0, because it was cut away around a brain, gets no
        noise."""
        settings, brightest, varied = self.settings, image.amax(), image
        if rng.random() < settings.bias:
            varied = varied * bias_field(image, settings.bias_strength, rng)
        if rng.random() < settings.gamma:
            varied = brightest * (varied / brightest.clamp_min(_TINY)) ** rng.uniform(*settings.gammas)
        if rng.random() < settings.blur:
            varied = gaussian(varied, rng.uniform(*settings.blur_voxels))
        if rng.random() < settings.slices:
            varied = thick_slices(varied, int(rng.integers(3)), rng.uniform(*settings.slice_voxels))
        if rng.random() < settings.noise:
            noise = white_noise(tuple(image.shape), int(rng.integers(2**63)), image.device)
            varied = torch.where(varied > 0, varied + rng.uniform(0, settings.noise_sd) * noise, varied)
        if rng.random() < settings.cut:
            varied = _cut_off(varied, int(rng.integers(3)), rng.uniform(*_CUT), bool(rng.integers(2)))
        return torch.minimum(varied.clamp_min(0), brightest)

    def move_labels(self, labelled: Labelled, motion: Motion) -> Labelled:
        """A label map of the scans' grid after the motion; left and right change their labels where it mirrors."""
        ids = labelled.ids
        if motion.mirrored:
            ids = torch.tensor([self.partners.get(label, label) for label in ids.tolist()], dtype=ids.dtype)
        return Labelled(motion.apply(labelled.index, self.grid, "nearest"), ids)

    def _bend(self, rng: np.random.Generator) -> Tensor | None:
        if not rng.random() < self.settings.elastic or not self.settings.elastic_sd_mm:
            return None
        shape = [weights.shape[1] for weights in self._spline]
        most = _NO_FOLD * self.settings.elastic_mm
        points = rng.normal(0, self.settings.elastic_sd_mm, (3, *shape)).clip(-most, most)
        points /= self.grid.spacing.reshape(3, 1, 1, 1)
        return _along_axes(torch.from_numpy(points).float().to(self.device), self._spline)[None]


def bias_field(like: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """(1, 1, *shape) for an image of that shape: a smooth factor, the exponential of a polynomial of degree 3 in
    Legendre's, each with a coefficient of at most `strength`. (Van Leemput et al. 1999; as MONAI's RandBiasField.)"""
    degrees = np.indices((_BIAS_DEGREE + 1,) * 3).sum(0)
    coefficients = np.where(degrees <= _BIAS_DEGREE, rng.uniform(-strength, strength, degrees.shape), 0)
    lines = [torch.from_numpy(legvander(np.linspace(-1, 1, n), _BIAS_DEGREE)).to(like) for n in like.shape[2:]]
    return _along_axes(torch.from_numpy(coefficients[None]).to(like), lines)[None].exp()


def thick_slices(image: Tensor, axis: int, thickness: float) -> Tensor:
    """An image (1, 1, *shape) as if taken in slices of `thickness` voxels along an axis (0 to 2): averaged over each
    slice, and read linearly between their centres."""
    if thickness <= 1:
        return image
    voxels = image.shape[2 + axis]
    slices = max(1, round(voxels / thickness))
    edges = np.linspace(0, voxels, slices + 1)
    starts = np.arange(voxels)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    average = overlap.clip(0) / (edges[1:] - edges[:-1])[:, None]
    centres = (edges[1:] + edges[:-1]) / 2
    between = np.stack([np.interp(starts + 0.5, centres, one) for one in np.eye(slices)], 1)
    matrix = torch.from_numpy(between @ average).to(image)
    return torch.tensordot(image, matrix, ([2 + axis], [1])).movedim(-1, 2 + axis).contiguous()


def teacher_after(teacher: Transform, fixed: Motion, moving: Motion, device: torch.device | str = "cpu") -> Tensor:
    """A transform of the two images as they were, for the two as they are: displacement (1, 3, *shape) in voxels, on a
    device."""
    found = Composition.of(moving.transform().inverse(), teacher, fixed.transform())
    return found.after(DisplacementField.identity(fixed.grid, device)).displacement


def left_right_partners(names: Mapping[int, str]) -> dict[int, int]:
    """Label -> label of the other side, from names that differ in nothing but the words left and right."""
    by_name = {_words(name): label for label, name in names.items()}
    swap = {"left": "right", "right": "left", "lh": "rh", "rh": "lh"}
    found = {
        label: by_name.get(tuple(swap.get(word, word) for word in words), label) for words, label in by_name.items()
    }
    return {label: other for label, other in found.items() if label != other}


def _words(name: str) -> tuple[str, ...]:
    return tuple(name.lower().replace("-", " ").replace("_", " ").split())


def _random_affine(amounts: AffineAmounts, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random (4, 4) affine of world mm about a point; the draws do not depend on the amounts."""
    turn, scale, shear, shift = rng.uniform(-1, 1, (4, 3))
    upper = np.eye(3)
    upper[np.triu_indices(3, 1)] = amounts.shear * shear
    linear = (
        Rotation.from_rotvec(amounts.degrees * turn, degrees=True).as_matrix() @ upper * (1 + amounts.scale * scale)
    )
    matrix = _about(centre, linear)
    matrix[:3, 3] += amounts.mm * shift
    return matrix


def _about(centre: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """The (4, 4) map of world mm that leaves `centre` in place."""
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre - linear @ centre
    return matrix


def _spline_weights(voxels: int, spacing: float, settings: AugmentSettings) -> Tensor:
    """(voxels, control points): the weights of a cubic B-spline at every voxel of an axis."""
    step = settings.elastic_mm / spacing
    cells = max(1, int(np.ceil((voxels - 1) / step)))
    knots = np.arange(-3, cells + 4) * step
    return torch.from_numpy(BSpline.design_matrix(np.arange(voxels) + 0.0, knots, 3).toarray()).float()


def _along_axes(values: Tensor, lines: Sequence[Tensor]) -> Tensor:
    """Coefficients (C, a, b, c) with the functions (voxels, a), (voxels, b), (voxels, c) of each axis: (C, *shape)."""
    for line in lines:
        values = torch.tensordot(values, line, ([1], [1]))
    return values


def _cut_off(image: Tensor, axis: int, share: float, from_above: bool) -> Tensor:
    """An image (1, 1, *shape) with a share of its field of view missing, 0, at one end of an axis (0 to 2)."""
    voxels = image.shape[2 + axis]
    missing = max(1, round(share * voxels))
    cut = image.clone()
    cut.narrow(2 + axis, voxels - missing if from_above else 0, missing).zero_()
    return cut
