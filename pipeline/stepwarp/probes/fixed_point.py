"""Probes e and f: whether the steps have one end whatever they begin with, and whether they stay where nothing is to be
gained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from stepwarp.geometry import DisplacementField
from stepwarp.kernels import smoothing
from stepwarp.probes.objective import PairObjective
from stepwarp.probes.trajectory import identity, others, rms, trajectory, walk
from stepwarp.registrar.steps import Images, Step


def random_start(like: Images, size: float, width: float, seed: int) -> DisplacementField:
    """A smooth random map for each pair: white noise after a Gaussian of `width` voxels, scaled to a root mean square
    length of `size` voxels."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(identity(like).displacement.shape, generator=generator).to(like.data)
    noise = smoothing.gaussian(noise, width)
    return DisplacementField(noise * (size / rms(noise).view(-1, *[1] * (noise.ndim - 1))), like.grid)


@torch.no_grad()
def path_independence(
    step: Step,
    fixed: Images,
    moving: Images,
    starts: Mapping[str, DisplacementField],
    objective: PairObjective,
    count: int | None = None,
    inside: Tensor | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Probe e: runs from other starts than the identity, and how far they are from the run that began there.

    starts: name -> map, such as `random_start` and `others` of the solutions. inside: (B, 1, *grid) bool, where
    distances are taken: over an empty background no step can see how far it is. Returns name -> {"distance":
    (1 + count, pairs), root mean square distance in voxels to the run from the identity after as many steps; "to_end":
    the same to the end of that run, "loss": the objective}; "identity" has "to_end" and "loss" too.
    Control: row 0, the distance of the starts: a step that ignores its state keeps it, one with a single fixed point
    brings it to 0. Null: name "another pair", {"to_end": (1, pairs)}, how far the ends of two pairs are apart, what
    two ends that have nothing in common have; NaN for a single pair."""
    straight = [identity(fixed), *trajectory(step, fixed, moving, count)]
    end = straight[-1]
    usual = _towards(straight, end, fixed, moving, objective, inside)
    found: dict[str, dict[str, np.ndarray]] = {"identity": usual}
    for name, start in starts.items():
        run = [start, *trajectory(step, fixed, moving, count, start)]
        apart = [rms(a.displacement - b.displacement, inside) for a, b in zip(run, straight, strict=True)]
        found[name] = {"distance": _rows(apart)} | _towards(run, end, fixed, moving, objective, inside)
    u = end.displacement
    elsewhere = rms(u - others(u), inside) if len(u) > 1 else torch.full((1,), torch.nan)
    return found | {"another pair": {"to_end": _rows([elsewhere])}}


@torch.no_grad()
def stays(
    step: Step,
    fixed: Images,
    moving: Images,
    start: DisplacementField,
    objective: PairObjective,
    count: int | None = None,
    inside: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Probe f: steps from a given map: {"drift": (1 + count, pairs), root mean square distance from the start, voxels;
    "loss": the objective; "step": root mean square of each step's own displacement psi, in voxels of the pair's grid,
    row 0 being 0}. inside: where the drift is taken, as in `path_independence`.

    start: the optimum that direct optimisation found (`optimisers`), or the identity for a pair (B, B), for which
    `fixed` is given twice. An optimiser stays, and so does any step that stops; so compare with the control, the drift
    of the same pairs from the identity, and with the null, the drift from a start that is as far from the optimum as
    the step's own answer is (`disturbed`), which an optimiser leaves for the optimum."""
    maps, lengths = [start], [rms(start.displacement) * 0]
    for taken in walk(step, fixed, moving, count, start):
        maps.append(taken.after)
        voxels = taken.state.grid.spacing.mean() / fixed.grid.spacing.mean()
        lengths.append(rms(taken.psi) * float(voxels))
    drift = [rms(found.displacement - start.displacement, inside) for found in maps]
    loss = [objective.values(fixed, moving, found.displacement) for found in maps]
    return {"drift": _rows(drift), "loss": _rows(loss), "step": _rows(lengths)}


def disturbed(start: DisplacementField, like: Images, size: Tensor, width: float, seed: int) -> DisplacementField:
    """A map a root mean square of `size` (B,) voxels away from another one, in a smooth random direction."""
    noise = random_start(like, 1.0, width, seed).displacement
    return DisplacementField(start.displacement + noise * size.view(-1, *[1] * (noise.ndim - 1)), start.grid)


def _towards(
    run: list[DisplacementField],
    end: DisplacementField,
    fixed: Images,
    moving: Images,
    objective: PairObjective,
    inside: Tensor | None,
) -> dict[str, np.ndarray]:
    return {
        "to_end": _rows([rms(found.displacement - end.displacement, inside) for found in run]),
        "loss": _rows([objective.values(fixed, moving, found.displacement) for found in run]),
    }


def _rows(rows: list[Tensor]) -> np.ndarray:
    return torch.stack(rows).double().cpu().numpy()
