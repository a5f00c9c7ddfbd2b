"""What becomes of cases, with workers that only pretend."""

import json
from types import SimpleNamespace

import pytest

from stepwarp.batch import run as module
from stepwarp.batch.places import BatchPlaces
from stepwarp.batch.plan import Job
from stepwarp.errors import OutputError, RegistrationError

DONE = {"status": "done", "verdict": "pass", "lncc": 0.9, "seconds": 1.0}
FULL = {"status": "failed", "kind": "machine", "reason": "the disk is full."}
CUT = {"status": "failed", "kind": "input", "reason": "a.nii: is cut off."}


class KilledWorker(Exception):
    pass


class Future(SimpleNamespace):
    def result(self):
        return self.outcome

    def exception(self):
        return self.outcome

    def release(self):
        pass


class Crew:
    """Hands out what `script` says of each case, one outcome after the other."""

    def __init__(self, script, workers=2):
        self.script, self.workers, self.lost, self.cancelled = script, workers, False, []
        self.client = self

    def present(self):
        return self.workers

    def submit(self, function, job, **options):
        outcome = self.script[job.case].pop(0)
        if outcome == "lost":
            self.lost = True
            return Future(status="cancelled", outcome=None)
        if isinstance(outcome, Exception):
            return Future(status="error", outcome=outcome)
        return Future(status="finished", outcome=outcome)

    def cancel(self, futures, force):
        self.cancelled += futures


@pytest.fixture
def places(tmp_path, monkeypatch) -> BatchPlaces:
    monkeypatch.setattr(module, "_PAUSE", 0.01)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.005)
    found = BatchPlaces(tmp_path)
    found.failures.mkdir()
    return found


def loop(places, script, retries=2):
    said = []
    crew = Crew(script)
    jobs = [Job(case, places.case(case), {}, {}, {}, {}) for case in script]
    module._Loop(crew, places, retries, lambda step: None, said.append).run(jobs)
    return said


def failures(places):
    return {case: content["reason"] for case, content in places.read_failures().items()}


def test_faults_of_the_machine_are_tried_again_and_bad_inputs_are_not(places):
    said = loop(places, {"a": [FULL, KilledWorker(), DONE], "b": [CUT], "c": [FULL, FULL, FULL], "d": [DONE]})
    assert failures(places) == {"b": "a.nii: is cut off.", "c": "the disk is full."}
    assert places.read_failures()["c"]["attempts"] == ["the disk is full."] * 3
    assert "a: the disk is full. Trying again in 0 s." in said
    assert any(line.startswith("a: its worker died") for line in said)
    assert sum(line.startswith("[") for line in said) == 4
    assert said[-1].startswith("[4/4] ")


def test_a_case_that_the_gpu_left_to_the_processor_is_said(places):
    (line,) = loop(places, {"a": [DONE | {"gpu_failure": {"device": "a GPU", "reason": "CUDA error: lost"}}]})
    assert line == (
        "[1/1] a: pass, local correlation 0.90, 1.0 s; the GPU failed, and the processor computed it: CUDA error: lost"
    )
    assert failures(places) == {}


def test_a_success_takes_the_old_reason_away(places):
    places.failure("a").write_text(json.dumps({"reason": "it was so"}))
    loop(places, {"a": [DONE]})
    assert failures(places) == {}


def test_what_cannot_be_started_at_all_says_so(places):
    loop(places, {"a": [ModuleNotFoundError("No module named 'stepwarp'")]}, retries=0)
    assert failures(places)["a"].startswith("it could not be started on a worker (ModuleNotFoundError: No module")


def test_a_reason_that_cannot_be_written_down_is_told_and_stops_nothing(places, monkeypatch):
    def refuse(path, content):
        raise OutputError("the disk is full")

    monkeypatch.setattr(module, "write_record", refuse)
    said = loop(places, {"a": [CUT], "b": [DONE]})
    assert "[1/2] a: failed, a.nii: is cut off." in said
    assert "a: the reason could not be written down (the disk is full)" in said
    assert said[-1].startswith("[2/2] b: pass")


def test_a_lost_scheduler_is_said(places):
    with pytest.raises(RegistrationError, match=r"the Dask scheduler is lost, 2 of 3 cases had ended.*same command"):
        loop(places, {"a": [DONE], "b": [DONE], "c": ["lost"]})
