"""The probes of a registrar together, on one batch of pairs: what is measured, beside which control and which null.

Every probe returns {"numbers": name -> {"rows" or "value": what `statistics.described` says, "values": per pair}} in
units that are named with it; `findings` makes sentences of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepwarp.geometry import DisplacementField
from stepwarp.probes import direction as directions
from stepwarp.probes.fixed_point import disturbed, path_independence, random_start, stays
from stepwarp.probes.objective import PairObjective
from stepwarp.probes.optimisers import lbfgs
from stepwarp.probes.retarget import retarget
from stepwarp.probes.statistics import described, described_rows
from stepwarp.probes.trajectory import apply_to_others, identity, lengthened, others, per_step, rms, trajectory, walk
from stepwarp.registrar.steps import Images, Step
from stepwarp.registrar.steps.structure import repeats, steps_run
from stepwarp.registrar.subject import SHOWN

#: How many times the trained number of steps is taken, at most.
LONGEST = 4
#: Random starts: how far from the identity (root mean square, mm) and how smooth (Gaussian sigma, mm) they are.
START_MM, START_WIDTH_MM, STARTS = 4.0, 16.0, 2
#: Evaluations of the direct optimisation that looks for an optimum.
EVALUATIONS = 60

Numbers = dict[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class ProbedSubject:
    """A registrar with the pairs that it is probed on.

    fixed, moving: two pairs or more, (B, 1, *grid). objective: what it was trained on. score: the accuracy of maps,
    (B,) and higher is better, such as the overlap of labels; None where there is no truth. seed: of random starts and
    contrasts."""

    step: Step
    fixed: Images
    moving: Images
    objective: PairObjective
    score: Callable[[DisplacementField], np.ndarray] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.fixed.data) < 2:
            raise ValueError("the nulls need other pairs: probe two or more")

    @property
    def steps(self) -> int:
        return steps_run(self.step)

    @property
    def inside(self) -> Tensor:
        """Where the fixed image shows something, (B, 1, *grid): how far a map is from another is taken there."""
        return self.fixed.data > SHOWN

    @property
    def mm(self) -> float:
        """Of a voxel; the grid's are cubes."""
        return float(self.fixed.grid.spacing.mean())


def per_step_probe(subject: ProbedSubject) -> Numbers:
    """a: after each step, for once, twice and four times the trained number of repetitions of each of its steps."""
    found: Numbers = {}
    null: list[DisplacementField] = []
    for times in (1, 2, LONGEST) if repeats(subject.step) else (1,):
        with lengthened(subject.step, times):
            maps = (taken.after for taken in walk(subject.step, subject.fixed, subject.moving))
            kept: list[DisplacementField] = []
            table = per_step(_last_kept(maps, kept), subject.fixed, subject.moving, subject.objective)
        null = null or kept
        table["rms"], table["step"] = subject.mm * table["rms"], subject.mm * table["step"]
        for name in ("loss", "ssd", "ncc", "regularity", "folds", "rms", "step"):
            found[f"{name}, {times} x"] = _rows(table[name])
        if subject.score is not None:
            found[f"accuracy, {times} x"] = _value(subject.score(kept[-1]))
    elsewhere = per_step(apply_to_others(null), subject.fixed, subject.moving, subject.objective)
    found["loss, maps of another pair"] = _value(elsewhere["loss"][-1])
    if subject.score is not None:
        found["accuracy, identity"] = _value(subject.score(identity(subject.fixed)))
        found["accuracy, maps of another pair"] = _value(subject.score(apply_to_others(null)[0]))
    return found


def direction_probe(subject: ProbedSubject) -> Numbers:
    """b: the cosines of `direction`, for each step, as means over all steps, and over all before the last one, which
    leads to the final answer by definition."""
    final = trajectory(subject.step, subject.fixed, subject.moving)[-1]
    steps = walk(subject.step, subject.fixed, subject.moving)
    cosines = directions.direction(steps, subject.objective, final)
    means = {f"{name}, all steps": _value(_finite_mean(values)) for name, values in cosines.items()}
    before = {f"{name}, before the last": _value(_finite_mean(values[:-1])) for name, values in cosines.items()}
    return {name: _rows(values) for name, values in cosines.items()} | means | before


def path_probe(subject: ProbedSubject) -> Numbers:
    """e: two passes from random starts and from another pair's solution, beside two from the identity (mm)."""
    fixed, mm = subject.fixed, subject.mm
    starts = {
        f"random start {n + 1}": random_start(fixed, START_MM / mm, START_WIDTH_MM / mm, subject.seed + n)
        for n in range(STARTS)
    }
    solution = trajectory(subject.step, fixed, subject.moving)[-1]
    starts["another pair's solution"] = DisplacementField(others(solution.displacement), solution.grid)
    runs = path_independence(
        subject.step, fixed, subject.moving, starts, subject.objective, 2 * subject.steps, subject.inside
    )
    found = {"ends of two pairs": _value(mm * runs["another pair"]["to_end"][0])}
    for name in starts:
        distance = mm * runs[name]["distance"]
        found[f"distance, {name}"] = _rows(distance)
        found[f"left, {name}"] = _value(distance[-1] / distance[0])
    for name in ("identity", *starts):
        found[f"loss, {name}"] = _rows(runs[name]["loss"])
    return found


def optimum_probe(subject: ProbedSubject) -> Numbers:
    """f: the drift (mm) and the loss of one pass from the optimum that L-BFGS finds from the registrar's own answer, of
    the pair (B, B) from the identity; control: of the pair from the identity; null: from a start as far from the
    optimum as the answer is, in a random direction."""
    step, fixed, moving, objective, mm = (
        subject.step,
        subject.fixed,
        subject.moving,
        subject.objective,
        subject.mm,
    )
    answer = trajectory(step, fixed, moving)[-1]
    optimised = lbfgs(objective, fixed, moving, EVALUATIONS, answer)
    optimum = optimised.found
    apart = rms(optimum.displacement - answer.displacement)
    inside = subject.inside
    beside = disturbed(optimum, fixed, apart, START_WIDTH_MM / mm / 2, subject.seed)
    runs = {
        "optimum": stays(step, fixed, moving, optimum, objective, inside=inside),
        "answer": stays(step, fixed, moving, answer, objective, inside=inside),
        "beside the optimum": stays(step, fixed, moving, beside, objective, inside=inside),
        "identity": stays(step, fixed, moving, identity(fixed), objective, inside=inside),
        "same image": stays(step, fixed, fixed, identity(fixed), objective, inside=inside),
    }
    found = {
        "from answer to optimum": _value(
            mm * rms(optimum.displacement - answer.displacement, inside).double().cpu().numpy()
        )
    }
    found["loss by evaluation"] = _rows(optimised.values)
    for name, run in runs.items():
        found[f"drift, {name}"] = _rows(mm * run["drift"])
        found[f"step, {name}"] = _rows(mm * run["step"])
        found[f"loss, {name}"] = _rows(run["loss"])
    for name in ("optimum", "answer", "beside the optimum", "same image"):
        found[f"share of the way, {name}"] = _value(runs[name]["drift"][-1] / runs["identity"]["drift"][-1])
    found["loss rise, optimum"] = _value(runs["optimum"]["loss"][-1] - runs["optimum"]["loss"][0])
    return found


def retarget_probe(subject: ProbedSubject) -> Numbers:
    """h: the fixed image is that of the next pair for the first half of a pass, then the pair's own for a whole one."""
    first = Images(others(subject.fixed.data), subject.fixed.grid)
    found = retarget(subject.step, first, subject.fixed, subject.moving, subject.objective)
    rows = {name: _rows(found[name]) for name in ("swapped", "straight", "kept", "before")}
    return rows | {name: _value(found[name]) for name in ("share", "share_kept", "steps_swapped", "steps_straight")}


def contrast_probe(subject: ProbedSubject) -> Numbers:
    """Out of distribution: the maps found on images of another contrast, judged on the images as they were.

    share: of the gain in the objective that the map found on the images as they were has. apart: root mean square
    distance (mm) to that map. accuracy: see `ProbedSubject`. Control: the images as they were. Null: the map of another
    pair."""
    fixed, moving = subject.fixed, subject.moving
    still, usual = identity(fixed), trajectory(subject.step, fixed, moving)[-1]
    start, gained = (_losses(subject, found) for found in (still, usual))
    found: Numbers = {}
    maps = {"as they were": usual}
    for name, change in contrasts(subject.seed).items():
        changed = Images(change(moving.data), moving.grid)
        maps[f"moving image {name}"] = trajectory(subject.step, fixed, changed)[-1]
        maps[f"both images {name}"] = trajectory(subject.step, Images(change(fixed.data), fixed.grid), changed)[-1]
    maps["map of another pair"] = DisplacementField(others(usual.displacement), usual.grid)
    for name, each in maps.items():
        gain = np.where(start > gained, start - gained, np.nan)
        found[f"share, {name}"] = _value((start - _losses(subject, each)) / gain)
        apart = rms(each.displacement - usual.displacement, subject.inside)
        found[f"apart, {name}"] = _value(subject.mm * apart.double().cpu().numpy())
        if subject.score is not None:
            found[f"accuracy, {name}"] = _value(subject.score(each))
    if subject.score is not None:
        found["accuracy, identity"] = _value(subject.score(still))
    return found


def contrasts(seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Changes of contrast of images of about 0..1 whose background is 0, and stays it.

    "synthetic": greys drawn at random for six intensities and linear between them, so that their order is lost."""
    knots = torch.rand(7, generator=torch.Generator().manual_seed(seed))
    knots[0] = 0

    def synthetic(image: Tensor) -> Tensor:
        at = image.clamp(0, 1) * (len(knots) - 1)
        low = at.floor().clamp_max(len(knots) - 2).long()
        greys = knots.to(image)
        return torch.lerp(greys[low], greys[low + 1], at - low)

    return {
        "inverted": lambda image: torch.where(image > 0.02, (1.1 - image).clamp(0, 1), 0.0),
        "with gamma 0.5": lambda image: image.clamp_min(0).sqrt(),
        "with gamma 2": lambda image: image.clamp_min(0).square(),
        "synthetic": synthetic,
    }


def _losses(subject: ProbedSubject, found: DisplacementField) -> np.ndarray:
    with torch.no_grad():
        values = subject.objective.values(subject.fixed, subject.moving, found.displacement)
    return np.asarray(values.double().cpu())


def _last_kept(maps: Iterable[DisplacementField], kept: list[DisplacementField]) -> Iterator[DisplacementField]:
    """The maps, of which the last one is left in `kept`: all of them at once would need gigabytes."""
    for found in maps:
        kept[:] = [found]
        yield found


def _finite_mean(values: np.ndarray) -> np.ndarray:
    """Over the steps, (steps, pairs) -> (pairs,), of those that are finite."""
    known = np.isfinite(values)
    mean: np.ndarray = np.where(known, values, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
    return mean


def _rows(values: np.ndarray) -> dict[str, Any]:
    return {"rows": described_rows(values), "values": values}


def _value(values: np.ndarray) -> dict[str, Any]:
    return {"value": described(values), "values": values}
