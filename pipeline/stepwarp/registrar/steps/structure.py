"""What a registrar made of steps amounts to: how many steps it takes, how finely, and how often it repeats itself."""

from __future__ import annotations

from stepwarp.geometry import Grid
from stepwarp.registrar.steps.sequences import Chain, Repeat
from stepwarp.registrar.steps.step import Step


def steps_run(step: Step) -> int:
    """How many maps one pass finds, one after the other; as many as `trace` yields."""
    parts = list(step.parts()) if isinstance(step, Chain) else _inner(step)
    return sum(map(steps_run, parts)) or 1


def finest_spacing(step: Step, grid: Grid) -> float:
    """Millimetres between the voxels of the finest grid that a step within looks at, for images on `grid`."""
    below = step.inner_grid(grid)
    return min((finest_spacing(inner, below) for inner in _inner(step)), default=float(grid.spacing.max()))


def repeats(step: Step) -> list[Repeat]:
    """The steps within that are run several times with the same weights."""
    return [module for module in step.modules() if isinstance(module, Repeat)]


def _inner(step: Step) -> list[Step]:
    return [child for child in step.children() if isinstance(child, Step)]
