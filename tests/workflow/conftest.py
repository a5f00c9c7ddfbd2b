"""A recipe that registers the small pair of brains in a moment, and what it finds."""

import pytest

from stepwarp.config import AffineSettings, DeformableSettings, Level, Preset
from stepwarp.workflow.register import register
from stepwarp.workflow.registration import Registration


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test here runs on one thread."""


@pytest.fixture(scope="session")
def recipe() -> Preset:
    """Good for a brain of 4 mm, in a fraction of a second."""
    affine = AffineSettings(across=10, refine_across=(20,), candidates=2)
    levels = (Level(across=10, iterations=10), Level(across=20, iterations=10))
    return Preset(affine=affine, deformable=DeformableSettings(levels=levels))


@pytest.fixture(scope="module")
def registration(brains, recipe: Preset) -> Registration:
    """The two brains, registered. Not to be saved: saving adds to its record."""
    return register(brains.fixed, brains.moving, preset=recipe, threads=1)
