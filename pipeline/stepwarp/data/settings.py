"""What a network is trained on: which scans, on which grid, and how they are varied on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, PositiveFloat, model_validator

from stepwarp.data.manifest import Id
from stepwarp.geometry import Grid
from stepwarp.recipes import Strict


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] <= limits[1]:
        raise ValueError(f"{limits[0]:g} to {limits[1]:g} is no range: the lower end comes first")
    return limits


Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Range = Annotated[tuple[Amount, Amount], AfterValidator(_ordered)]


class AffineAmounts(Strict):
    """The most by which an image is turned (degrees), scaled and sheared (shares), and shifted (mm), along each axis.

    Each is drawn evenly from its two ends, negative and positive."""

    degrees: Amount = 0
    scale: Annotated[float, Field(ge=0, le=0.5)] = 0
    shear: Annotated[float, Field(ge=0, le=0.5)] = 0
    mm: Amount = 0


class AugmentSettings(Strict):
    """How a pair is varied on the fly. What stands at 0 does not happen.

    both: turns both images alike. one: the moving image alone, as a remainder of an imperfect affine. flip: share of
    pairs that are mirrored, left to right. elastic, elastic_mm, elastic_sd_mm: share of images that are bent by a cubic
    spline, the distance of its control points, and by how much each of them moves.

    bias, gamma, blur, noise, slices: share of images with a bias field, another contrast, less sharpness, noise, or
    thick slices. bias_strength: the most that a coefficient of the field's logarithm is. gammas: exponents.
    blur_voxels: Gaussian sigmas. noise_sd: the most, as a share of the brightest tissue. slice_voxels: thicknesses.

    cut: share of images with a part of the field of view missing, 2 to 20 % at one end of an axis."""

    both: AffineAmounts = AffineAmounts(degrees=8, scale=0.08, shear=0.03, mm=4)
    one: AffineAmounts = AffineAmounts(degrees=2, scale=0.02, shear=0.01, mm=1)
    flip: Share = 0.5
    elastic: Share = 0.3
    elastic_mm: PositiveFloat = 32
    elastic_sd_mm: Amount = 2

    bias: Share = 0.3
    bias_strength: Amount = 0.15
    gamma: Share = 0.3
    gammas: Range = (0.7, 1.4)
    blur: Share = 0.15
    blur_voxels: Range = (0.3, 0.8)
    noise: Share = 0.3
    noise_sd: Amount = 0.05
    slices: Share = 0.1
    slice_voxels: Range = (1.5, 3)
    cut: Share = 0


class SynthesisSettings(Strict):
    """Images made from label maps: every label gets a random grey and noise of its own, as in SynthSeg and SynthMorph.

    share: of the pairs; the others show the scans' images. keep: labels that are painted, the others become
    background; all by default. keep_share: of images for which that holds, as if the rest had been stripped off; of six
    in ten of them the labels `fringe` stay too. rough: share of these whose edge is not that of the labels, but beside
    it. same_contrast: share of pairs of which both images have the same greys. greys, texture: range of a label's mean,
    and of its standard deviation. t1_like, t2_like: shares of images with greys roughly as T1 shows them, or the other
    way round, by FreeSurfer's labels. blur_voxels: Gaussian sigmas, for the partial volume. bright_background: share of
    images whose background is painted, too, with greys of the range `background`."""

    share: Share = 1
    keep: tuple[int, ...] = ()
    keep_share: Share = 1
    fringe: tuple[int, ...] = ()
    rough: Share = 0
    same_contrast: Share = 0.5
    greys: Range = (0.1, 1)
    texture: Range = (0, 0.08)
    t1_like: Share = 0
    t2_like: Share = 0
    blur_voxels: Range = (0.5, 1)
    bright_background: Share = 0
    background: Range = (0.1, 1)

    @model_validator(mode="after")
    def _check(self) -> SynthesisSettings:
        if self.t1_like + self.t2_like > 1:
            raise ValueError("t1_like and t2_like are shares of the same images, and more than all of them together")
        return self


class DataSettings(Strict):
    """The data of a training.

    manifest: a file, or the name of one that comes with stepwarp. split: whose scans are trained on, in all ordered
    pairs. held_out: scans of this split to validate on; whoever is on them is not trained on. validation_split: a split
    to validate on, instead. same_person: whether two scans of one person make a pair.

    centre_mm, box_mm, spacing_mm: the network's world: a box with axes right, anterior, superior around a world point,
    in voxels of one size. detail: scans are kept, moved and painted on voxels so many times smaller along each axis, of
    which the network sees the means; `synthesis` counts these voxels, `augment` the network's. image_type: how
    intensities are stored; float16 takes twice the room and keeps faint differences. cache: where scans that were read
    and resampled are kept; nowhere by default.

    labels: whether the label maps come along. teacher: the name of the manifest's transforms to learn from; then its
    listed pairs are trained on, not all.

    workers: processes that make the pairs while the network learns on a processor. A GPU makes them itself, from scans
    that lie there."""

    manifest: str
    split: Id = "training"
    held_out: tuple[Id, ...] = ()
    validation_split: Id | None = None
    same_person: bool = True

    centre_mm: tuple[float, float, float] = (0, -18, 8)
    box_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (160, 192, 160)
    spacing_mm: PositiveFloat = 2
    detail: int = Field(1, ge=1, le=8)
    image_type: Literal["uint8", "float16"] = "uint8"
    cache: Path | None = None

    labels: bool = False
    teacher: str | None = None
    augment: AugmentSettings | None = AugmentSettings()
    synthesis: SynthesisSettings | None = None

    batch: int = Field(1, ge=1)
    workers: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> DataSettings:
        if self.held_out and self.validation_split is not None:
            raise ValueError("validate on held_out scans or on a validation_split, not on both")
        if self.validation_split == self.split:
            raise ValueError(f"the split '{self.split}' cannot be both trained and validated on")
        if self.teacher is not None and self.synthesis is not None:
            raise ValueError("a teacher has aligned the scans' images: there is none for synthesised ones")
        return self

    def grid(self) -> Grid:
        """The network's world: the box in whole voxels, around `centre_mm`."""
        return box_grid(self.centre_mm, self.box_mm, self.spacing_mm)

    def scan_grid(self) -> Grid:
        """The same box in the voxels of the scans, of which `detail` along each axis are one of the network's."""
        extent = tuple(n * self.spacing_mm for n in self.grid().shape)
        return box_grid(self.centre_mm, extent, self.scan_mm)

    @property
    def scan_mm(self) -> float:
        """The width of the scans' voxels."""
        return self.spacing_mm / self.detail


def box_grid(centre_mm: tuple[float, ...], box_mm: tuple[float, ...], spacing_mm: float) -> Grid:
    """A grid along the world's axes around a world point, its extent rounded to whole voxels."""
    shape = tuple(max(1, round(length / spacing_mm)) for length in box_mm)
    affine = np.diag([spacing_mm] * len(shape) + [1.0])
    affine[:-1, -1] = np.array(centre_mm) - spacing_mm * (np.array(shape) - 1) / 2
    return Grid(shape, affine)
