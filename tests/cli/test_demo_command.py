from types import SimpleNamespace

import pytest

import stepwarp.workflow.demo as module


@pytest.fixture
def calls(monkeypatch, record):
    """What the workflow was called with."""
    made = []

    def fake(out, **options):
        made.append({"out": out, **options})
        registration = SimpleNamespace(record=record)
        rows = {"error, mean (mm)": (14.039, 4.574, 0.689)}
        accuracy = {"before": None, "affine": None, "after": None}
        return SimpleNamespace(registration=registration, folder=out / "result", accuracy=accuracy, rows=lambda: rows)

    monkeypatch.setattr(module, "demo", fake)
    return made


def test_truth_and_summary_are_printed(run, calls, tmp_path):
    result = run("demo", "--out", tmp_path / "out", "--preset", "fast", "--seed", "3", "--threads", "2")
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert ["error,", "mean", "(mm)", "14.039", "4.574", "0.689"] in lines
    assert str(tmp_path / "out" / "result" / "report.html") in result.out
    [call] = calls
    assert call["progress"]
    wanted = {"preset": "fast", "seed": 3, "threads": 2, "device": "auto", "overwrite": False}
    assert call | wanted == call


def test_results_of_an_earlier_demo_are_kept(run, calls, tmp_path):
    (tmp_path / "moving.nii.gz").write_text("")
    result = run("demo", "--out", tmp_path)
    assert result.code == 4
    assert "moving.nii.gz: exists already" in result.err
    assert not calls
    assert run("demo", "--out", tmp_path, "--force").code == 0


def test_verdict_fail_is_7(run, calls, record, tmp_path):
    record["verdict"]["status"] = "fail"
    assert run("demo", "--out", tmp_path / "out").code == 7
