"""Answers to a, b, c and i: is it an iterative optimisation, and of what?"""

from __future__ import annotations

from typing import Any

import numpy as np

from stepwarp.mnist.answers.common import Answer, Difference, Stacked, joined, mean, percent, rows, sureness
from stepwarp.probes.direction import FINAL, NEWTON, OF_ANOTHER, RAW
from stepwarp.probes.statistics import described

#: Of the steps' squared length: from this share on a regression is said to explain them, and below the other not to.
EXPLAINED, UNEXPLAINED = 0.5, 0.25
#: How much R2 a candidate must be missed by, to be said to matter.
MISSED = 0.01


def after_each_step(found: Stacked, n: int) -> Answer:
    """a"""
    fives, sevens = found["5"], found["7"]
    loss = fives["loss"]
    later = [k for k in (2 * n, 4 * n) if k < loss.shape[1]]
    gain = mean(loss[:, 0]) - mean(loss[:, n])
    early = ", ".join(
        f"{percent((mean(loss[:, 0]) - mean(loss[:, k])) / gain)} of the gain after {k}" for k in (1, 3, 5) if k < n
    )
    beyond = [Difference(f"loss after {k} minus after {n} steps", loss[:, k] - loss[:, n]) for k in later]
    best = int(np.nanargmin(np.nanmean(loss, (0, 2))))
    worse, better = beyond[0].above, beyond[0].described["ci95"][1] < 0
    verdict = "drifts away" if worse else "goes on improving" if better else "comes to rest"
    ends = joined([f"{mean(loss[:, k]):.4f} after {k}" for k in (0, n, *later)])
    text = (
        f"The loss of pairs of 5s is {ends} steps, lowest after {best} ({early}). SSD falls by"
        f" {percent(1 - mean(fives['ssd'][:, n]) / mean(fives['ssd'][:, 0]))} on 5s and"
        f" {percent(1 - mean(sevens['ssd'][:, n]) / mean(sevens['ssd'][:, 0]))} on 7s; a step after the trained number"
        f" still moves {mean(fives['step'][:, n + 1]):.2f} pixels, the first one {mean(fives['step'][:, 1]):.2f}."
        f" {percent(mean(fives['folds'][:, n]))} of the pixels fold after {n} steps and"
        f" {percent(mean(fives['folds'][:, later[-1]]))} after {later[-1]}."
    )
    mind = f"A loss after {later[0]} steps that is {'not above' if worse else 'above'} the one after {n}."
    curves = {
        digit: {name: rows(found[digit][name]) for name in ("loss", "ssd", "ncc", "regularity", "folds", "step")}
        for digit in ("5", "7")
    }
    null = {digit: described(found[f"{digit} null"]["loss"][:, 0]) for digit in ("5", "7")}
    return Answer(verdict, text, sureness(*beyond), mind, {"curves": curves, "null": null, "best_step": best})


def where_steps_go(found: Stacked, n: int) -> Answer:
    """b"""
    over_steps = {digit: {k: np.nanmean(v, 1) for k, v in found[digit].items()} for digit in ("5", "7")}
    ours = over_steps["5"]
    plain = [name for name in ours if not name.endswith(OF_ANOTHER) and name not in (FINAL, NEWTON)]
    best = max(plain, key=lambda name: mean(ours[name]))
    above_null = Difference(f"cosine with {best} minus that of another pair", ours[best] - ours[best + OF_ANOTHER])
    above_final = Difference(f"cosine with {best} minus that with the final answer", ours[best] - ours[FINAL])
    # The last step's way to the final answer is the last step itself, so it is left out here.
    early = {name: np.nanmean(values[:, : n - 1], 1) for name, values in found["5"].items()}
    verdict = "downhill" if above_null.above and mean(ours[best]) > 0.1 else "not downhill"
    to_final = "to where the network will end up" if mean(early[FINAL]) > mean(early[best]) else "along the gradient"
    text = (
        f"On 5s the cosine of a step with the negative gradient is {mean(ours[RAW]):.2f} raw and"
        f" {mean(ours[best]):.2f} at its best ({best}), against {mean(ours[best + OF_ANOTHER]):.2f} with the gradient"
        f" of another pair; with Gauss-Newton {mean(ours[NEWTON]):.2f} (another pair"
        f" {mean(ours[NEWTON + OF_ANOTHER]):.2f}). Before the last step it points more {to_final}: the cosine with the"
        f" final answer is {mean(early[FINAL]):.2f}, with the gradient {mean(early[best]):.2f}. On 7s, which it was not"
        f" trained on: {mean(over_steps['7'][best]):.2f} against {mean(over_steps['7'][best + OF_ANOTHER]):.2f}."
    )
    mind = "A null as high as the cosine itself, or a cosine that vanishes on pairs of another seed."
    numbers = {d: {name: rows(values) for name, values in found[d].items()} for d in ("5", "7")}
    return Answer(verdict, text, sureness(above_null, above_final), mind, {"cosines": numbers, "best": best})


def which_objective(found: Stacked, n: int) -> Answer:
    """c"""
    parts: list[str] = []
    numbers: dict[str, Any] = {}
    fits: dict[tuple[str, str], np.ndarray] = {}
    for digit in ("5", "7"):
        for way in ("raw", "smooth"):
            fit = found[digit][way]
            r2, null = fit["r2"]["all"], fit["null"]
            missed = {name: mean(r2 - values) for name, values in fit["without"].items()}
            fits[digit, way] = r2
            numbers[f"{digit}, {way}"] = {
                "r2": described(r2),
                "null": described(null),
                "by_step": [mean(fit["r2"]["by_step"][:, k]) for k in range(n)],
                "alone": {name: described(values) for name, values in fit["alone"].items()},
                "missed": missed,
                "weights": dict(zip(fit["names"][0].tolist(), fit["weights"]["pooled"].mean(0).tolist(), strict=True)),
            }
        matter = [f"{k} ({v:.2f})" for k, v in sorted(missed.items(), key=lambda kv: -kv[1]) if v > MISSED]
        raw, smooth = mean(fits[digit, "raw"]), mean(fits[digit, "smooth"])
        parts.append(
            f"On {digit}s all candidates together explain R2 = {raw:.2f} of held-out steps, {smooth:.2f} after"
            f" smoothing (null {mean(found[digit]['smooth']['null']):.2f}); what is missed when left out:"
            f" {joined(matter) if matter else 'nothing by itself'}."
        )
    best = mean(fits["5", "smooth"])
    verdict = "explained" if best > EXPLAINED else "in part" if best > UNEXPLAINED else "none of these"
    to_five = [numbers[f"{d}, smooth"]["missed"][c] for d in ("5", "7") for c in ("-log P(5)", "nearest 5")]
    parts.append(
        f"Gradients towards what looks like a 5 add {max(to_five):.3f} at most, "
        + ("so they are part of it." if max(to_five) > MISSED else "so there is no sign that they are part of it.")
    )
    above = Difference("R2 on held-out 5s minus null", fits["5", "smooth"] - found["5"]["smooth"]["null"])
    mind = f"A further candidate that brings R2 on held-out 5s {'below' if best > EXPLAINED else 'above'} {EXPLAINED}."
    return Answer(verdict, " ".join(parts), sureness(above), mind, numbers)


def beside_optimisers(found: Stacked, n: int) -> Answer:
    """i"""
    fives, sevens = found["5"], found["7"]
    names = [name for name in fives if name not in ("network", "none", "to the end")]
    ends = {name: fives[name][:, n] for name in ("network", *names)}
    best = min(names, key=lambda name: mean(ends[name]))
    ahead = Difference(f"loss of {best} minus the network's on 5s", ends[best] - ends["network"])
    strange = Difference(f"loss of {best} minus the network's on 7s", sevens[best][:, n] - sevens["network"][:, n])
    long = np.nanmean(fives["to the end"], (0, 2))
    reached = np.flatnonzero(long <= mean(ends["network"]))
    needs = f"after {reached[0]} evaluations" if len(reached) else f"not in {len(long) - 1} evaluations"
    verdict = "ahead on 5s" if ahead.above else "behind"
    verdict += ", behind on 7s" if ahead.above and not strange.above else ""
    listed = joined([f"{name} {mean(values):.4f}" for name, values in ends.items()])
    of_sevens = joined([f"{name} {mean(sevens[name][:, n]):.4f}" for name in ends])
    text = (
        f"With {n} evaluations, mean loss on 5s: {listed}; nothing done {mean(fives['none'][:, n]):.4f}. L-BFGS is as"
        f" low {needs}, and ends at {long[-1]:.4f}. On 7s: {of_sevens}."
    )
    mind = "An optimiser that, with settings chosen on training pairs, is as low after as many evaluations."
    numbers = {d: {name: rows(found[d][name][:, : n + 1]) for name in ("network", *names)} for d in ("5", "7")}
    numbers["to the end"] = {"mean": long.tolist()}
    return Answer(verdict, text, sureness(ahead, strange), mind, numbers)
