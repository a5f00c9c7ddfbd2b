"""A small real pair of brains whose answer is known, and a recipe that registers it in a moment."""

from dataclasses import dataclass

import numpy as np
import pytest

from stepwarp.config import AffineSettings, DeformableSettings, Level, Preset
from stepwarp.data.mni152 import Template, mni152
from stepwarp.geometry import Image, Transform
from stepwarp.geometry.sampling import average_pool
from stepwarp.workflow.demo import make_pair
from stepwarp.workflow.register import Registration, register

#: Voxels of 1 mm that make one here, along each axis.
_POOLED = 4


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test here runs on one thread."""


@dataclass(frozen=True, eq=False)
class Brains:
    """Two brains of 4 mm, the true map from one to the other, and the world points (N, 3) of the fixed one."""

    fixed: Image
    moving: Image
    truth: Transform
    points: np.ndarray

    def error(self, transform: Transform) -> float:
        """The mean distance in mm to where the points of the brain belong."""
        return float(np.linalg.norm(transform(self.points) - self.truth(self.points), axis=1).mean())


@pytest.fixture(scope="session")
def brains() -> Brains:
    """MNI152 and a second brain made from it, as from another scanner: LAS, another contrast, noise."""
    full = mni152()
    brain, *tissues = (_pooled(image) for image in (full.brain, *full.tissues))
    mask = _pooled(Image(full.mask.float(), full.brain.grid)).data > 0.5
    pair = make_pair(Template(brain, tuple(tissues), mask), 0)
    points = mask.nonzero()[::10].numpy() @ brain.grid.linear.T + brain.grid.affine[:3, 3]
    return Brains(pair.fixed, pair.moving, pair.transform, points)


@pytest.fixture(scope="session")
def recipe() -> Preset:
    """Good for a brain of 4 mm, in a fraction of a second."""
    affine = AffineSettings(coarse_mm=16, refine_mm=(8,), candidates=2)
    levels = (Level(mm=16, iterations=10), Level(mm=8, iterations=10))
    return Preset(affine=affine, deformable=DeformableSettings(levels=levels))


@pytest.fixture(scope="module")
def registration(brains: Brains, recipe: Preset) -> Registration:
    """The two brains, registered. Not to be saved: saving adds to its record."""
    return register(brains.fixed, brains.moving, preset=recipe, threads=1)


def _pooled(image: Image) -> Image:
    data = average_pool(image.data[None, None].float(), (_POOLED,) * 3)[0, 0]
    return Image(data, image.grid.coarser(_POOLED), image.name)
