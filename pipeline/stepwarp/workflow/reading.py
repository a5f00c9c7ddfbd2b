"""As what a volume is read that is to be carried elsewhere: an image or a label map, and how between its voxels."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch

from stepwarp.errors import InputError
from stepwarp.files import TrustRules, Voxels, as_either, as_labels, stated_kind
from stepwarp.files.voxels import integers
from stepwarp.geometry import CubicImage, Grid, Image, LabelMap, SincImage, Volume
from stepwarp.geometry.background import background
from stepwarp.workflow.kinds import kind_of

Interpolation = Literal["auto", "linear", "nearest", "cubic", "sinc"]

#: What label maps may be asked for.
FOR_LABELS = ("auto", "nearest")
_SMOOTH: dict[str, type[Image]] = {"cubic": CubicImage, "sinc": SincImage}
_WORDS = {"cubic": "cubic B-spline", "sinc": "windowed sinc"}


def read_volume(
    source: Any, interpolation: Interpolation, labels: bool, outside: float | None, trust: TrustRules
) -> tuple[Volume, str]:
    """A source of `files.as_either` as the type that is read in the right way between voxels, and why, in words."""
    stated = "labels" if labels else stated_kind(source)
    if stated == "labels" and interpolation in FOR_LABELS:
        return as_labels(source, trust=trust), "label map as stated, nearest voxel"
    voxels, grid = as_either(source, trust=trust)
    if interpolation == "nearest":
        return _nearest_image(voxels, grid, outside), "nearest voxel as asked for"
    kind, decision = "image", f"{_WORDS.get(interpolation, interpolation)} as asked for"
    if interpolation == "auto" and stated is not None:
        decision = "image as stated, linear"
    elif interpolation == "auto":
        kind = kind_of(voxels.labels().numpy()) if voxels.are_whole else "image"
        decision = "image by its values, linear"
    if kind == "unsure":
        raise InputError(f"{voxels.name}: may be an image or a label map. Say --labels, or --interpolation linear.")
    if kind == "labels":
        decision = "label map by its values (whole numbers in patches), nearest voxel"
        return LabelMap(voxels.labels(), grid, voxels.name), decision
    data, missing = voxels.intensities()
    return read_by(Image(data, grid, voxels.name, missing=missing).surrounded(outside), interpolation), decision


def read_by(image: Image, interpolation: Interpolation) -> Image:
    """An image as the type that is read so between its voxels; InputError where its gaps forbid that."""
    smooth = _SMOOTH.get(interpolation)
    if smooth is None:
        return image
    if image.missing is not None:
        raise InputError(
            f"{image.name}: holds NaN, which --interpolation {interpolation} would spread. Say linear, or fill it."
        )
    return smooth(image.data, image.grid, image.name, image.outside)


def continues(volume: Volume, outside: float) -> bool:
    """Whether what the moving image was said to be outside can be meant for another image of its space: NaN for any,
    a number for one whose own values reach it. -1000 for the air of a CT is nothing for a map of probabilities, nor for
    numbers that were asked for from the nearest voxel, which may be labels."""
    if volume.interpolation == "nearest":
        return False
    return math.isnan(outside) or bool(volume.data.min() <= outside <= volume.data.max())


class _NearestImage(Image):
    """Values that are read from the nearest voxel, where that is asked for: in whatever type holds them exactly."""

    interpolation = "nearest"


def _nearest_image(voxels: Voxels, grid: Grid, outside: float | None) -> Volume:
    """A volume of which no value changes on the way."""
    if voxels.are_whole and not voxels.have_gaps:
        data = voxels.labels()
        value = background(data) if outside is None else outside
        if not float(value).is_integer():
            raise InputError(
                f"--outside {value:g}: {voxels.name} holds whole numbers and is read from the nearest voxel. Give a "
                "whole number."
            )
        return _NearestImage(integers(data.numpy(), voxels.name, int(value)), grid, voxels.name, value)
    data, missing = voxels.intensities()
    exact = torch.from_numpy(np.ascontiguousarray(voxels.values, dtype=np.float64))
    if missing is not None:
        exact[missing] = float(data.min())
    data = data if (exact == data).all() else exact
    return _NearestImage(data, grid, voxels.name, missing=missing).surrounded(outside)
