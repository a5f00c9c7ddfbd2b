"""Probe h: whether the steps follow their target when it changes on the way."""

from __future__ import annotations

import numpy as np
import torch

from stepwarp.geometry import DisplacementField
from stepwarp.probes.objective import PairObjective
from stepwarp.probes.trajectory import identity, trajectory
from stepwarp.registrar.steps import Images, Step
from stepwarp.registrar.steps.structure import steps_run

#: How much of the gain has to be reached for a target to count as found.
REACHED = 0.9


@torch.no_grad()
def retarget(
    step: Step,
    first: Images,
    second: Images,
    moving: Images,
    objective: PairObjective,
    swap_at: int | None = None,
    count: int | None = None,
) -> dict[str, np.ndarray]:
    """`swap_at` steps towards the fixed images `first`, then `count` towards `second`: half of a pass, rounded up, and
    a whole one by default. Where the pass is a pyramid it begins anew at the swap.

    All are the objective against `second`: "swapped" (1 + count, pairs), row 0 at the swap; the control "straight"
    (1 + count, pairs), from the identity towards `second` alone; the null "kept" (1 + count, pairs), as swapped, but
    going on towards `first`, as steps that do not look at their target would. "before" (1 + swap_at, pairs): the way
    to the swap, against `first`.
    "steps_swapped", "steps_straight" (pairs,): steps until 90 % of what the control gains over the identity is reached
    and kept, NaN where it never is. "share" (pairs,): of the control's gain, what the swapped run has in the end, and
    "share_kept" the null's."""
    swap_at = -(-steps_run(step) // 2) if swap_at is None else swap_at
    to_first = trajectory(step, first, moving, swap_at)
    turn = to_first[-1]
    runs = {
        "swapped": [turn, *trajectory(step, second, moving, count, turn)],
        "straight": [identity(moving), *trajectory(step, second, moving, count)],
        "kept": [turn, *trajectory(step, first, moving, count, turn)],
    }
    found = {name: _losses(run, second, moving, objective) for name, run in runs.items()}
    found["before"] = _losses([identity(moving), *to_first], first, moving, objective)
    start, end = found["straight"][0], found["straight"][-1]
    gain = np.where(start > end, start - end, np.nan)
    for name in ("swapped", "straight"):
        found[f"steps_{name}"] = _steps_until(found[name], start - REACHED * gain)
    found["share"] = (start - found["swapped"][-1]) / gain
    found["share_kept"] = (start - found["kept"][-1]) / gain
    return found


def _losses(run: list[DisplacementField], fixed: Images, moving: Images, objective: PairObjective) -> np.ndarray:
    rows = [objective.values(fixed, moving, found.displacement) for found in run]
    return torch.stack(rows).double().cpu().numpy()


def _steps_until(losses: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The first row from which on all are at most `low`; NaN where the last one is not."""
    above = ~(losses <= low)
    last = len(above) - 1 - np.argmax(above[::-1], 0)
    return np.where(above[-1], np.nan, np.where(above.any(0), last + 1.0, 0.0))
