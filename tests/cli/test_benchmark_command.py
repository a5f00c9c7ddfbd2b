"""The command around the benchmark; running it for real is tested in tests/benchmark."""

import json

import pytest

from stepwarp.benchmark import runner
from stepwarp.benchmark.methods import METHODS

MANIFEST = {
    "name": "nothing much",
    "images": {"a": {"image": "a.nii.gz", "split": "test"}, "b": {"image": "b.nii.gz", "split": "test"}},
    "pairs": [{"id": "a_b", "fixed": "a", "moving": "b", "split": "test"}],
}


@pytest.fixture
def manifest(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).write_bytes(name.encode())
    path = tmp_path / "study.json"
    path.write_text(json.dumps(MANIFEST))
    return path


def done(method, seconds):
    return {
        "pair": "a_b",
        "method": method,
        "status": "done",
        "run": {"seconds": seconds, "cpu_seconds": seconds, "peak_mib": 7, "threads": 1, "date": "2026-01-02"},
        "evaluation": {"mean_dice": 0.5},
    }


@pytest.fixture
def fake_run(monkeypatch):
    """Stands in for the runner: writes a case per planned one; `calls` tells what it was asked for."""
    calls = []

    def run(cases, asked, *, progress, tell):
        calls.append((cases, asked))
        for number, case in enumerate(cases):
            tell(str(case))
            path = asked.places.case(case.pair.id, case.method.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(done(case.method.name, number + 1.0)))
        return run.failed

    run.failed = 0
    run.calls = calls
    monkeypatch.setattr(runner, "run", run)
    return run


def test_the_help_is_the_manual(run):
    result = run("benchmark", "--help")
    assert result.code == 0
    options = "--methods --split --pairs --data --out --baseline --threads --device --seed --again --dry-run"
    for word in (options + " --summary-only --no-pictures --json --list-methods table.md cases.csv index.html").split():
        assert word in result.out


def test_methods_are_listed_with_what_keeps_them_away(run):
    result = run("benchmark", "--list-methods")
    assert result.code == 0
    for name, method in METHODS.items():
        assert any(line.startswith(name + " ") and method.title in line for line in result.out.splitlines())
        absent = method.missing()
        assert absent is None or f"cannot run here: {absent}" in result.out


def test_a_dry_run_says_what_and_writes_nothing(run, manifest, tmp_path):
    options = ["--methods", "identity,centre-of-mass", "--out", tmp_path / "out"]
    result = run("benchmark", manifest, *options, "--dry-run")
    assert result.code == 0
    assert result.out.splitlines() == [
        "run     a_b identity",
        "run     a_b centre-of-mass",
        "2 to run, 0 to judge, 0 absent, 0 done",
    ]
    assert not (tmp_path / "out").exists()
    plan = json.loads(run("benchmark", manifest, *options, "--dry-run", "--json").out)
    assert plan[0] == {"pair": "a_b", "method": "identity", "todo": "run", "why": ""}


def test_options_reach_the_runner(run, manifest, tmp_path, fake_run):
    options = ["--methods", "identity, stepwarp-fast", "--threads", "3", "--seed", "5", "--device", "cpu", "--again"]
    more = ["--no-pictures", "--split", "test", "--pairs", "a_b", "--baseline", "identity", "--out", tmp_path / "out"]
    result = run("benchmark", manifest, *options, *more)
    assert result.code == 0
    [(cases, asked)] = fake_run.calls
    assert [str(case) for case in cases] == ["a_b identity", "a_b stepwarp-fast"]
    assert (asked.threads, asked.seed, asked.device, asked.again, asked.pictures) == (3, 5, "cpu", True, False)
    assert "stepwarp-fast: Dice +0.0000 against identity, better on 0, worse on 0, equal on 1, p 1" in result.out
    assert str(tmp_path / "out" / "index.html") in result.out
    assert "a_b identity" in result.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"cases", "summary.json", "table.md", "cases.csv", "index.html"}


def test_json_is_the_summary_and_nothing_else(run, manifest, tmp_path, fake_run):
    result = run("benchmark", manifest, "--methods", "identity", "--out", tmp_path / "out", "--json")
    assert json.loads(result.out) == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert result.err == ""


def test_summary_only_needs_no_data(run, manifest, tmp_path, fake_run):
    run("benchmark", manifest, "--methods", "identity", "--out", tmp_path / "out")
    (tmp_path / "out" / "table.md").unlink()
    (tmp_path / "a.nii.gz").unlink()
    assert run("benchmark", manifest, "--out", tmp_path / "out", "--summary-only").code == 0
    assert (tmp_path / "out" / "table.md").exists()
    assert len(fake_run.calls) == 1


def test_cases_that_failed_are_code_6_and_everything_is_written(run, manifest, tmp_path, fake_run):
    fake_run.failed = 2
    result = run("benchmark", manifest, "--methods", "identity", "--out", tmp_path / "out")
    assert result.code == 6
    assert "2 cases failed" in result.err
    assert (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "stepwarp-fst"], "did you mean 'stepwarp-fast'?"),
        (["--baseline", "ants"], "method 'ants' does not exist"),
        (["--pairs", "a_c"], "did you mean 'a_b'?"),
        (["--split", "training"], "its splits are test"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--summary-only"], "holds no case"),
    ],
)
def test_what_there_is_not_is_code_3(run, manifest, tmp_path, options, message):
    result = run("benchmark", manifest, "--out", tmp_path / "out", *options)
    assert result.code == 3
    assert message in result.err
    assert result.err.count("\n") == 1


def test_an_unknown_manifest_is_code_3(run):
    assert run("benchmark", "oassis").code == 3
