"""Probe a: where the pairs stand after each step, also beyond the trained number of steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepwarp.geometry import DisplacementField, Transform
from stepwarp.kernels import jacobian, sampling
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.probes.objective import PairObjective, State
from stepwarp.registrar.steps import Images, Repeat, Step, TwoStep
from stepwarp.registrar.steps.sequences import Chain
from stepwarp.registrar.steps.structure import repeats, steps_run


@dataclass(frozen=True, eq=False)
class Taken:
    """One step as it was taken.

    psi: (B, D, *state.grid) in voxels, the step's own displacement: what its network found, and what was composed on
    the inside of the map so far, u_next = u o (id + psi). It is what the step returned, not a difference of maps.
    after: the map after it, on the grid of the pair."""

    state: State
    psi: Tensor
    after: DisplacementField


class Given(Step):
    """A map that is known, as a step: `TwoStep(Given(start), step)` goes on from it, the image interpolated once."""

    def __init__(self, found: Transform) -> None:
        super().__init__()
        self.found = found

    def forward(self, fixed: Images, moving: Images) -> Transform:
        return self.found


def trajectory(
    step: Step, fixed: Images, moving: Images, count: int | None = None, start: DisplacementField | None = None
) -> list[DisplacementField]:
    """The maps after each of `count` steps, on the images' grid.

    count: as many as one pass of `step` takes by default. Beyond it the pass begins anew from where it ended: tied
    weights are simply repeated, separate ones come again from the first on (see `lengthened` for a pyramid).
    start: the map from which the first step goes on, by default the identity. `step` is left as it was."""
    return [taken.after for taken in walk(step, fixed, moving, count, start)]


@torch.no_grad()
def walk(
    step: Step, fixed: Images, moving: Images, count: int | None = None, start: DisplacementField | None = None
) -> Iterator[Taken]:
    """`trajectory` with all that each step was given and found, one at a time."""
    run = steps_run(step)
    count = run if count is None else count
    whole: Chain = again(step, -(-count // run))
    so_far: Transform | None = start
    if start is not None:
        whole = TwoStep(Given(start), whole, lazy=whole.lazy, outside=whole.outside)
    calls: list[tuple[Images, Images, Transform]] = []
    hooks = [
        leaf.register_forward_hook(lambda _, seen, found: calls.append((seen[0], seen[1], found)))
        for leaf in _leaves(step)
    ]
    try:
        maps = whole.trace(fixed, moving)
        if start is not None:
            next(maps)
        for found in itertools.islice(maps, count):
            seen, moved, psi = calls.pop()
            # Of further channels, which `Segmented` adds, no objective knows.
            seen, moved = (Images(each.data[:, :1], each.grid) for each in (seen, moved))
            grid = seen.grid
            before = torch.zeros_like(psi.on(grid).displacement) if so_far is None else so_far.on(grid).displacement
            before = before.expand(len(moved.data), *before.shape[1:])
            so_far = found.on(fixed.grid)
            yield Taken(State(seen, moved, before), psi.on(grid).displacement, so_far)
    finally:
        for hook in hooks:
            hook.remove()


def again(step: Step, times: int) -> Repeat:
    """A step several times, composed as it composes itself."""
    if isinstance(step, Chain):
        return Repeat(step, times, step.lazy, step.outside)
    return Repeat(step, times)


@contextmanager
def lengthened(step: Step, factor: int) -> Iterator[Step]:
    """While the block runs, every `Repeat` within takes `factor` times as many steps: a pyramid stays one."""
    repeated = repeats(step)
    trained = [repeat.n for repeat in repeated]
    try:
        for repeat in repeated:
            repeat.n *= factor
        yield step
    finally:
        for repeat, n in zip(repeated, trained, strict=True):
            repeat.n = n


@torch.no_grad()
def per_step(
    maps: Iterable[DisplacementField], fixed: Images, moving: Images, objective: PairObjective
) -> dict[str, np.ndarray]:
    """Probe a: how good and how smooth the map is after each step, (1 + steps, pairs) each; row 0 is the identity.

    loss: the objective. ssd: mean squared difference. ncc: correlation, 1 is perfect. regularity: the objective's, not
    weighted. folds: share of voxels whose Jacobian determinant is not positive. rms: of the displacement, in voxels.
    step: rms of the change since the row above. All on the images' grid.
    Control: the rows beyond the trained number. Null: row 0, and the same maps on another pair (`apply_to_others`)."""
    still = identity(fixed)
    rows: list[dict[str, Tensor]] = []
    before = still
    for found in itertools.chain([still], maps):
        u = found.displacement
        moved = sampling.warp(moving.data, u, _same(fixed), outside=objective.outside)
        rows.append(
            {
                "loss": objective.values(fixed, moving, u),
                "ssd": SSD().values(fixed.data, moved),
                "ncc": 1 - NCC().values(fixed.data, moved),
                "regularity": objective.energies(u, fixed.grid),
                "folds": torch.cat([(jacobian.determinant(each) <= 0).float().mean()[None] for each in u.split(1)]),
                "rms": rms(u),
                "step": rms(u - before.displacement),
            }
        )
        before = found
    return {name: np.stack([row[name].double().cpu().numpy() for row in rows]) for name in rows[0]}


def apply_to_others(maps: Sequence[DisplacementField]) -> list[DisplacementField]:
    """The null of `per_step`: each pair is given the maps of the next one. Needs two pairs or more."""
    return [DisplacementField(others(found.displacement), found.grid) for found in maps]


def others(batch: Any) -> Any:
    """A batch (tensor or array) in which every pair is replaced by the next one, for nulls."""
    if len(batch) < 2:
        raise ValueError("a null of other pairs needs two pairs or more")
    return torch.roll(batch, 1, 0) if isinstance(batch, Tensor) else np.roll(batch, 1, 0)


def identity(images: Images) -> DisplacementField:
    """For each pair of a batch the map that moves nothing."""
    batch, _, *shape = images.data.shape
    return DisplacementField(images.data.new_zeros(batch, len(shape), *shape), images.grid)


def rms(vectors: Tensor, inside: Tensor | None = None) -> Tensor:
    """Root mean square length of (B, D, *grid), (B,), in the vectors' unit, voxels; of the voxels `inside` alone,
    (B, 1, *grid) bool, where that is given."""
    squares = vectors.square().sum(1).flatten(1)
    if inside is None:
        return squares.mean(1).sqrt()
    weight = inside.flatten(1).to(squares)
    return ((weight * squares).sum(1) / weight.sum(1)).sqrt()


def _leaves(step: Step) -> list[Step]:
    inside = [module for module in step.modules() if isinstance(module, Step)]
    return [each for each in inside if not any(isinstance(below, Step) for below in each.children())]


def _same(images: Images) -> Tensor:
    return torch.eye(images.grid.ndim + 1, dtype=torch.float64)
