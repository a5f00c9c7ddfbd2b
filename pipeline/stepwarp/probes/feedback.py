"""Probe g: how much of what the steps gain needs that each sees what the one before has done."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from stepwarp.geometry import DisplacementField, Grid, Transform
from stepwarp.probes.objective import PairObjective
from stepwarp.probes.trajectory import again, identity, others, trajectory, walk
from stepwarp.registrar.steps import Downsampled, Images, Step
from stepwarp.registrar.steps.sequences import Chain
from stepwarp.registrar.steps.structure import steps_run

FULL, BLIND, MEAN, ONCE, OTHERS = "full", "blind", "mean steps", "first step only", "steps of another pair"


@torch.no_grad()
def feedback(
    step: Step,
    fixed: Images,
    moving: Images,
    objective: PairObjective,
    count: int | None = None,
    calibration: tuple[Images, Images] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Runs with less and less feedback: {"loss": variant -> (1 + count, pairs), the objective after each step, row 0 at
    the identity; "surviving": variant -> (pairs,), its gain at the end over that of the full run; "best": the same of
    the best row, since a run without feedback may overshoot}.

    "full": as it is. "blind": every step sees the moving image as it was, not warped. "mean steps": each step is
    replaced by its mean over the pairs of `calibration` (fixed, moving), or, without, over all other pairs of the
    batch. Control: "first step only". Null: "steps of another pair". Those that need other pairs are left out where
    the batch has one pair. NaN where the full run gains nothing."""
    count = steps_run(step) if count is None else count
    taken = [DisplacementField(each.psi, each.state.grid) for each in walk(step, fixed, moving, count)]
    still = identity(fixed)
    runs = {FULL: trajectory(step, fixed, moving, count), BLIND: _composed(blind(step, fixed, moving, count), fixed)}
    runs[ONCE] = [runs[FULL][0]] * count
    if calibration is not None:
        known = [DisplacementField(each.psi, each.state.grid) for each in walk(step, *calibration, count)]
        runs[MEAN] = _composed((_mean_of(each, len(fixed.data)) for each in known), fixed)
    elif len(fixed.data) > 1:
        runs[MEAN] = _composed((_mean_of_rest(each) for each in taken), fixed)
    if len(fixed.data) > 1:
        runs[OTHERS] = _composed((DisplacementField(others(each.displacement), each.grid) for each in taken), fixed)
    loss = {
        name: np.stack([_numpy(objective.values(fixed, moving, found.displacement)) for found in [still, *run]])
        for name, run in runs.items()
    }
    gain = loss[FULL][0] - loss[FULL][-1]
    gain = np.where(gain > 0, gain, np.nan)
    return {
        "loss": loss,
        "surviving": {name: (values[0] - values[-1]) / gain for name, values in loss.items()},
        "best": {name: (values[0] - values.min(0)) / gain for name, values in loss.items()},
    }


def blind(step: Step, fixed: Images, moving: Images, count: int) -> Iterator[Transform]:
    """What each of `count` steps finds where the moving image stays unwarped."""
    found = _blind(again(step, -(-count // steps_run(step))), fixed, moving)
    for _ in range(count):
        yield next(found)


def _blind(step: Step, fixed: Images, moving: Images) -> Iterator[Transform]:
    if isinstance(step, Chain):
        for part in step.parts():
            yield from _blind(part, fixed, moving)
    elif isinstance(step, Downsampled):
        pooled = (images.pooled(step.factor, step.corner_aligned) for images in (fixed, moving))
        yield from _blind(step.step, *pooled)
    else:
        yield step(fixed, moving)


def _composed(steps: Iterator[Transform], images: Images) -> list[DisplacementField]:
    """The maps after each of some steps, on the images' grid."""
    maps: list[DisplacementField] = []
    found: Transform = identity(images)
    for psi in steps:
        found = (found @ psi).collapsed(images.grid)
        maps.append(found.on(images.grid))
    return maps


def _mean_of(psi: DisplacementField, batch: int) -> DisplacementField:
    return _field(psi.displacement.mean(0, keepdim=True).expand(batch, *psi.displacement.shape[1:]), psi.grid)


def _mean_of_rest(psi: DisplacementField) -> DisplacementField:
    """For each pair the mean of all others, so that none is told its own answer."""
    u = psi.displacement
    return _field((u.sum(0, keepdim=True) - u) / (len(u) - 1), psi.grid)


def _field(displacement: Tensor, grid: Grid) -> DisplacementField:
    return DisplacementField(displacement.contiguous(), grid)


def _numpy(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.double().cpu().numpy()
    return found
