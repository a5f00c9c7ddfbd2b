"""The second try after a failed one: when it is made, which of the two is kept, and what the record says of it."""

import json
import time

import pytest
import torch

from stepwarp.config import AffineSettings, DeformableSettings, Level, Preset
from stepwarp.errors import RegistrationError
from stepwarp.geometry import Affine, Grid, Image
from stepwarp.workflow.escalation import escalated, thorough
from stepwarp.workflow.register import register
from stepwarp.workflow.registration import Registration

HASTY = Preset(
    affine=AffineSettings(across=6.66667, refine_across=(), candidates=1),
    deformable=DeformableSettings(levels=(Level(across=6.66667, iterations=2),)),
)


def made(status, information, name):
    image = Image(torch.zeros(2, 2, 2), Grid.isotropic((2, 2, 2)))
    record = {
        "stages": [{"name": "affine", "seconds": 1.0, "peak_mib": 1}],
        "measures": {"information": {"affine": 0.1, "final": information}},
        "verdict": {"status": status, "reasons": [f"the {name} is {status}"]},
        "escalation": None,
    }
    return Registration(image, image, Affine.identity(3), None, None, record)


@pytest.fixture(scope="module")
def noise():
    random = torch.Generator().manual_seed(1)
    return [
        Image(torch.rand(12, 13, 14, generator=random), Grid.isotropic((12, 13, 14), 12.0), name) for name in ("a", "b")
    ]


@pytest.mark.parametrize(
    ("status", "information", "kept"),
    [("pass", 0.1, "second"), ("check", 0.1, "second"), ("fail", 0.2, "second"), ("fail", 0.1, "first")],
)
def test_the_better_one_is_kept_by_the_verdict_then_by_the_information(status, information, kept):
    first, second = made("fail", 0.15, "first"), made(status, information, "second")
    found = escalated(first, lambda: second, time.monotonic(), None)
    record = found.record["escalation"]
    assert record["kept"] == kept
    assert record["reason"] == "the first is fail"
    for name, tried in (("first", first), ("second", second)):
        assert record[name] == {key: tried.record[key] for key in ("verdict", "measures")}
    assert found.record["measures"] == {"first": first, "second": second}[kept].record["measures"]
    assert [stage["name"] for stage in found.record["stages"]] == ["affine", "second affine"]
    assert "second try" in found.record["verdict"]["reasons"][-1]
    assert found.record["verdict"]["status"] == (status if kept == "second" else "fail")
    assert first.record["escalation"] is None


def test_a_second_try_that_breaks_down_leaves_the_first():
    def again():
        raise RegistrationError("nothing in common")

    found = escalated(made("fail", 0.1, "first"), again, time.monotonic(), None)
    assert found.record["escalation"]["kept"] == "first"
    assert found.record["escalation"]["second"] == "nothing in common"
    assert "broke down: nothing in common" in found.record["verdict"]["reasons"][-1]


def test_without_time_for_it_there_is_no_second_try():
    now = time.monotonic()
    found = escalated(made("fail", 0.1, "first"), pytest.fail, now - 10, now + 5)
    assert found.record["escalation"] == {"tried": None, "reason": "the first is fail"}
    assert "no time for a second" in found.record["verdict"]["reasons"][-1]


def test_thorough_means_more_starts_more_iterations_and_mutual_information(recipe):
    more = thorough(recipe)
    assert more.affine.candidates > recipe.affine.candidates
    assert more.affine.multimodal
    for level, before in zip(more.deformable.levels, recipe.deformable.levels, strict=True):
        assert level.iterations > before.iterations
        assert level.across == before.across
    assert more.deformable.similarity == recipe.deformable.similarity


def test_noise_is_tried_twice_and_the_record_says_so(noise):
    steps = []
    found = register(*noise, preset=HASTY, threads=1, progress=steps.append)
    record = found.record
    assert record["verdict"]["status"] == "fail"
    assert record["escalation"]["tried"]
    assert record["escalation"]["first"]["verdict"]["status"] == "fail"
    assert record["inputs"]["fixed"]["shape"] == [12, 13, 14]
    assert record["settings"]["affine"]["candidates"] == 1
    # Measured twice where the deformation was dropped.
    names = list(dict.fromkeys(stage["name"] for stage in record["stages"]))
    searched = ["affine", "structures", "deformable", "measure"]
    assert names == ["read", *searched, *(f"second {name}" for name in searched)]
    assert "second affine" in {step.stage for step in steps}
    assert json.loads(json.dumps(record, allow_nan=False)) == json.loads(json.dumps(record))


def test_unless_it_is_not_wanted_or_there_is_no_time(noise):
    calm = register(*noise, preset=HASTY, threads=1, escalate=False).record
    assert calm["verdict"]["status"] == "fail"
    assert calm["escalation"] is None
    assert {stage["name"] for stage in calm["stages"]} == {"read", "affine", "structures", "deformable", "measure"}
    assert register(*noise, preset=HASTY, threads=1, time_budget=1e-3).record["escalation"]["tried"] is None


def test_what_passes_is_tried_once(registration):
    assert registration.record["escalation"] is None
