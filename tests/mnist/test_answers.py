"""The sentences follow from the numbers, whichever way these turn out."""

import numpy as np
import pytest

from stepwarp.mnist.answers.common import Difference, sureness
from stepwarp.mnist.answers.descent import after_each_step
from stepwarp.mnist.answers.dynamics import one_end
from stepwarp.mnist.answers.pulled import pulled
from stepwarp.mnist.pull import CLAIM, CONTROLS, FIVES

#: PAIRS: as many as a sure answer needs. FEW: as many as an answer needs.
SEEDS, PAIRS, FEW, N = 5, 480, 40, 9


def around(means, spread=0.02, pairs=FEW):
    """(SEEDS, rows, pairs) with these means."""
    means = np.asarray(means, float)[None, :, None]
    return means + spread * np.random.default_rng(0).normal(size=(SEEDS, means.shape[1], pairs))


def hill(height, end=0.05):
    """0.05 at the start, `height` at step 4, `end` from step 9 on."""
    return np.interp(np.arange(19), [0, 4, 9, 18], [0.05, height, end, end])


def runs(claim, control, near, pairs=FEW):
    means = dict.fromkeys(CONTROLS, (control, 0.2 + 0 * near)) | {FIVES: (0.9 + 0 * near, 0.1 + 0 * near)}
    means[CLAIM] = claim, near
    return {
        name: {"probability": around(one, pairs=pairs), "distance": around(other, pairs=pairs)}
        for name, (one, other) in means.items()
    }


def test_a_pull_that_rises_above_all_controls_and_falls_again_holds():
    answer = pulled(runs(hill(0.6), hill(0.1), 0.25 - hill(0.15), PAIRS), N)
    assert (answer.verdict, answer.numbers["peak"]) == ("holds", 4)
    assert answer.sure.startswith("high")
    assert "All conditions are met" in answer.found


@pytest.mark.parametrize(
    ("claim", "control", "near", "unmet"),
    [
        (hill(0.6), hill(0.7), 0.25 - hill(0.15), f"minus that of '{CONTROLS[0]}'"),
        (hill(0.6, end=0.7), hill(0.1), 0.25 - hill(0.15), "at its peak minus after step 9"),
        (hill(0.6), hill(0.1), 0.2 + hill(0.15), "distance to 5s at the start minus at the peak"),
    ],
    ids=["a control rises as well", "never falls", "the second instrument says no"],
)
def test_a_pull_that_misses_one_condition_does_not_hold(claim, control, near, unmet):
    answer = pulled(runs(claim, control, near), N)
    assert answer.verdict == "does not hold"
    assert unmet in answer.found


def test_few_seeds_and_disagreeing_seeds_are_not_sure():
    clear = Difference("x", np.random.default_rng(0).normal(1, 0.1, (SEEDS, PAIRS)))
    assert sureness(clear).startswith("high")
    assert sureness(Difference("x", clear.values[:1, :20])).startswith("fair, 1 seeds and 20 pairs are too few")
    assert sureness(Difference("x", clear.values * np.array([1, 1, 1, 1, -1])[:, None])).startswith("low")
    assert sureness(Difference("x", clear.values - 1)).startswith("low")


@pytest.mark.parametrize(
    ("late", "verdict"), [(0.04, "drifts away"), (0.01, "goes on improving")], ids=["worse", "better"]
)
def test_what_happens_beyond_the_trained_number_is_told(late, verdict):
    loss = np.interp(np.arange(37), [0, 9, 18, 36], [0.1, 0.02, late, late])
    rows = {name: around(loss, 0.001, pairs=20) for name in ("loss", "ssd", "ncc", "regularity", "folds", "step")}
    null = {name: values[:, :1] for name, values in rows.items()}
    answer = after_each_step({"5": rows, "7": rows, "5 null": null, "7 null": null}, N)
    assert answer.verdict == verdict
    assert "80 %" in answer.found


@pytest.mark.parametrize(("left", "verdict"), [(0.05, "one end"), (0.5, "partly"), (1.0, "no")])
def test_how_much_of_the_starts_distance_is_left_decides(left, verdict):
    rows = around(np.linspace(3, 3 * left, 37), 0.01, pairs=20)
    found = {"identity": {"loss": rows}, "random 3": {"distance": rows, "loss": rows}}
    answer = one_end({**found, "another pair": {"to_end": rows[:, :1]}}, N)
    assert answer.verdict == verdict
