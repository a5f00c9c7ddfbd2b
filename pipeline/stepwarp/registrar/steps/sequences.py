"""The steps made of steps: one after the other, the same one again, on coarser images."""

from __future__ import annotations

from collections.abc import Iterator

from stepwarp.geometry import Grid, Transform
from stepwarp.kernels.sampling import Outside
from stepwarp.registrar.steps.images import Images, corner_aligned_grid
from stepwarp.registrar.steps.step import Step


class Chain(Step):
    """Steps one after the other: each is given the moving image as the maps so far have warped it.

    phi, the map so far, becomes phi after psi with the psi that the next step finds. It is collapsed onto the fixed
    grid at once, so a step costs one composition of fields and one warp of the image, however many came before. What
    is warped is always the moving image itself, once, also where a chain stands within a chain.

    lazy: compose without sampling, exactly; the n-th step then reads n fields. outside: what a step sees beyond the
    moving image, its border repeated as in icon_registration, or 0."""

    def __init__(self, lazy: bool, outside: Outside) -> None:
        super().__init__()
        self.lazy = lazy
        self.outside: Outside = outside

    def parts(self) -> Iterator[Step]:
        """The steps in their order, chains within dissolved into theirs."""
        raise NotImplementedError

    def forward(self, fixed: Images, moving: Images) -> Transform:
        found = None
        for step in self.parts():
            found = self._after(found, step(fixed, self._moved(moving, found)), fixed.grid)
        assert found is not None
        return found

    def trace(self, fixed: Images, moving: Images) -> Iterator[Transform]:
        found = None
        for step in self.parts():
            for psi in step.trace(fixed, self._moved(moving, found)):
                so_far = self._after(found, psi, fixed.grid)
                yield so_far
            found = so_far

    def _moved(self, moving: Images, found: Transform | None) -> Images:
        return moving if found is None else moving.warp(found, self.outside)

    def _after(self, found: Transform | None, psi: Transform, grid: Grid) -> Transform:
        whole = psi if found is None else found @ psi
        return whole if self.lazy else whole.collapsed(grid)


class TwoStep(Chain):
    """phi = first(fixed, moving); psi = second(fixed, moving o phi); the result is phi after psi."""

    def __init__(self, first: Step, second: Step, lazy: bool = False, outside: Outside = "zero") -> None:
        super().__init__(lazy, outside)
        self.first = first
        self.second = second

    def parts(self) -> Iterator[Step]:
        yield from _dissolved(self.first)
        yield from _dissolved(self.second)


class Repeat(Chain):
    """One step `n` times, with the same weights: n may be set anew at any time, also beyond what was trained.

    used: how often in evaluation mode, if not as often as in training: a step more costs little there."""

    def __init__(
        self, step: Step, n: int, lazy: bool = False, outside: Outside = "zero", used: int | None = None
    ) -> None:
        super().__init__(lazy, outside)
        self.step = step
        self.n = n
        if used is not None:
            self._used = _once_at_least(used)

    @property
    def n(self) -> int:
        return self._n if self.training else self._used

    @n.setter
    def n(self, n: int) -> None:
        self._n = self._used = _once_at_least(n)

    def parts(self) -> Iterator[Step]:
        for _ in range(self.n):
            yield from _dissolved(self.step)

    @property
    def title(self) -> str:
        return f"Repeat, {self.n} times"


class Downsampled(Step):
    """A step on images pooled by `factor`. What it finds is a map of the world, so it holds on any grid.

    corner_aligned: with the half-voxel offset of icon_registration, see `Images.pooled`."""

    def __init__(self, step: Step, factor: int = 2, corner_aligned: bool = False) -> None:
        super().__init__()
        self.step = step
        self.factor = factor
        self.corner_aligned = corner_aligned

    def forward(self, fixed: Images, moving: Images) -> Transform:
        return self.step(*self._pooled(fixed, moving))

    def trace(self, fixed: Images, moving: Images) -> Iterator[Transform]:
        yield from self.step.trace(*self._pooled(fixed, moving))

    def inner_grid(self, grid: Grid) -> Grid:
        if self.corner_aligned:
            return corner_aligned_grid(grid, self.factor)
        return grid.coarser(self.factor)

    @property
    def title(self) -> str:
        return f"Downsampled by {self.factor}" + (", corners aligned" if self.corner_aligned else "")

    def _pooled(self, fixed: Images, moving: Images) -> tuple[Images, Images]:
        return fixed.pooled(self.factor, self.corner_aligned), moving.pooled(self.factor, self.corner_aligned)


def _once_at_least(n: int) -> int:
    if n < 1:
        raise ValueError(f"a step can be repeated once or more often, not {n} times")
    return n


def _dissolved(step: Step) -> Iterator[Step]:
    if isinstance(step, Chain):
        yield from step.parts()
    else:
        yield step
