"""The sentences follow the numbers: for every probe, numbers that say one thing and numbers that say the other."""

import numpy as np
import pytest

from stepwarp.probes.findings import QUESTIONS, findings, value
from stepwarp.probes.statistics import described, described_rows
from stepwarp.probes.study import ProbedSubject, contrasts, path_probe, per_step_probe, retarget_probe
from stepwarp.registrar.steps import Images

NOISE = 0.01 * np.random.default_rng(0).normal(size=6)


def rows(*means):
    values = np.array(means)[:, None] + NOISE
    return {"rows": described_rows(values), "values": values}


def one(mean):
    return {"value": described(mean + NOISE), "values": mean + NOISE}


def steps(final, twice):
    return {
        "loss, 1 x": rows(1.0, 0.7, final),
        "loss, 2 x": rows(1.0, 0.7, final, 0.5, twice),
        "loss, maps of another pair": one(1.1),
        "folds, 1 x": rows(0, 0, 0),
    }


def test_steps_that_go_on_helping_and_steps_that_do_harm():
    better, worse = (" ".join(findings("a", steps(0.5, twice))) for twice in (0.3, 0.8))
    assert "more steps still help" in better
    assert "more steps do harm" in worse
    assert "every step lowers it" in better
    assert "rises in step 2" in findings("a", steps(0.9, 0.9))[0]


def cosines(own, null, final):
    names = {"raw": own - 0.2, "smooth 2": own, "raw of another pair": null, "smooth 2 of another pair": null}
    names["final answer"] = final
    return {f"{name}, {of}": one(mean) for name, mean in names.items() for of in ("all steps", "before the last")}


def test_a_descent_and_a_jump():
    descent, jump = (findings("b", cosines(*of)) for of in ((0.8, 0.1, 0.4), (0.3, 0.3, 0.9)))
    assert "'smooth 2' best" in descent[0]
    assert "are a descent" in descent[1]
    assert "look more like a descent" in descent[2]
    assert "is not shown" in jump[1]
    assert "look less like a descent" in jump[2]


@pytest.mark.parametrize(("left", "said"), [(0.02, "forgotten"), (0.99, "is kept"), (0.5, "less than the start did")])
def test_starts_that_are_forgotten_or_kept(left, said):
    numbers = {"ends of two pairs": one(3.0)}
    for name in ("random start 1", "random start 2", "another pair's solution"):
        numbers |= {f"left, {name}": one(left), f"distance, {name}": rows(4.0, 4.0 * left)}
    assert said in findings("e", numbers)[0]


def resting(share, rise):
    numbers = {
        "from answer to optimum": one(1.0),
        "loss by evaluation": rows(0.5, 0.4),
        "loss rise, optimum": one(rise),
    }
    for name in ("optimum", "answer", "beside the optimum", "same image"):
        numbers[f"share of the way, {name}"] = one(share)
    return numbers | {f"drift, {name}": rows(0, share) for name in ("optimum", "identity", "same image")}


def test_staying_and_leaving():
    stays, leaves = (findings("f", resting(*of)) for of in ((0.02, -0.1), (0.6, 0.2)))
    assert "it stays" in stays[1]
    assert "falls by 0.099" in stays[1]
    assert "it does not stay" in leaves[1]
    assert "not where it comes to rest" in leaves[1]


def test_following_and_ignoring_a_target():
    def numbers(share, kept, needed):
        return {
            "share": one(share),
            "share_kept": one(kept),
            "steps_swapped": {"value": described(needed), "values": needed},
            "steps_straight": one(3),
        }

    assert "it follows its target" in findings("h", numbers(0.95, 0.1, np.full(6, 4.0)))[0]
    ignoring = findings("h", numbers(0.1, 0.1, np.full(6, np.nan)))
    assert "is not shown" in ignoring[0]
    assert "by 0 of 6 pairs" in ignoring[1]


def test_contrasts_that_are_survived_and_that_do_harm():
    numbers = {"share, as they were": one(1), "share, both images inverted": one(0.97)}
    numbers |= {"share, moving image synthetic": one(-0.4), "share, map of another pair": one(-1)}
    counted, survived, harmed, null = findings("contrast", numbers)
    assert counted.startswith("Of 2 changes of contrast 1 leave")
    assert survived.startswith("Both images inverted")
    assert "it does with that contrast" in survived
    assert "it does harm" in harmed
    assert "-100" in null


def test_what_is_not_defined_is_said():
    assert value(described([np.nan])) == "not defined"
    assert value(described([0.5])) == "0.500"
    assert all(question.null and question.control and question.change for question in QUESTIONS.values())


def test_a_study_of_an_ignorant_step_finds_it_out(ignorant, pairs, objective):
    subject = ProbedSubject(ignorant, *pairs, objective)
    assert "forgotten" not in findings("e", path_probe(subject))[0]
    assert "is not shown" in findings("h", retarget_probe(subject))[0]
    numbers = per_step_probe(subject)
    assert numbers["loss, maps of another pair"]["values"] == pytest.approx(numbers["loss, 1 x"]["values"][-1])
    with pytest.raises(ValueError, match="two or more"):
        ProbedSubject(ignorant, *(Images(p.data[:1], p.grid) for p in pairs), objective)


def test_changed_contrasts_keep_the_background_and_the_range(pairs):
    image = pairs[0].data.clamp(0, 1)
    image[:, :, :4] = 0
    for name, change in contrasts(seed=3).items():
        changed = change(image)
        assert (changed[:, :, :4] == 0).all(), name
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert not changed.allclose(image, atol=0.05), name
