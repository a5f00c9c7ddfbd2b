"""The answer to d: is a 7 pulled into the distribution of 5s?"""

from __future__ import annotations

import numpy as np

from stepwarp.mnist.answers.common import Answer, Difference, Stacked, joined, mean, rows, sureness
from stepwarp.mnist.pull import CLAIM, CONTROLS, FIVES

#: What has to happen, as it was written before the probe was run: the peak is looked for on every other pair, and
#: judged on the rest, so that it is not chosen by the pairs that it is judged on.
RULE = (
    "The claim holds only if, at the step where P(5) of 7s registered to 7s by the network trained on 5s is highest,"
    " P(5) is above its start and above every control at the same step, and is higher there than after the last trained"
    " step; and if the distance to the nearest 5 is below its start and below every control there, and rises again."
)


def pulled(found: Stacked, n: int) -> Answer:
    """d"""
    p, near = found[CLAIM]["probability"], found[CLAIM]["distance"]
    chosen, judged = slice(0, None, 2), slice(1, None, 2)
    peak = 1 + int(np.nanargmax(np.nanmean(p[:, 1 : n + 1, chosen], (0, 2))))

    def at(values: np.ndarray, step: int) -> np.ndarray:
        return values[:, step, judged]

    rises = [Difference("P(5) at its peak minus at the start", at(p, peak) - at(p, 0))]
    rises += [
        Difference(f"P(5) minus that of '{name}'", at(p, peak) - at(found[name]["probability"], peak))
        for name in CONTROLS
    ]
    falls = Difference(f"P(5) at its peak minus after step {n}", at(p, peak) - at(p, n))
    nearer = [Difference("distance to 5s at the start minus at the peak", at(near, 0) - at(near, peak))]
    nearer += [
        Difference(f"distance to 5s of '{name}' minus ours", at(found[name]["distance"], peak) - at(near, peak))
        for name in CONTROLS
    ]
    leaves = Difference(f"distance to 5s after step {n} minus at the peak", at(near, n) - at(near, peak))
    first = all(each.above for each in rises) and falls.above
    second = all(each.above for each in nearer) and leaves.above
    verdict = "holds" if first and second else "does not hold"
    failed = [each.what for each in (*rises, falls, *nearer, leaves) if not each.above]
    listed = joined([f"{mean(at(found[name]['probability'], peak)):.3f} for '{name}'" for name in CONTROLS])
    text = (
        f"P(5) of 7s registered to 7s is {mean(at(p, 0)):.3f} at the start, {mean(at(p, peak)):.3f} at its highest"
        f" (step {peak}) and {mean(at(p, n)):.3f} after {n}; at that step {listed}. 5s registered to 5s have"
        f" {mean(found[FIVES]['probability'][:, peak]):.3f}. The distance to the nearest 5 goes from"
        f" {mean(at(near, 0)):.4f} over {mean(at(near, peak)):.4f} to {mean(at(near, n)):.4f}. "
        + ("All conditions are met." if not failed else f"Not met: {joined(failed)}.")
    )
    mind = RULE + (" One of these differences with the other sign." if not failed else " All of these above 0.")
    numbers = {
        "peak": peak,
        "probability": {name: rows(values["probability"]) for name, values in found.items()},
        "distance": {name: rows(values["distance"]) for name, values in found.items()},
        "share_called_five": {
            name: (values["probability"] > 0.5).mean((0, 2)).tolist() for name, values in found.items()
        },
        "conditions": {each.what: each.described for each in (*rises, falls, *nearer, leaves)},
        "first_instrument": first,
        "second_instrument": second,
    }
    return Answer(verdict, text, sureness(*rises, falls, nearer[0]), mind, numbers)
