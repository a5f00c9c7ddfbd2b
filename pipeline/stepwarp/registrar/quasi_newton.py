"""Several small problems minimised side by side, on their device: BFGS (Nocedal and Wright, Numerical Optimization,
2006, 6.1), with steps that are shortened until they lower the value.

Each round tries one point of every problem with one call, however they get on: one goes on from its point, another one
shortens its step. Those that have ended are left out: on a processor at once, on a GPU every few rounds, because to ask
it is to wait for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from stepwarp.progress import is_over

#: Points (n, P) and the problems that they belong to (n,) -> values (n,) and gradients (n, P), in double precision.
Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

#: A GPU is asked every so many rounds.
_EVERY = 5
#: Of what the slope promises, the share that a step has to lower the value by.
_ENOUGH = 1e-4
#: A step that does not is shortened to the lowest point of a parabola, but to these shares of it at least and at most.
_SHORTEST, _LONGEST = 0.1, 0.5
#: Of a step and the change of the gradient along it, the cosine from which on the value is curved upwards.
_CURVED = 1e-10


@dataclass(frozen=True, eq=False)
class _Problems:
    """Those at work, n of them: which (n,), where each is (n, P), its value (n,) and gradient (n, P) there, the inverse
    of its curvature as far as known (n, P, P), whether that is but a guess (n,), the step to be tried (n, P), and
    whether it has ended (n,)."""

    which: Tensor
    points: Tensor
    values: Tensor
    gradients: Tensor
    inverse: Tensor
    guessed: Tensor
    step: Tensor
    ended: Tensor

    @classmethod
    def begun(cls, points: Tensor, values: Tensor, gradients: Tensor, length: float) -> _Problems:
        """At their starts, to go down the slope by so much."""
        which = torch.arange(len(points), device=points.device)
        by = length / gradients.norm(dim=1).clamp_min(1e-300)
        inverse = by[:, None, None] * torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
        ended = torch.zeros_like(which, dtype=torch.bool)
        return cls(which, points, values, gradients, inverse, ~ended, -by[:, None] * gradients, ended)

    def tried(self, values: Tensor, gradients: Tensor, tolerance: float) -> _Problems:
        """Once the points to which the steps lead have been evaluated."""
        promised = (self.gradients * self.step).sum(1)
        gain = self.values - values
        lower = gain >= -_ENOUGH * promised
        on = lower & ~self.ended
        inverse, curved = self._learnt(gradients)
        shorter = (promised / (2 * (promised + gain))).nan_to_num(_SHORTEST).clamp(_SHORTEST, _LONGEST)
        onwards = -(inverse @ gradients[:, :, None])[:, :, 0]
        ahead = -(gradients * onwards).sum(1) / 2
        over = torch.where(lower, torch.maximum(gain, ahead), -promised) <= tolerance
        return _Problems(
            self.which,
            torch.where(on[:, None], self.points + self.step, self.points),
            torch.where(on, values, self.values),
            torch.where(on[:, None], gradients, self.gradients),
            torch.where(on[:, None, None], inverse, self.inverse),
            self.guessed & ~(on & curved),
            torch.where(lower[:, None], onwards, shorter[:, None] * self.step),
            self.ended | over,
        )

    def _learnt(self, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """What the gradients after the step say of the inverse curvature, and for which they say anything. Where the
        slope did not rise along it, the next step shall be longer."""
        step, change = self.step, gradients - self.gradients
        along = (step * change).sum(1)
        curved = along > _CURVED * step.norm(dim=1) * change.norm(dim=1)
        one = torch.eye(step.shape[1], dtype=step.dtype, device=step.device)
        guess = (along / change.square().sum(1))[:, None, None] * one
        known = torch.where(self.guessed[:, None, None], guess, self.inverse)
        part = step[:, :, None] / along[:, None, None]
        left = one - part * change[:, None, :]
        updated = left @ known @ left.mT + part * step[:, None, :]
        return torch.where(curved[:, None, None], updated, 2 * self.inverse), curved

    def only(self, kept: Tensor) -> _Problems:
        return _Problems(*(getattr(self, each.name)[kept] for each in fields(self)))


def minimised(
    function: Function,
    start: Tensor,
    length: float,
    rounds: int,
    tolerance: float,
    deadline: float | None = None,
    ended: Callable[[list[float]], None] = lambda values: None,
) -> tuple[Tensor, Tensor, bool]:
    """The best points (N, P) that were found from `start`, their values (N,), and whether all came to an end before the
    deadline.

    length: of the first steps. rounds: how many points of each are tried at most. tolerance: a problem ends with a step
    that lowers its value by no more than this, after which no more is promised, or one that cannot promise as much.
    deadline: a `time.monotonic()` after which nothing more is tried; the starts are evaluated all the same. ended: is
    told the values of those that have ended, and of the others at the end."""
    every = 1 if start.device.type == "cpu" else _EVERY
    points, values = start.clone(), start.new_empty(len(start))
    problems = _Problems.begun(start, *function(start, torch.arange(len(start), device=start.device)), length)
    over = False
    for n in range(rounds):
        if n % every == 0:
            problems = _settled(problems, points, values, ended)
            over = is_over(deadline)
            if over or not len(problems.which):
                break
        problems = problems.tried(*function(problems.points + problems.step, problems.which), tolerance)
    problems = _settled(problems, points, values, ended)
    if len(problems.which):
        ended(problems.values.tolist())
    return points, values, not (over and len(problems.which))


def _settled(problems: _Problems, points: Tensor, values: Tensor, ended: Callable[[list[float]], None]) -> _Problems:
    """Those that have not ended; where all of them are goes into `points` and `values`."""
    points[problems.which], values[problems.which] = problems.points, problems.values
    over = problems.values[problems.ended].tolist()
    if not over:
        return problems
    ended(over)
    return problems.only(~problems.ended)
