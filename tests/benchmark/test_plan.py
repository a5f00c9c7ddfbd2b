"""What is run again and what is not, from files that look like those of earlier runs."""

import json
from dataclasses import replace

import pytest

import stepwarp
from stepwarp.benchmark.judged import standard
from stepwarp.benchmark.methods import find_method
from stepwarp.benchmark.plan import Asked, plan
from stepwarp.data.manifest import pairs, read_manifest
from stepwarp.files import sha256, write_affine
from stepwarp.geometry import Affine

METHOD = find_method("identity")


@pytest.fixture
def pair(one_pair):
    return pairs(read_manifest(one_pair), one_pair.parent)[0]


@pytest.fixture
def asked(tmp_path):
    return Asked(tmp_path / "out", threads=2, pictures=False)


@pytest.fixture
def finished(pair, asked):
    """A run and its case, as they are left behind."""
    folder = asked.places.run(pair.id, "identity")
    folder.mkdir(parents=True)
    write_affine(folder / "0GenericAffine.mat", Affine.identity(3))
    run = {
        "inputs": {"fixed": sha256(pair.fixed.image), "moving": sha256(pair.moving.image)},
        "threads": 2,
        "seed": 0,
        "device": "cpu",
        "stepwarp": stepwarp.__version__,
        "packages": {},
        "record": {},
    }
    (folder / "run.json").write_text(json.dumps(run))
    asked.places.cases.mkdir()
    path = asked.places.case(pair.id, "identity")
    path.write_text(json.dumps({"status": "done", "run": run, "judged": standard(pair, sha256), "evaluation": {}}))
    return folder / "run.json", path


def todo(pair, asked, method=METHOD):
    [case] = plan([pair], [method], asked)
    return case.todo, case.why


def change(path, **what):
    path.write_text(json.dumps(json.loads(path.read_text()) | what))


def test_nothing_there_is_run(pair, asked):
    assert todo(pair, asked) == ("run", "")


def test_finished_is_done_unless_asked_for_again(pair, asked, finished):
    assert todo(pair, asked) == ("done", "")
    assert todo(pair, replace(asked, again=True))[0] == "run"


def test_run_but_not_judged_is_judged(pair, asked, finished):
    finished[1].unlink()
    assert todo(pair, asked) == ("judge", "it was run, but not judged")


def test_a_run_that_was_cut_off_is_run(pair, asked, finished):
    finished[0].unlink()
    finished[1].unlink()
    assert todo(pair, asked) == ("run", "")


def test_the_scores_are_enough_once_the_transforms_are_deleted(pair, asked, finished):
    finished[0].unlink()
    assert todo(pair, replace(asked, pictures=True)) == ("done", "")


def test_a_missing_picture_is_drawn(pair, asked, finished):
    assert todo(pair, replace(asked, pictures=True)) == ("judge", "it has no picture")


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ({"threads": 1}, "threads was 1, now 2"),
        ({"seed": 3}, "seed was 3, now 0"),
        ({"stepwarp": "0.0.1"}, f"stepwarp was 0.0.1, now {stepwarp.__version__}"),
        ({"device": "a GPU"}, "device was a GPU, now cpu"),
        ({"inputs": {"fixed": "other", "moving": "other"}}, "the fixed image has changed"),
        ({"packages": {"numpy": "0.9"}}, "numpy was 0.9, now "),
    ],
)
def test_another_run_than_the_one_asked_for_is_run_again(pair, asked, finished, what, why):
    change(finished[0], **what)
    assert todo(pair, asked)[0] == "run"
    assert todo(pair, asked)[1].startswith(why)


def test_other_settings_of_the_method_are_run_again(pair, asked, finished):
    method = find_method("stepwarp-fast")
    for path in (asked.places.run(pair.id, "identity"), finished[1]):
        path.rename(path.with_name(path.name.replace("identity", "stepwarp-fast")))
    run = asked.places.run(pair.id, "stepwarp-fast") / "run.json"
    change(run, record={"settings": json.loads(json.dumps(method.settings))})
    assert todo(pair, asked, method)[0] == "judge"
    change(run, record={"settings": method.settings | {"affine_only": True}})
    assert todo(pair, asked, method) == ("run", "the method's settings have changed")


def test_other_labels_are_only_judged_again(pair, asked, finished):
    other = replace(pair, fixed=replace(pair.fixed, labels=pair.moving.labels))
    assert todo(other, asked) == ("judge", "what it is judged by has changed: files")
    assert todo(replace(pair, ignore_labels=(2,)), asked)[0] == "judge"
    finished[0].unlink()
    assert todo(other, asked)[0] == "run"


def test_what_failed_is_tried_again(pair, asked, finished):
    finished[0].unlink()
    finished[1].write_text(json.dumps({"status": "failed", "reason": "out of memory"}))
    assert todo(pair, asked) == ("run", "it failed before: out of memory")


def test_absent_only_where_there_is_something_to_run(pair, asked, finished, stand_ins):
    assert todo(pair, asked, stand_ins.METHODS["away"]) == ("absent", "reg_away is not on the PATH; build it")


def test_methods_take_turns_on_each_pair(manifest, asked):
    chosen = [find_method(name) for name in ("identity", "centre-of-mass")]
    cases = plan(pairs(read_manifest(manifest), manifest.parent), chosen, asked)
    assert [str(case) for case in cases] == [
        "s0_s1 identity",
        "s0_s1 centre-of-mass",
        "s1_s2 identity",
        "s1_s2 centre-of-mass",
    ]
