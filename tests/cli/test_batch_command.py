"""The command's own words and codes; what it starts is a stand-in here."""

import json

import pytest

from stepwarp.files.lock import locked


@pytest.fixture
def study(tmp_path):
    """A manifest of one pair whose images are not there."""
    path = tmp_path / "study.json"
    images = {name: {"image": f"{name}.nii.gz"} for name in "ab"}
    path.write_text(
        json.dumps({"name": "study", "images": images, "pairs": [{"id": "a_b", "fixed": "a", "moving": "b"}]})
    )
    return path


def test_a_dry_run_says_what_and_why_and_writes_nothing(run, study, tmp_path):
    result = run("batch", study, "--out", tmp_path / "out", "--dry-run")
    assert result.code == 0
    assert "failed  a_b: " in result.out
    assert "0 to run, 0 done, 1 that cannot be run" in result.out
    as_json = run("batch", study, "--out", tmp_path / "out", "--dry-run", "--json")
    assert [row["todo"] for row in json.loads(as_json.out)["cases"]] == ["failed"]
    assert not (tmp_path / "out").exists()


def test_cases_that_cannot_be_run_are_6_and_everything_is_written(run, study, tmp_path):
    out = tmp_path / "out"
    result = run("batch", study, "--out", out)
    assert result.code == 6
    assert "1 of 1 case failed" in result.err
    assert "a.nii.gz: does not exist" in result.out
    assert {"index.html", "cases.csv", "summary.json", "failed"} <= {path.name for path in out.iterdir()}
    again = run("batch", study, "--out", out, "--summary-only", "--json")
    assert again.code == 6
    assert json.loads(again.out)["counts"]["failed"] == 1


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--steps", "2"], 3, "no network to run them"),
        (["--only", "a_c"], 3, "did you mean 'a_b'"),
        (["--split", "test"], 3, "has no pair in the split 'test'"),
        (["--to", "template.nii.gz"], 3, "template.nii.gz: does not exist"),
        (["--scheduler", "tcp://here:1", "--cluster", "slurm"], 3, "two places"),
        (["--cluster-option", "queue"], 3, "write NAME=VALUE"),
        (["--cluster-option", "queue=long"], 3, "name it with --cluster"),
        (["--summary-only"], 3, "holds no batch"),
        (["--cluster", "lsf"], 2, "lsf"),
        (["--workers", "0"], 2, "workers"),
    ],
)
def test_what_cannot_be_asked_for(run, study, tmp_path, options, code, text):
    result = run("batch", study, "--out", tmp_path / "out", *options)
    assert result.code == code
    assert text in result.err
    assert "Traceback" not in result.err


def test_a_folder_that_is_held_is_4(run, study, tmp_path):
    with locked(tmp_path / "out", "another batch"):
        result = run("batch", study, "--out", tmp_path / "out")
    assert result.code == 4
    assert "another batch is writing into it (process" in result.err


def test_a_verdict_of_fail_is_7(run, study, tmp_path, monkeypatch):
    from stepwarp.batch.study import Batch

    row = {"case": "a_b", "status": "done", "verdict": "fail", "reasons": []}
    counts = {"failed": 0, "waiting": 0, "fail": 1, "check": 0, "pass": 0}
    summary = {"asked": ["a_b"], "counts": counts, "cases": [row], "notes": []}
    monkeypatch.setattr(Batch, "run", lambda self, **options: summary)
    assert run("batch", study, "--out", tmp_path / "out").code == 7
