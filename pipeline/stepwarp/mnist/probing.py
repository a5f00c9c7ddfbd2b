"""The probes of the study, each run for one seed on the held-out pairs. The definition, the control and the null of
each stand with its implementation in `stepwarp.probes`, and in `pull` for d; what of them is used is said here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stepwarp.geometry import DisplacementField
from stepwarp.mnist.classifier import Instruments
from stepwarp.mnist.config import Settings
from stepwarp.mnist.models import MODELS, TIED
from stepwarp.mnist.pull import pull
from stepwarp.probes import feedback as probe_g
from stepwarp.probes.direction import direction
from stepwarp.probes.fixed_point import disturbed, path_independence, random_start, stays
from stepwarp.probes.inner_objective import candidates, inner_objective
from stepwarp.probes.objective import PairObjective, smoothed
from stepwarp.probes.optimisers import OPTIMISERS, compare, lbfgs
from stepwarp.probes.retarget import retarget
from stepwarp.probes.trajectory import apply_to_others, identity, others, per_step, rms, trajectory, walk
from stepwarp.registrar.steps import Images, Step

Pairs = tuple[Images, Images]
#: Nested names -> arrays whose last axis is the pairs.
Found = dict[str, Any]

#: The Gaussian, in pixels, on all gradients of probe c's second fit.
SMOOTH = 2.0
#: Random starts of probe e, root mean square pixels, and how smooth they are.
STARTS, WIDTH = (1.0, 3.0), 3.0
#: What probe i chooses among, on training pairs.
_CHOICES: dict[str, list[dict[str, float]]] = {
    "gradient descent": [{"smooth": s} for s in (0.0, 1.0, 2.0)],
    "Adam": [{"rate": r} for r in (0.1, 0.3, 1.0)],
    "L-BFGS": [{}],
}


@dataclass(frozen=True, eq=False)
class Bench:
    """All that a probe of one seed needs. steps: model -> the trained network. fives, sevens, ones: held-out pairs.
    calibration: training pairs of 5s, as many. evaluations: of direct optimisation to its end."""

    settings: Settings
    objective: PairObjective
    steps: Mapping[str, Step]
    instruments: Instruments
    fives: Pairs
    sevens: Pairs
    ones: Pairs
    calibration: Pairs
    evaluations: int
    seed: int

    @property
    def sets(self) -> dict[str, Pairs]:
        return {"5": self.fives, "7": self.sevens}

    @property
    def tied(self) -> Step:
        return self.steps[TIED]

    @property
    def count(self) -> int:
        return self.settings.steps


def trajectories(bench: Bench) -> Found:
    """a. After each step, to 2 and 4 times the trained number, on 5s and 7s. "null": the last trained map on another
    pair, one row."""
    found: Found = {}
    for name, (fixed, moving) in bench.sets.items():
        maps = trajectory(bench.tied, fixed, moving, bench.settings.later * bench.count)
        found[name] = per_step(maps, fixed, moving, bench.objective)
        swapped = apply_to_others([maps[bench.count - 1]])
        found[f"{name} null"] = {
            key: rows[1:] for key, rows in per_step(swapped, fixed, moving, bench.objective).items()
        }
    return found


def directions(bench: Bench) -> Found:
    """b. The cosine of each step with what it may follow, on 5s and 7s."""
    found: Found = {}
    for name, pairs in bench.sets.items():
        taken = list(walk(bench.tied, *pairs, bench.count))
        found[name] = direction(taken, bench.objective, taken[-1].after)
    return found


def inner_objectives(bench: Bench) -> Found:
    """c. The regression on the gradients themselves, and on all of them after the same Gaussian: the first half of the
    pairs is fitted, the second is judged on."""
    every = candidates() | bench.instruments.candidates()
    ways = {"raw": every, "smooth": {name: smoothed(each, SMOOTH) for name, each in every.items()}}
    found: Found = {}
    for name, pairs in bench.sets.items():
        taken = list(walk(bench.tied, *pairs, bench.count))
        half = len(pairs[0].data) // 2
        order = range(len(pairs[0].data))
        found[name] = {way: inner_objective(taken, each, order[:half], order[half:]) for way, each in ways.items()}
    return found


def pulls(bench: Bench) -> Found:
    """d. See `pull`; for twice the trained number of steps."""
    sets = (bench.sevens, bench.ones, bench.fives)
    return dict(pull(dict(bench.steps), *sets, bench.instruments, bench.objective, 2 * bench.count))


def paths(bench: Bench) -> Found:
    """e. From random starts, and from another pair's solution, for four times the trained number of steps."""
    fixed, moving = bench.fives
    solutions = trajectory(bench.tied, fixed, moving, bench.count)[-1]
    starts = {f"random {size:g}": random_start(fixed, size, WIDTH, bench.seed) for size in STARTS}
    starts["another's solution"] = DisplacementField(others(solutions.displacement), fixed.grid)
    count = bench.settings.later * bench.count
    return dict(path_independence(bench.tied, fixed, moving, starts, bench.objective, count))


def staying(bench: Bench) -> Found:
    """f. Started at the optimum that L-BFGS found, at (B, B), from the identity (control), and from as far beside the
    optimum as the network's own answer is (null)."""
    fixed, moving = bench.fives
    optimum = lbfgs(bench.objective, fixed, moving, bench.evaluations).found
    answer = trajectory(bench.tied, fixed, moving, bench.count)[-1]
    away = rms(answer.displacement - optimum.displacement)
    runs = {
        "optimum": (fixed, moving, optimum),
        "identity": (fixed, moving, identity(fixed)),
        "beside": (fixed, moving, disturbed(optimum, fixed, away, WIDTH, bench.seed)),
        "same image": (fixed, fixed, identity(fixed)),
    }
    found: Found = {name: stays(bench.tied, *run, bench.objective, bench.count) for name, run in runs.items()}
    return found | {"from optimum to answer": away.numpy()[None]}


def feedbacks(bench: Bench) -> Found:
    """g. Without feedback: blind steps, and the mean steps of training pairs."""
    return {
        name: probe_g.feedback(bench.tied, *pairs, bench.objective, bench.count, bench.calibration)
        for name, pairs in bench.sets.items()
    }


def retargeting(bench: Bench) -> Found:
    """h. The target exchanged half-way for that of another pair, and for twice the trained number of steps after."""
    fixed, moving = bench.fives
    second = Images(others(fixed.data), fixed.grid)
    return dict(retarget(bench.tied, fixed, second, moving, bench.objective, count=2 * bench.count))


def optimisers(bench: Bench) -> Found:
    """i. The same number of evaluations; settings chosen on training pairs. "to the end": L-BFGS, run long."""
    settings = {name: _best(name, choices, bench) for name, choices in _CHOICES.items()}
    found: Found = {}
    for name, (fixed, moving) in bench.sets.items():
        losses = per_step(trajectory(bench.tied, fixed, moving, bench.count), fixed, moving, bench.objective)["loss"]
        found[name] = compare(losses, bench.objective, fixed, moving, settings)
        found[name]["to the end"] = lbfgs(bench.objective, fixed, moving, bench.evaluations).values
    return found


def variants(bench: Bench) -> Found:
    """j. Tied and separate weights, one trained step repeated, and convolutions: the steps' gain on 5s and 7s to twice
    the trained number, their direction, what is left of the gain when they are blind, and whether they re-target."""
    found: Found = {}
    fixed, moving = bench.fives
    second = Images(others(fixed.data), fixed.grid)
    for name in (TIED, *(m.name for m in MODELS.values() if m.kind != "tied")):
        step = bench.steps[name]
        each: Found = {}
        for digit, pairs in bench.sets.items():
            each[digit] = per_step(trajectory(step, *pairs, 2 * bench.count), *pairs, bench.objective)
        each["surviving"] = probe_g.feedback(step, fixed, moving, bench.objective, bench.count)["surviving"]
        each["share"] = retarget(step, fixed, second, moving, bench.objective)["share"]
        drift = stays(step, fixed, fixed, identity(fixed), bench.objective, bench.count)["drift"]
        each["drift of the same image"] = drift
        found[name] = each
    return found


#: Letter -> (what it asks, the probe).
PROBES: dict[str, tuple[str, Callable[[Bench], Found]]] = {
    "a": ("Where do the pairs stand after each step, and beyond the trained number?", trajectories),
    "b": ("Do the steps go where the objective falls?", directions),
    "c": ("Of which objective are they a descent?", inner_objectives),
    "d": ("Is a 7 pulled into the distribution of 5s before it is registered?", pulls),
    "e": ("Do all starts lead to one end?", paths),
    "f": ("Does it stay where nothing is to be gained?", staying),
    "g": ("How much of the gain needs feedback?", feedbacks),
    "h": ("Does it follow a target that changes?", retargeting),
    "i": ("How does it compare with optimisers at the same number of evaluations?", optimisers),
    "j": ("What of this is due to tied weights, to training through all steps, or to equivariance?", variants),
}


def _best(name: str, choices: list[dict[str, float]], bench: Bench) -> dict[str, float]:
    """The settings of an optimiser with the lowest mean loss after as many evaluations as the network has steps."""
    if len(choices) == 1:
        return choices[0]

    def reached(choice: dict[str, float]) -> float:
        found = OPTIMISERS[name](bench.objective, *bench.calibration, bench.count, **choice)
        return float(found.values[-1].mean())

    return min(choices, key=reached)


def run(letter: str, bench: Bench) -> Found:
    """One probe."""
    with torch.no_grad():
        return PROBES[letter][1](bench)
