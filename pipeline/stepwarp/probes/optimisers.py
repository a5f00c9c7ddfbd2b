"""Probe i: what direct optimisation of the same objective does with the same number of evaluations.

All work on displacement fields, a batch of pairs at a time, each pair with a step length and memory of its own. One
evaluation is one value and gradient of the objective, of all pairs at once; a step of a network is counted as one,
since it looks at the images once. The arithmetic in between, of a network or of an optimiser, is not counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepwarp.geometry import DisplacementField
from stepwarp.kernels import smoothing
from stepwarp.probes.objective import PairObjective, inner
from stepwarp.probes.trajectory import identity
from stepwarp.registrar.steps import Images

#: Of the expected decrease, what has to come for a move to be accepted (Armijo).
_SUFFICIENT = 1e-4
#: The longest displacement in voxels of the first move, and of how much a move that failed is shortened.
_FIRST, _SHORTER, _LONGER = 0.5, 0.3, 1.5


@dataclass(frozen=True, eq=False)
class Optimised:
    """found: for each pair the best map. values: (1 + evaluations, pairs), the lowest objective reached after so many
    evaluations and as many moves; row 0 at the start. The move after the last evaluation is judged by one more value,
    without its gradient, which is not counted. evaluations: of the value and its gradient."""

    found: DisplacementField
    values: np.ndarray
    evaluations: int


def gradient_descent(
    objective: PairObjective,
    fixed: Images,
    moving: Images,
    evaluations: int,
    start: DisplacementField | None = None,
    smooth: float = 0.0,
) -> Optimised:
    """Steepest descent; a move that does not pay is taken back and shortened, one that does is followed by a longer.

    smooth: sigma in voxels of a Gaussian on the gradient. start: the identity by default."""
    return _line_searched(objective, fixed, moving, evaluations, start, _Steepest(smooth))


def lbfgs(
    objective: PairObjective,
    fixed: Images,
    moving: Images,
    evaluations: int,
    start: DisplacementField | None = None,
    memory: int = 10,
) -> Optimised:
    """L-BFGS with backtracking (Nocedal & Wright, algorithm 7.4), every evaluation of the line search counted."""
    return _line_searched(objective, fixed, moving, evaluations, start, _TwoLoops(memory))


def adam(
    objective: PairObjective,
    fixed: Images,
    moving: Images,
    evaluations: int,
    start: DisplacementField | None = None,
    rate: float = 0.1,
) -> Optimised:
    """Adam (0.9, 0.999) on every component; rate: in voxels, about how far each moves at first."""
    x = _start(fixed, start)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    best, lowest, rows = x, None, []
    for done in range(1, evaluations + 1):
        value, gradient = objective.value_and_gradient(fixed, moving, x)
        best, lowest = _better(best, lowest, x, value)
        rows.append(lowest)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        x = x - rate * (first / (1 - 0.9**done)) / ((second / (1 - 0.999**done)).sqrt() + 1e-12)
    best, lowest = _better(best, lowest, x, _judged(objective, fixed, moving, x))
    return _optimised(best, [*rows, lowest], fixed, evaluations)


#: Name -> optimiser, all called as (objective, fixed, moving, evaluations, start).
OPTIMISERS: dict[str, Callable[..., Optimised]] = {
    "gradient descent": gradient_descent,
    "Adam": adam,
    "L-BFGS": lbfgs,
}


def compare(
    losses: np.ndarray,
    objective: PairObjective,
    fixed: Images,
    moving: Images,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, np.ndarray]:
    """Probe i: every optimiser with as many evaluations as the network had steps: name -> (1 + steps, pairs), the
    objective.

    losses: (1 + steps, pairs) of the network, as "loss" of `per_step`, returned as "network". Control: row 0, where all
    are alike. Null: "none", which stays there. settings: of an optimiser, by its name, as {"Adam": {"rate": 0.1}}, to
    be chosen on other pairs than these."""
    count = len(losses) - 1
    found = {"network": losses, "none": np.repeat(losses[:1], count + 1, 0)}
    for name, optimiser in OPTIMISERS.items():
        found[name] = optimiser(objective, fixed, moving, count, **(settings or {}).get(name, {})).values
    return found


class _Steepest:
    """Directions of steepest descent, the length carried over from one move to the next."""

    def __init__(self, smooth: float) -> None:
        self.smooth = smooth

    def length(self, last: Tensor, worked: Tensor) -> Tensor:
        return torch.where(worked, _LONGER * last, _SHORTER * last)

    def downhill(self, gradient: Tensor) -> Tensor:
        return -smoothing.gaussian(gradient, self.smooth)

    def direction(self, downhill: Tensor, move: Tensor, change: Tensor, worked: Tensor) -> Tensor:
        return downhill


class _TwoLoops:
    """Directions of L-BFGS, from the last moves that each pair accepted."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.moves: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scale: Tensor | None = None

    def length(self, last: Tensor, worked: Tensor) -> Tensor:
        return torch.where(worked, torch.ones_like(last), _SHORTER * last)

    def downhill(self, gradient: Tensor) -> Tensor:
        return -gradient

    def direction(self, downhill: Tensor, move: Tensor, change: Tensor, worked: Tensor) -> Tensor:
        """downhill: scaled to the length of a first move, which is kept until a curvature is known."""
        scale = self._remember(move, change, worked)
        q, shares = downhill, []
        for s, y, weight in reversed(self.moves):
            share = weight * inner(s, q)
            q = q - share * y
            shares.append(share)
        q = scale * q
        for (s, y, weight), share in zip(self.moves, reversed(shares), strict=True):
            q = q + (share - weight * inner(y, q)) * s
        return q

    def _remember(self, s: Tensor, y: Tensor, worked: Tensor) -> Tensor:
        """A move and its change of gradient; of no weight for pairs that took none, or found no curvature in it."""
        curvature, squared = inner(s, y), inner(y, y)
        useful = worked & (curvature > 1e-8 * (squared * inner(s, s)).sqrt())
        weight = torch.where(useful, 1 / torch.where(useful, curvature, 1.0), 0.0)
        ratio = torch.where(useful, curvature / torch.where(useful, squared, 1.0), 0.0)
        self.scale = torch.where(useful, ratio, torch.ones_like(ratio) if self.scale is None else self.scale)
        self.moves = [*self.moves, (s, y, weight)][-self.memory :]
        return self.scale


def _line_searched(
    objective: PairObjective,
    fixed: Images,
    moving: Images,
    evaluations: int,
    start: DisplacementField | None,
    method: _Steepest | _TwoLoops,
) -> Optimised:
    """Trial points, one evaluation each; every pair accepts or shortens its own move.

    The gradient is divided by its pair's `unit` throughout, so that minus the first one is a first move: it is that of
    a mean over voxels, and so small that its products would leave the range of single precision."""
    if evaluations < 1:
        raise ValueError(f"an optimiser needs one evaluation or more, not {evaluations}")
    x = _start(fixed, start)
    value, gradient = objective.value_and_gradient(fixed, moving, x)
    each = (len(x), *[1] * (x.ndim - 1))
    longest = method.downhill(gradient).square().sum(1).flatten(1).amax(1).sqrt().view(each)
    unit = (longest / _FIRST).clamp_min(1e-30)
    value, gradient = value.view(each), gradient / unit
    direction, length = method.downhill(gradient), torch.ones_like(unit)
    rows = [value.flatten()]
    trial = x + direction
    for _ in range(evaluations - 1):
        found, steepness = objective.value_and_gradient(fixed, moving, trial)
        found, steepness = found.view(each), steepness / unit
        worked = found <= value + _SUFFICIENT * length * unit * inner(gradient, direction)
        move, change = torch.where(worked, trial - x, 0.0), torch.where(worked, steepness - gradient, 0.0)
        x, gradient, value = x + move, gradient + change, torch.where(worked, found, value)
        downhill = method.downhill(gradient)
        onwards = method.direction(downhill, move, change, worked)
        onwards = torch.where(inner(onwards, gradient) < 0, onwards, downhill)
        direction = torch.where(worked, onwards, direction)
        length = method.length(length, worked)
        rows.append(value.flatten())
        trial = x + length * direction
    best, lowest = _better(x, rows[-1], trial, _judged(objective, fixed, moving, trial))
    return _optimised(best, [*rows, lowest], fixed, evaluations)


def _start(fixed: Images, start: DisplacementField | None) -> Tensor:
    return (identity(fixed) if start is None else start).displacement.detach().clone()


def _better(best: Tensor, lowest: Tensor | None, x: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    if lowest is None:
        return x, value
    lower = value < lowest
    return torch.where(lower.view(-1, *[1] * (x.ndim - 1)), x, best), torch.where(lower, value, lowest)


@torch.no_grad()
def _judged(objective: PairObjective, fixed: Images, moving: Images, x: Tensor) -> Tensor:
    return objective.values(fixed, moving, x)


def _optimised(best: Tensor, rows: list[Any], fixed: Images, evaluations: int) -> Optimised:
    return Optimised(DisplacementField(best, fixed.grid), torch.stack(rows).double().cpu().numpy(), evaluations)
