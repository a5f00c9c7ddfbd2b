"""Pairs varied on the fly, so that a network sees no pair twice.

Everything that moves voxels becomes one map for each image, and the image is read through it once. What changes
intensities are MONAI's random transforms, and a simulation of thick slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandomizableTransform,
)
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation
from torch import Tensor

from stepwarp.data.scans import Labelled
from stepwarp.data.settings import AffineAmounts, AugmentSettings
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Transform
from stepwarp.geometry.grid import float64
from stepwarp.kernels import sampling

#: Control points that move by less than this share of their distance cannot fold space.
_NO_FOLD = 0.4


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

    def apply(self, values: Tensor, mode: sampling.Interpolation = "linear") -> Tensor:
        """Values (1, C, *grid.shape) after the motion, same type; 0 comes in from outside."""
        if self.is_still:
            return values
        still = torch.zeros(1, 1, 1, 1, 1).expand(1, 3, *self.grid.shape)
        matrix = float64(self.grid.index_map_to(self.grid, self.affine))
        return sampling.warp(values, still if self.bend is None else self.bend, matrix, mode)

    def transform(self) -> Transform:
        """Where a point of the box is read from, world mm."""
        affine = Affine(self.affine)
        return affine if self.bend is None else Composition.of(affine, DisplacementField(self.bend, self.grid))


class Augmentation:
    """What `AugmentSettings` say, on one grid along the world's axes.

    partners: label -> label of the other side, for the mirroring of label maps; where there are labels and no
    partners nothing is mirrored."""

    def __init__(self, settings: AugmentSettings, grid: Grid, partners: Mapping[int, int] | None = None) -> None:
        self.settings = settings
        self.grid = grid
        self.partners = dict(partners or {})
        self._spline = [
            _spline_weights(n, spacing, settings) for n, spacing in zip(grid.shape, grid.spacing, strict=True)
        ]
        sigma = settings.blur_voxels
        self._intensities = Compose(
            [
                RandBiasField(prob=settings.bias, coeff_range=(-settings.bias_strength, settings.bias_strength)),
                RandAdjustContrast(prob=settings.gamma, gamma=settings.gammas),
                RandGaussianSmooth(sigma, sigma, sigma, prob=settings.blur),
                RandThickSlices(prob=settings.slices, voxels=settings.slice_voxels),
                RandGaussianNoise(prob=settings.noise, std=settings.noise_sd),
            ]
        )

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
        """Intensities (1, 1, *shape) with bias field, contrast, blur, slices and noise; neither below 0 nor above the
        brightest before. What is 0, because it was cut away around a brain, gets no noise."""
        self._intensities.set_random_state(int(rng.integers(2**31)))
        brightest = float(image.max())
        *before_noise, noise = self._intensities.transforms
        varied = image[0]
        for step in before_noise:
            varied = step(varied)
        noisy = torch.where(varied > 0, noise(varied), varied)
        return torch.as_tensor(noisy).as_subclass(Tensor).clamp(0, brightest)[None]

    def move_labels(self, labelled: Labelled, motion: Motion) -> Labelled:
        """A label map after the motion; left and right change their labels where it mirrors."""
        ids = labelled.ids
        if motion.mirrored:
            ids = torch.tensor([self.partners.get(label, label) for label in ids.tolist()], dtype=ids.dtype)
        return Labelled(motion.apply(labelled.index, "nearest"), ids)

    def _bend(self, rng: np.random.Generator) -> Tensor | None:
        if not rng.random() < self.settings.elastic or not self.settings.elastic_sd_mm:
            return None
        shape = [weights.shape[1] for weights in self._spline]
        most = _NO_FOLD * self.settings.elastic_mm
        points = rng.normal(0, self.settings.elastic_sd_mm, (3, *shape)).clip(-most, most)
        field = torch.from_numpy(points.astype(np.float32))
        for weights in self._spline:
            field = torch.tensordot(field, weights, ([1], [1]))
        return field[None] / torch.from_numpy(self.grid.spacing).float().view(1, 3, 1, 1, 1)


class RandThickSlices(RandomizableTransform):
    """An image (C, *shape) as if taken in slices of `voxels` voxels along one axis: averaged over each slice, and read
    linearly between their centres."""

    def __init__(self, prob: float, voxels: tuple[float, float]) -> None:
        super().__init__(prob)
        self.voxels = voxels

    def __call__(self, image: Tensor) -> Tensor:
        self.randomize(None)
        axis = 1 + int(self.R.randint(image.ndim - 1))
        thickness = self.R.uniform(*self.voxels)
        return _through_slices(image, axis, thickness) if self._do_transform and thickness > 1 else image


def teacher_after(teacher: Transform, fixed: Motion, moving: Motion) -> Tensor:
    """A transform of the two images as they were, for the two as they are: displacement (1, 3, *shape) in voxels."""
    return Composition.of(moving.transform().inverse(), teacher, fixed.transform()).on(fixed.grid).displacement


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


def _through_slices(image: Tensor, axis: int, thickness: float) -> Tensor:
    """Averaged over slices along an axis, then read between their centres, as one matrix on the axis."""
    voxels = image.shape[axis]
    slices = max(1, round(voxels / thickness))
    edges = np.linspace(0, voxels, slices + 1)
    starts = np.arange(voxels)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    average = overlap.clip(0) / (edges[1:] - edges[:-1])[:, None]
    centres = (edges[1:] + edges[:-1]) / 2
    between = np.stack([np.interp(starts + 0.5, centres, one) for one in np.eye(slices)], 1)
    matrix = torch.from_numpy(between @ average).to(image)
    return torch.tensordot(image, matrix, ([axis], [1])).movedim(-1, axis).contiguous()
