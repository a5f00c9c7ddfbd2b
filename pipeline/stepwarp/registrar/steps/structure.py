"""What a registrar made of steps amounts to: how many steps it takes, how finely, and how often it repeats itself."""

from __future__ import annotations

from stepwarp.geometry import Grid
from stepwarp.registrar.steps.config import MOST_STEPS
from stepwarp.registrar.steps.sequences import Repeat, TwoStep
from stepwarp.registrar.steps.step import Step

__all__ = ["MOST_STEPS", "finest_spacing", "repeats", "steps_run"]


def steps_run(step: Step) -> int:
    """How many maps one pass finds, one after the other; as many as `trace` yields."""
    times = step.n if isinstance(step, Repeat) else 1
    return times * sum(map(steps_run, _parts(step))) or 1


def finest_spacing(step: Step, grid: Grid) -> float:
    """Millimetres between the voxels of the finest grid that a step within looks at, for images on `grid`."""
    below = step.inner_grid(grid)
    return min((finest_spacing(inner, below) for inner in _inner(step)), default=float(grid.spacing.max()))


def repeats(step: Step) -> list[Repeat]:
    """The steps within that are run several times with the same weights."""
    return [module for module in step.modules() if isinstance(module, Repeat)]


def _parts(step: Step) -> list[Step]:
    """The steps within by their places: weights that stand in two are run twice."""
    return [step.first, step.second] if isinstance(step, TwoStep) else _inner(step)


def _inner(step: Step) -> list[Step]:
    return [child for child in step.children() if isinstance(child, Step)]
