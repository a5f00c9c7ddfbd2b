"""What a step is, and how a registrar made of steps describes itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from stepwarp.geometry import Grid, Transform
from stepwarp.kernels.precision import without_tf32
from stepwarp.registrar.steps.images import Images


class Step(nn.Module):
    """Finds a map from the fixed to the moving images, which lie on one grid.

    Keeps nothing of what it has seen: no image, shape, device or coordinates."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        # What comes out is a position, and what leads there is not computed any more coarsely than it asks for.
        with without_tf32():
            return super().__call__(*given, **named)

    def forward(self, fixed: Images, moving: Images) -> Transform:
        raise NotImplementedError

    def trace(self, fixed: Images, moving: Images) -> Iterator[Transform]:
        """The map after each of the steps within, the last of them what `forward` returns.

        For looking on and for losses on the way; costs compositions that `forward` saves."""
        yield self(fixed, moving)

    def inner_grid(self, grid: Grid) -> Grid:
        """The grid of the images that the steps within see when this step is given images on `grid`."""
        return grid

    @property
    def title(self) -> str:
        """What a summary calls this step."""
        return type(self).__name__

    def __repr__(self) -> str:
        return describe(self)


def describe(registrar: Step, grid: Grid | None = None) -> str:
    """One line per step, indented under the step that it is part of, with the number of its parameters.

    grid: of the images that the registrar will be given; the lines then name the grid that each network runs on.
    Weights that several steps share count once in the steps above them."""
    return "\n".join(_lines(registrar, grid, "", ""))


def parameters(module: nn.Module) -> int:
    """How many numbers training can change."""
    return sum(weights.numel() for weights in module.parameters())


def _lines(step: Step, grid: Grid | None, first: str, rest: str) -> list[str]:
    # Not `children()`, which lists a module that stands in two places once.
    inner = [child for child in step._modules.values() if isinstance(child, Step)]
    where = f", on {grid!r}" if grid is not None and not inner else ""
    lines = [f"{first}{step.title}{where}: {parameters(step):,} parameters"]
    below = None if grid is None else step.inner_grid(grid)
    for number, child in enumerate(inner, 1):
        last = number == len(inner)
        lines += _lines(child, below, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))
    return lines
