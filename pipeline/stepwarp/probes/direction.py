"""Probe b: whether the steps go where the objective falls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from stepwarp.geometry import DisplacementField
from stepwarp.kernels import jacobian, sampling, smoothing
from stepwarp.probes.objective import PairObjective, gauss_newton, inner
from stepwarp.probes.trajectory import Taken, others

#: Gaussian sigmas, in voxels of the step's grid, with which gradients are smoothed.
WIDTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)

RAW, NEWTON, FINAL = "raw", "gauss-newton", "final answer"
_REFINEMENTS = 8

#: How the null of a direction is called.
OF_ANOTHER = " of another pair"


def direction(
    steps: Iterable[Taken], objective: PairObjective, final: DisplacementField, widths: Sequence[float] = WIDTHS
) -> dict[str, np.ndarray]:
    """The cosine, per pair over all voxels and components, of each step's own displacement psi with directions that
    it may follow: name -> (steps, pairs). 0 is what unrelated directions have, 1 is the same.

    steps: of `trajectory.walk`. psi is what the step composed, u_next = u o (id + psi), so the gradient is the one with
    respect to a displacement composed there, at the state and on the grid that the step saw.

    "raw": the negative gradient. "smooth S": after a Gaussian of S voxels. "gauss-newton": see `gauss_newton`; absent
    where there is none. Controls: the same with " of another pair", the same direction at the same step of the next
    pair of the batch, which shows what all pairs have in common (NaN for a single pair); and "final answer", the way
    from here to the map `final` that the steps end with, u^-1 o final - id: a step that jumps to its answer has it at
    1, as the last step has by definition. NaN where psi or the direction is 0."""
    rows: list[dict[str, np.ndarray]] = []
    for taken in steps:
        rows.append(
            {
                name: cosine(taken.psi, found).double().cpu().numpy()
                for name, found in directions(taken, objective, final, widths).items()
            }
        )
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@torch.no_grad()
def directions(
    taken: Taken, objective: PairObjective, final: DisplacementField, widths: Sequence[float] = WIDTHS
) -> dict[str, Tensor]:
    """What `direction` compares a step with, (B, D, *grid of the step) each."""
    downhill = -objective.gradient(taken.state)
    found = {RAW: downhill, **{smooth(width): smoothing.gaussian(downhill, width) for width in widths}}
    newton = gauss_newton(taken.state, objective)
    if newton is not None:
        found[NEWTON] = newton
    for name, vectors in list(found.items()):
        found[name + OF_ANOTHER] = others(vectors) if len(vectors) > 1 else torch.full_like(vectors, torch.nan)
    found[FINAL] = towards(final, taken)
    return found


def smooth(width: float) -> str:
    """What the gradient after a Gaussian of this width is called."""
    return f"smooth {width:g}"


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of each pair's vectors (B, D, *grid) as a whole, (B,); NaN where either is 0."""
    # In double precision: a field of a million voxels is summed.
    a, b = a.double(), b.double()
    return (inner(a, b) / (inner(a, a) * inner(b, b)).sqrt()).flatten()


def towards(final: DisplacementField, taken: Taken) -> Tensor:
    """The psi that would lead from a step's state to `final` at once, (B, D, *grid of the step)."""
    so_far, target = taken.state.displacement, final.on(taken.state.grid).displacement
    back = torch.cat([jacobian.invert(each) for each in so_far.split(1)])
    found = sampling.compose(back, target)
    missing = target - sampling.compose(so_far, found)
    # The inverse was interpolated: at each voxel what is still missing is added for as long as that helps.
    for _ in range(_REFINEMENTS):
        trial = found + missing
        then = target - sampling.compose(so_far, trial)
        helps = then.square().sum(1, keepdim=True) < missing.square().sum(1, keepdim=True)
        found, missing = torch.where(helps, trial, found), torch.where(helps, then, missing)
    return found
