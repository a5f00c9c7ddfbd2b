"""What the numbers of a study say, in sentences: each is written by the numbers, and could have been another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwarp.probes import direction
from stepwarp.probes.statistics import differs
from stepwarp.probes.study import LONGEST, STARTS, Numbers

#: A start that keeps less of its distance than this has been forgotten; one that keeps more has not at all.
_FORGOTTEN, _KEPT = 0.1, 0.9
#: Less than this share of the way from the identity counts as staying.
_STAYED = 0.1
#: A share of the gain from which on a change is one that the registrar can do with.
_SURVIVED = 0.9
_DOES = "it does with that contrast"


@dataclass(frozen=True)
class Question:
    """title: the probe's letter and subject. asked: what it decides. measured, control, null: how. change: what would
    change the answer."""

    title: str
    asked: str
    measured: str
    control: str
    null: str
    change: str


QUESTIONS: dict[str, Question] = {
    "a": Question(
        "a. After each step",
        "Does every step help, and do more steps than were trained?",
        "The objective of the training on the pairs' grid, folds and the length of a step, for once, twice and four "
        "times as many repetitions of every repeated step.",
        "The steps beyond the trained number.",
        "The same maps, each given to the next pair.",
        "Other pairs, or a network trained with another number of steps.",
    ),
    "b": Question(
        "b. Direction",
        "Do the steps go where the objective falls?",
        "The cosine of each step's own displacement, as it was composed, with the negative gradient of the objective "
        "at the state and on the grid that the step saw: raw, smoothed with several widths, and the Gauss-Newton step.",
        "The cosine with the way to the registrar's own final answer.",
        "The same direction at the same step of the next pair.",
        "An objective that was not tried here, or a preconditioner that is no Gaussian.",
    ),
    "e": Question(
        "e. Path independence",
        "Does it end at the same map whatever it began with?",
        "The distance, where the fixed image shows something, between runs from other starts and the run from the "
        "identity, after each of two passes' steps.",
        "The distance of the starts.",
        "The distance between the ends of two different pairs.",
        "Starts further away, or more steps.",
    ),
    "f": Question(
        "f. At the optimum",
        "Does it stay where nothing is left to be gained?",
        "How far a pass drifts from the optimum that L-BFGS found from the registrar's own answer, and between an "
        "image and itself.",
        "The drift of a pass from the identity.",
        "A start as far from the optimum as the answer is, in a random direction.",
        "A better optimum: L-BFGS stops at the one next to the registrar's answer.",
    ),
    "h": Question(
        "h. A new target half-way",
        "Does it follow when the fixed image is swapped?",
        "Half a pass towards the next pair's fixed image, then a whole one towards the own.",
        "A pass from the identity towards the own fixed image alone.",
        "Going on towards the first target.",
        "A swap later on, after which fewer steps are left.",
    ),
    "contrast": Question(
        "Out of distribution: contrast",
        "What is left where the images have another contrast?",
        "The map found on changed images, judged on the images as they were: the contrast itself costs nothing.",
        "The images as they were.",
        "The map of another pair.",
        "Training on such contrasts.",
    ),
}


def findings(probe: str, numbers: Numbers) -> list[str]:
    """The sentences of one probe, by its key of QUESTIONS."""
    return _SAID[probe](numbers)


def value(described: Mapping[str, Any], digits: int = 3) -> str:
    """A mean with its interval, as "0.412 [0.380, 0.447]"."""
    if described["mean"] is None:
        return "not defined"
    text = _number(described["mean"], digits)
    if described["ci95"] is None:
        return text
    low, high = (_number(end, digits) for end in described["ci95"])
    return f"{text} [{low}, {high}]"


def _number(number: float, digits: int) -> str:
    return f"{number:.{digits}f}" if abs(number) < 1000 else f"{number:.3g}"


def _percent(described: Mapping[str, Any]) -> str:
    if described["mean"] is None:
        return "an undefined share"
    scaled = {
        **described,
        "mean": 100 * described["mean"],
        "ci95": None if described["ci95"] is None else [100 * end for end in described["ci95"]],
    }
    return f"{value(scaled, 1)} %"


def _per_step(numbers: Numbers) -> list[str]:
    loss, once = numbers["loss, 1 x"], np.asarray(numbers["loss, 1 x"]["values"])
    steps = len(once) - 1
    gains = [differs(once[k], once[k + 1]) for k in range(steps)]
    worse = [k + 1 for k, gain in enumerate(gains) if gain["mean"] is not None and gain["mean"] < 0]
    said = [
        f"In its {steps} steps the objective goes from {value(loss['rows'][0])} to {value(loss['rows'][-1])}; "
        + (f"on average it rises in step {_listed(worse)}." if worse else "on average every step lowers it."),
        f"The maps of another pair leave {value(numbers['loss, maps of another pair']['value'])}.",
    ]
    for times in (2, LONGEST):
        if f"loss, {times} x" not in numbers:
            continue
        longer = np.asarray(numbers[f"loss, {times} x"]["values"])
        change = differs(longer[-1], once[-1])
        said.append(
            f"{times} times as many repetitions change the final objective by {value(change, 4)}: {_way(change)}."
        )
    folds = [row["mean"] for row in numbers["folds, 1 x"]["rows"]]
    said.append(
        f"In the end {100 * folds[-1]:.4f} % of the voxels are folded, at most {100 * max(folds):.4f} % on the way."
    )
    if "accuracy, 1 x" in numbers:
        more = [
            f"{t} times {value(numbers[f'accuracy, {t} x']['value'])}"
            for t in (2, LONGEST)
            if f"accuracy, {t} x" in numbers
        ]
        said.append(
            f"The overlap of labels goes from {value(numbers['accuracy, identity']['value'])} to "
            f"{value(numbers['accuracy, 1 x']['value'])}"
            + (f"; with more repetitions: {', '.join(more)}" if more else "")
            + f"; with maps of another pair {value(numbers['accuracy, maps of another pair']['value'])}."
        )
    return said


def _way(change: Mapping[str, Any]) -> str:
    if change["apart"] is None or not change["apart"]:
        return "these pairs show no difference"
    return "more steps still help" if change["mean"] < 0 else "more steps do harm"


def _direction(numbers: Numbers) -> list[str]:
    ending = ", all steps"
    downhill = [
        name.removesuffix(ending)
        for name in numbers
        if name.endswith(ending) and not name.startswith(direction.FINAL) and direction.OF_ANOTHER not in name
    ]
    means = {name: numbers[name + ending]["value"] for name in downhill}
    known = [name for name in downhill if means[name]["mean"] is not None]
    if not known:
        return ["No step moved anything, so none has a direction."]
    best = max(known, key=lambda name: means[name]["mean"])
    null = numbers[best + direction.OF_ANOTHER + ending]
    own = differs(numbers[best + ending]["values"], null["values"])
    said = [
        f"Of the directions tried the steps follow the gradient '{best}' best: cosine {value(means[best])}, the raw "
        f"gradient {value(means[direction.RAW])}"
        + (f", Gauss-Newton {value(means[direction.NEWTON])}" if direction.NEWTON in means else "")
        + ".",
        f"With the same direction of another pair it is {value(null['value'])}; the difference {value(own)} "
        + (
            "is of the pair itself: the steps are a descent of this objective in part at least."
            if own["apart"] and own["mean"] > 0
            else "cannot be told from 0: that the steps descend this objective is not shown."
        ),
    ]
    own_before, final = (numbers[f"{name}, before the last"] for name in (best, direction.FINAL))
    apart = differs(own_before["values"], final["values"])
    comparison = "more" if apart["mean"] is not None and apart["mean"] > 0 else "less"
    said.append(
        f"Before the last step the cosine with the way to its own final answer is {value(final['value'])}, with the "
        f"gradient {value(own_before['value'])}: "
        + (
            f"the steps look {comparison} like a descent than like the way to a known answer"
            if apart["apart"]
            else "these pairs do not tell a descent and the way to a known answer apart"
        )
        + "; a descent whose way is straight is both."
    )
    return said


def _path(numbers: Numbers) -> list[str]:
    said = []
    for name in (*(f"random start {n + 1}" for n in range(STARTS)), "another pair's solution"):
        left, rows = numbers[f"left, {name}"]["value"], numbers[f"distance, {name}"]["rows"]
        said.append(
            f"From {name}, {value(rows[0], 2)} mm away, it ends {value(rows[-1], 2)} mm from its usual end: "
            f"{_percent(left)} of the distance is left, {_kept(left)}."
        )
    return [*said, f"The ends of two different pairs are {value(numbers['ends of two pairs']['value'], 2)} mm apart."]


def _kept(left: Mapping[str, Any]) -> str:
    low, high = left["ci95"] or (left["mean"], left["mean"])
    if left["mean"] is None:
        return "which says nothing"
    if high < _FORGOTTEN:
        return "so the start is forgotten"
    if low > _KEPT:
        return "so the start is kept"
    return (
        "so the end depends on the start, but less than the start did"
        if high < 1
        else "so the end depends on the start"
    )


def _optimum(numbers: Numbers) -> list[str]:
    shares = {
        name: numbers[f"share of the way, {name}"]["value"]
        for name in ("optimum", "answer", "beside the optimum", "same image")
    }
    drift = {name: numbers[f"drift, {name}"]["rows"][-1] for name in ("optimum", "identity", "same image")}
    losses = numbers["loss by evaluation"]["rows"]
    rise = numbers["loss rise, optimum"]["value"]
    higher = rise["mean"] is not None and rise["mean"] > 0
    return [
        f"Direct optimisation lowers the objective from the registrar's {value(losses[0])} to {value(losses[-1])}, "
        f"{value(numbers['from answer to optimum']['value'], 2)} mm away.",
        f"From there a pass drifts {value(drift['optimum'], 2)} mm, {_percent(shares['optimum'])} of its way from the "
        f"identity ({value(drift['identity'], 2)} mm): {_stayed(shares['optimum'])}. The objective "
        f"{'rises' if higher else 'falls'} by {value(_absolute(rise), 4)}"
        + (", so the optimum of the objective is not where it comes to rest." if higher and _excludes_0(rise) else "."),
        f"From its own answer another pass drifts {_percent(shares['answer'])} of that way, from beside the optimum "
        f"{_percent(shares['beside the optimum'])}.",
        f"Between an image and itself it moves {value(drift['same image'], 3)} mm: {_stayed(shares['same image'])}.",
    ]


def _stayed(share: Mapping[str, Any]) -> str:
    if share["mean"] is None:
        return "which says nothing"
    low, high = share["ci95"] or (share["mean"], share["mean"])
    if high < _STAYED:
        return "it stays"
    return "it does not stay" if low > _STAYED else "whether it stays is not decided"


def _absolute(described: Mapping[str, Any]) -> dict[str, Any]:
    if described["mean"] is None or described["mean"] >= 0:
        return dict(described)
    ends = described["ci95"]
    return {**described, "mean": -described["mean"], "ci95": None if ends is None else [-ends[1], -ends[0]]}


def _excludes_0(described: Mapping[str, Any]) -> bool:
    ends = described["ci95"]
    return ends is not None and (ends[0] > 0 or ends[1] < 0)


def _retarget(numbers: Numbers) -> list[str]:
    share, kept = numbers["share"]["value"], numbers["share_kept"]["value"]
    swapped, straight = numbers["steps_swapped"], numbers["steps_straight"]
    apart = differs(numbers["share"]["values"], numbers["share_kept"]["values"])
    pairs = len(swapped["values"])
    follows = apart["apart"] and apart["mean"] > 0
    return [
        f"After the swap it reaches {_percent(share)} of what a pass towards the new target alone gains; going on "
        f"towards the first target would have left {_percent(kept)}: "
        + ("it follows its target." if follows else "that it follows its target is not shown."),
        f"90 % of the gain is reached by {swapped['value']['n']} of {pairs} pairs after the swap"
        + (f", in {value(swapped['value'], 1)} steps" if swapped["value"]["n"] else "")
        + f"; without a swap in {value(straight['value'], 1)}.",
    ]


def _contrast(numbers: Numbers) -> list[str]:
    said = []
    changed = [name.removeprefix("share, ") for name in numbers if name.startswith("share, ")]
    for name in changed:
        if name in ("as they were", "map of another pair"):
            continue
        share = numbers[f"share, {name}"]["value"]
        extra = f", overlap {value(numbers[f'accuracy, {name}']['value'])}" if f"accuracy, {name}" in numbers else ""
        said.append(f"{name[0].upper()}{name[1:]}: {_percent(share)} of the gain survives{extra}; {_survived(share)}.")
    null = numbers["share, map of another pair"]["value"]
    well = sum(sentence.endswith(f"{_DOES}.") for sentence in said)
    said.insert(0, f"Of {len(said)} changes of contrast {well} leave more than {100 * _SURVIVED:.0f} % of the gain.")
    said.append(f"The map of another pair has {_percent(null)} of the gain.")
    if "accuracy, as they were" in numbers:
        said.append(
            f"Overlap on the images as they were {value(numbers['accuracy, as they were']['value'])}, of the identity "
            f"{value(numbers['accuracy, identity']['value'])}."
        )
    return said


def _survived(share: Mapping[str, Any]) -> str:
    if share["mean"] is None:
        return "which says nothing"
    low, high = share["ci95"] or (share["mean"], share["mean"])
    if low > _SURVIVED:
        return _DOES
    if high < 0:
        return "it does harm"
    return "something is lost" if low > 0 else "it cannot be told from doing nothing"


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))


_SAID = {
    "a": _per_step,
    "b": _direction,
    "e": _path,
    "f": _optimum,
    "h": _retarget,
    "contrast": _contrast,
}
