"""The MNI152 brain that nilearn carries in its package: a reference that is there wherever stepwarp is installed."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.files import read_image
from stepwarp.geometry import Affine, Grid, Image

#: Space kept around the brain (mm), so that nothing moves into it from beyond a grid.
MARGIN_MM = 16.0


@dataclass(frozen=True, eq=False)
class Template:
    """A brain and its tissues on one grid: intensities and probabilities from 0 to 1, and where there is brain."""

    brain: Image
    tissues: tuple[Image, ...]
    mask: Tensor


def mni152() -> Template:
    """The MNI152 brain at 1 mm, cut to the brain and a margin. Raises InputError if nilearn lacks its files."""
    images = [_from_nilearn(name) for name in ("t1", "gm", "wm")]
    inside = (images[0].data > 0).nonzero()
    low, high = inside.amin(0).numpy() - int(MARGIN_MM), inside.amax(0).numpy() + int(MARGIN_MM)
    moved_origin = np.eye(4)
    moved_origin[:3, 3] = low
    grid = Grid(tuple(high - low + 1), images[0].grid.affine @ moved_origin)
    brain, *tissues = (image.warp(Affine.identity(3), onto=grid) for image in images)
    return Template(brain, tuple(tissues), brain.data > 0)


def _from_nilearn(name: str) -> Image:
    """One of nilearn's own MNI152 volumes, scaled to 0..1. nilearn itself, which is slow to import, is not."""
    package = importlib.util.find_spec("nilearn")
    if package is None or not package.submodule_search_locations:
        raise InputError("nilearn is not installed, and its MNI152 brain is needed here. Install it.")
    data = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    image = read_image(data / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
    return Image(image.data / image.data.max(), image.grid, name)
