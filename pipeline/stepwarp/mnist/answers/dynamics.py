"""Answers to e, f, g, h and j: how the steps behave as a system that looks at what it has done."""

from __future__ import annotations

from typing import Any

import numpy as np

from stepwarp.mnist.answers.common import (
    Answer,
    Difference,
    Stacked,
    described_all,
    joined,
    mean,
    percent,
    rows,
    sureness,
)
from stepwarp.mnist.models import TIED
from stepwarp.probes.feedback import BLIND, FULL, MEAN, ONCE, OTHERS
from stepwarp.probes.statistics import described

#: Of the starts' distance, what may be left for them to be said to have met.
MET = 0.1


def one_end(found: Stacked, n: int) -> Answer:
    """e"""
    starts = [name for name in found if name not in ("identity", "another pair")]
    apart = mean(found["another pair"]["to_end"])
    left = {name: found[name]["distance"][:, -1] / found[name]["distance"][:, 0] for name in starts}
    closer = [Difference(f"share of the distance that is gone, {name}", 1 - values) for name, values in left.items()]
    worst = max(mean(values) for values in left.values())
    verdict = "one end" if worst < MET else "partly" if all(each.above for each in closer) else "no"
    after = len(found[starts[0]]["distance"][0]) - 1
    told = joined(
        [
            f"{mean(found[name]['distance'][:, 0]):.2f} pixels at the start, {mean(found[name]['distance'][:, n]):.2f}"
            f" after {n} and {mean(found[name]['distance'][:, -1]):.2f} after {after} steps from {name}"
            for name in starts
        ]
    )
    text = (
        f"Distance to the run from the identity: {told}. The ends of different pairs are {apart:.2f} pixels apart. The"
        f" loss after {after} steps is {mean(found['identity']['loss'][:, -1]):.4f} from the identity and "
        + joined([f"{mean(found[name]['loss'][:, -1]):.4f} from {name}" for name in starts])
        + "."
    )
    mind = (
        f"A start whose distance {'stays' if verdict == 'one end' else f'falls below {percent(MET)}'} in {after} steps."
    )
    numbers: dict[str, Any] = {name: rows(found[name]["distance"]) for name in starts}
    return Answer(verdict, text, sureness(*closer), mind, numbers | {"apart": apart, "left": described_all(left)})


def stays(found: Stacked, n: int) -> Answer:
    """f"""
    away, control = found["optimum"]["drift"][:, n], found["identity"]["drift"][:, n]
    rises = Difference(
        "loss after the steps minus at the optimum", found["optimum"]["loss"][:, n] - found["optimum"]["loss"][:, 0]
    )
    less = Difference("drift from the identity minus from the optimum", control - away)
    same = found["same image"]["drift"][:, n]
    gap = mean(found["from optimum to answer"][:, 0])
    verdict = "leaves" if rises.above and mean(away) > 0.5 * gap else "stays nearly" if less.above else "leaves"
    text = (
        f"Started at the optimum of direct optimisation (loss {mean(found['optimum']['loss'][:, 0]):.4f}) it drifts"
        f" {mean(away):.2f} pixels in {n} steps and ends at {mean(found['optimum']['loss'][:, n]):.4f}, where the"
        f" identity leads to {mean(found['identity']['loss'][:, n]):.4f} over {mean(control):.2f} pixels. The optimum"
        f" and its own answer are {gap:.2f} pixels apart. From as far beside the optimum it goes from"
        f" {mean(found['beside']['loss'][:, 0]):.4f} to {mean(found['beside']['loss'][:, n]):.4f}. Given the same image"
        f" twice it drifts {mean(same):.2f} pixels, to a loss of {mean(found['same image']['loss'][:, n]):.4f} from 0."
    )
    mind = "A drift from the optimum that is small beside the way from the optimum to the network's own answer."
    numbers = {
        name: {key: rows(found[name][key]) for key in ("drift", "loss", "step")}
        for name in ("optimum", "identity", "beside", "same image")
    }
    return Answer(verdict, text, sureness(rises, less), mind, numbers)


def without_feedback(found: Stacked, n: int) -> Answer:
    """g"""
    parts: list[str] = []
    numbers: dict[str, Any] = {}
    for digit in ("5", "7"):
        surviving = found[digit]["surviving"]
        total = {name: 1 - _gone(found[digit]["loss"], name) for name in surviving}
        best = {name: 1 - _gone(found[digit]["loss"], name, best=True) for name in surviving}
        numbers[digit] = {"loss": {k: rows(v) for k, v in found[digit]["loss"].items()}, "share": total, "best": best}
        parts.append(
            f"On {digit}s, of the gain of the full run remain {percent(total[BLIND])} where every step sees the"
            f" unwarped image ({percent(best[BLIND])} at its best step), {percent(total[MEAN])} with mean steps,"
            f" {percent(total[ONCE])} with the first step alone and {percent(total[OTHERS])} with another pair's steps."
        )
    loss = found["5"]["loss"]
    lost = Difference("loss of blind steps minus of the full run", loss[BLIND][:, n] - loss[FULL][:, n])
    share = numbers["5"]["share"][BLIND]
    verdict = "all but needed" if share < 0.5 and lost.above else "partly needed" if lost.above else "not needed"
    mind = f"Blind steps that keep {'more' if share < 0.5 else 'less'} than half of the gain."
    return Answer(verdict, " ".join(parts), sureness(lost), mind, numbers)


def follows(found: Stacked, n: int) -> Answer:
    """h"""
    swapped, straight, kept = found["swapped"], found["straight"], found["kept"]
    gain = mean(straight[:, 0]) - mean(straight[:, -1])
    share, share_kept = ((mean(straight[:, 0]) - mean(run[:, -1])) / gain for run in (swapped, kept))
    near = Difference("loss of keeping the first target minus of following the second", kept[:, -1] - swapped[:, -1])
    behind = Difference("loss of the swapped run minus of a straight one", swapped[:, -1] - straight[:, -1])
    steps = found["steps_swapped"]
    never = float(np.isnan(steps).mean())
    usual, straightly = (_median(found[f"steps_{name}"]) for name in ("swapped", "straight"))
    verdict = "follows" if near.above and share > 0.9 else "follows in part" if near.above else "does not follow"
    text = (
        f"After the swap it reaches {percent(share)} of what a straight run to the second target gains; going on"
        f" towards the first target has {percent(share_kept)}. Steps until 90 % of that gain (median of the pairs that"
        f" get there): {usual} after the swap, {straightly} straight; {percent(never)} never get there after the swap."
    )
    mind = "A second target reached no better than by going on towards the first."
    numbers = {name: rows(found[name]) for name in ("swapped", "straight", "kept", "before")}
    return Answer(verdict, text, sureness(near, behind), mind, {**numbers, "share": share, "never": never})


def due_to(found: Stacked, n: int) -> Answer:
    """j"""
    table: dict[str, dict[str, float]] = {}
    for name, each in found.items():
        five, seven = (each[digit]["ssd"] for digit in ("5", "7"))
        loss, seven_loss = (each[digit]["loss"] for digit in ("5", "7"))
        table[name] = {
            "ssd_5": 1 - mean(five[:, n]) / mean(five[:, 0]),
            "ssd_7": 1 - mean(seven[:, n]) / mean(seven[:, 0]),
            "loss_1": mean(loss[:, 1]),
            "loss_n": mean(loss[:, n]),
            "loss_2n": mean(loss[:, 2 * n]),
            "loss_7_n": mean(seven_loss[:, n]),
            "folds_n": mean(each["5"]["folds"][:, n]),
            "blind": float(np.nanmedian(each["surviving"][BLIND])),
            "retarget": float(np.nanmedian(each["share"])),
            "drift_of_same": mean(each["drift of the same image"][:, n]),
        }
    rest = [name for name in table if name != TIED]
    against = [
        Difference(
            f"loss of '{name}' minus of tied weights, {d}s", found[name][d]["loss"][:, n] - found[TIED][d]["loss"][:, n]
        )
        for name in rest
        for d in ("5", "7")
    ]
    told = joined(
        [
            f"{name} {percent(row['ssd_5'])} on 5s and {percent(row['ssd_7'])} on 7s (loss {row['loss_n']:.4f} after"
            f" {n} steps, {row['loss_2n']:.4f} after {2 * n})"
            for name, row in table.items()
        ]
    )
    general = table["equivariant"]["ssd_7"] >= table[TIED]["ssd_7"]
    verdict = "equivariance generalises" if general else "not equivariance alone"
    text = (
        f"SSD reduced by: {told}. The convolutions, which know no place, {'do' if general else 'do not do'} at least as"
        " well on 7s as the tied network, so that what it does with strange digits is"
        f" {'no proof of more than equivariance' if general else 'not explained by equivariance alone'}."
    )
    mind = "The order of the networks on 7s reversed."
    curves = {name: {digit: rows(each[digit]["loss"]) for digit in ("5", "7")} for name, each in found.items()}
    differences = {each.what: each.described for each in against}
    numbers = {
        "table": table,
        "curves": curves,
        "differences": differences,
        "blind": described(found[TIED]["surviving"][BLIND]),
    }
    return Answer(verdict, text, sureness(*against), mind, numbers)


def _gone(loss: Stacked, name: str, best: bool = False) -> float:
    """The share of the full run's mean gain that a variant does not have."""
    ends = {key: np.nanmean(loss[key], (0, 2)) for key in (FULL, name)}
    gain = ends[FULL][0] - ends[FULL][-1]
    end = ends[name].min() if best else ends[name][-1]
    return float((end - ends[FULL][-1]) / gain)


def _median(steps: np.ndarray) -> str:
    """For people."""
    known = steps[np.isfinite(steps)]
    return f"{np.median(known):.0f}" if known.size else "none"
