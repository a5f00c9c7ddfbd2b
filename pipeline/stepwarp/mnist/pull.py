"""Probe d: is a strange digit pulled into the distribution that the network was trained on, before it is registered?"""

from __future__ import annotations

import numpy as np
import torch

from stepwarp.geometry import DisplacementField
from stepwarp.mnist.classifier import Instruments
from stepwarp.mnist.models import TRAINED
from stepwarp.mnist.training import OUTSIDE
from stepwarp.probes.objective import PairObjective
from stepwarp.probes.optimisers import gradient_descent
from stepwarp.probes.trajectory import identity, trajectory
from stepwarp.registrar.steps import Images, Step

CLAIM, DIRECT, OWN, EVERY, ONES, FIVES = (
    "7 to 7, trained on 5s",
    "7 to 7, direct optimisation at matched loss",
    "7 to 7, trained on 7s",
    "7 to 7, trained on all digits",
    "1 to 1, trained on 5s",
    "5 to 5, trained on 5s",
)
#: What the claim must rise above.
CONTROLS = (DIRECT, OWN, EVERY, ONES)
#: Of direct optimisation: how often it is looked at, the evaluations in between, and the smoothing of its gradient.
_LOOKS, _EVALUATIONS, _SMOOTH = 40, 3, 1.0

Pairs = tuple[Images, Images]


def pull(
    steps: dict[str, Step],
    sevens: Pairs,
    ones: Pairs,
    fives: Pairs,
    instruments: Instruments,
    objective: PairObjective,
    count: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Run -> {"probability", "distance", "loss"}, (1 + count, pairs) each, after each of `count` steps; row 0 is the
    moving image as it was.

    Definition: the probability P(5) that a classifier, trained on warped and blurred digits of all classes, gives to
    the moved image; second instrument, the distance to the nearest 5 of the training set. The claim is about 7s
    registered to 7s by a network trained on 5s.
    Controls: descent of the same objective on the same pairs, each pair taken where its loss is first as low as the
    network's after that step; networks trained on 7s and on all digits, on the same pairs; and 1s registered to 1s by
    the network that was trained on 5s. Null: row 0. 5s to 5s are shown for scale.
    The claim holds only if P(5) rises above all controls and falls again, and the distance says the same; see
    `verdicts`. steps: "fives", "sevens", "all digits" -> the networks."""
    runs = {
        CLAIM: (steps["fives"], sevens),
        OWN: (steps["sevens"], sevens),
        EVERY: (steps["all digits"], sevens),
        ONES: (steps["fives"], ones),
        FIVES: (steps["fives"], fives),
    }
    found = {
        name: _seen([identity(pairs[0]), *trajectory(step, *pairs, count)], pairs, instruments, objective)
        for name, (step, pairs) in runs.items()
    }
    path = _seen(descent(objective, *sevens), sevens, instruments, objective)
    return found | {DIRECT: matched(path, found[CLAIM]["loss"])}


def descent(objective: PairObjective, fixed: Images, moving: Images, looks: int = _LOOKS) -> list[DisplacementField]:
    """The way of direct optimisation from the identity, looked at every few evaluations."""
    path = [identity(fixed)]
    for _ in range(looks):
        path.append(gradient_descent(objective, fixed, moving, _EVALUATIONS, path[-1], _SMOOTH).found)
    return path


def matched(path: dict[str, np.ndarray], losses: np.ndarray) -> dict[str, np.ndarray]:
    """What was seen on a path (points, pairs) where each pair's loss is first as low as `losses` (steps, pairs); at the
    path's end where it never is."""
    low = path["loss"][None] <= losses[:, None]
    first = np.where(low.any(1), low.argmax(1), len(path["loss"]) - 1)
    return {name: np.take_along_axis(values, first, 0) for name, values in path.items()}


@torch.no_grad()
def _seen(
    maps: list[DisplacementField], pairs: Pairs, instruments: Instruments, objective: PairObjective
) -> dict[str, np.ndarray]:
    fixed, moving = pairs
    rows: dict[str, list[np.ndarray]] = {"probability": [], "distance": [], "loss": []}
    for found in maps:
        moved = moving.warp(found, OUTSIDE).data
        rows["probability"].append(instruments.probability(moved, TRAINED).numpy())
        rows["distance"].append(instruments.distance(moved).numpy())
        rows["loss"].append(objective.values(fixed, moving, found.displacement).numpy())
    return {name: np.stack(values) for name, values in rows.items()}
