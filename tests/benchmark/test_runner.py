"""Real processes on real files, small ones; and what is left when they are killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from stepwarp.benchmark import runner, study
from stepwarp.benchmark.runner import Forecast
from stepwarp.benchmark.study import BenchmarkStudy, ask
from stepwarp.errors import OutputError
from stepwarp.files.lock import locked

STAND_INS = Path(__file__).parent / "stand_ins.py"


def benchmark(manifest, methods, *, out, data, baseline="identity", threads=None, gpu=True, **told):
    """All of a benchmark, as the command makes it; its summary."""
    chosen = BenchmarkStudy.of(manifest, methods, baseline=baseline)
    asked = ask(out, threads=threads, gpu=gpu)
    runner.run(chosen.plan(data, asked), asked, **told)
    return chosen.conclude(out)


def case(out, pair, method):
    return json.loads((out / "cases" / f"{pair}__{method}.json").read_text())


def test_a_study_from_manifest_to_page(one_pair, tmp_path, stand_ins):
    """Methods that succeed, fail and are absent, in one run: the others go on."""
    out, lines, steps = tmp_path / "out", [], []
    names = ["centre-of-mass", "broken", "away", "tiny"]
    wanted = {"out": out, "data": one_pair.parent, "baseline": "centre-of-mass", "threads": 2, "gpu": False}
    summary = benchmark(one_pair, names, **wanted, tell=lines.append, progress=steps.append)

    methods = summary["methods"]
    assert {name: (found["cases"], found["failed"]) for name, found in methods.items()} == {
        "centre-of-mass": (1, 0),
        "broken": (0, 1),
        "away": (0, 0),
        "tiny": (1, 0),
    }
    assert methods["away"]["absent"] == "reg_away is not on the PATH; build it"
    assert case(out, "s0_s1", "broken")["reason"] == "image.nii.gz: broke\\ndown"

    done = case(out, "s0_s1", "centre-of-mass")
    assert done["evaluation"]["mean_dice"] == 1
    assert done["evaluation"]["tre_mm"]["mean"] == pytest.approx(0, abs=1e-3)
    assert done["evaluation"]["tre_mm"]["before_mean"] == pytest.approx(4)
    tiny = case(out, "s0_s1", "tiny")
    assert {"seconds", "cpu_seconds", "peak_mib", "threads", "seed", "record", "inputs", "date", "load"} <= set(
        tiny["run"]
    )
    assert tiny["run"]["cpu_seconds"] > 0
    assert tiny["run"]["peak_mib"] > 100
    assert set(tiny["run"]["record"]["told"]) == {2}, "the threads, by all that tells the method of them"
    assert tiny["run"]["threads"] == 2
    assert tiny["run"]["record"]["command"] == ["tiny", "image.nii"]
    assert tiny["evaluation"]["mean_dice"] > 0.6
    folder = out / "runs" / "s0_s1" / "tiny"
    assert {path.name for path in folder.iterdir()} == {
        "0GenericAffine.mat",
        "1Warp.nii.gz",
        "1InverseWarp.nii.gz",
        "run.json",
    }
    assert (out / "pictures" / "s0_s1__tiny.jpg").stat().st_size > 1000
    assert (out / "index.html").exists()
    assert str(tmp_path) not in "".join(path.read_text() for path in (out / "cases").iterdir())
    assert str(tmp_path) not in (out / "environment.json").read_text()
    assert lines[2] == "[3/4] s0_s1 away: absent, reg_away is not on the PATH; build it"
    assert steps[-1].done <= steps[-1].total

    # The same call again runs what failed, and nothing else.
    _again(one_pair, out, names)
    # A summary is of all that is there, whatever this call was about.
    assert set(BenchmarkStudy.of(one_pair, ["identity"], baseline="tiny").conclude(out)["methods"]) == set(names)
    (out / "cases" / "s0_s1__tiny.json").unlink()
    assert _again(one_pair, out, names)["tiny"] == "judge"


def _again(manifest, out, names):
    cases = BenchmarkStudy.of(manifest, names).plan(manifest.parent, ask(out, threads=2, gpu=False))
    found = {case.method.name: case.todo for case in cases}
    assert found | {"tiny": None} == {
        "centre-of-mass": "done",
        "broken": "run",
        "away": "absent",
        "tiny": None,
    }
    return found


@pytest.mark.slow
def test_kill_9_loses_the_case_in_hand_and_leaves_no_process(one_pair, tmp_path, stand_ins):
    out, pids = tmp_path / "out", tmp_path / "pids"
    command = [sys.executable, str(STAND_INS), "benchmark", str(one_pair), "--methods", "identity,endless"]
    options = ["--out", str(out), "--threads", "1", "--device", "cpu", "--no-pictures", "--data", str(one_pair.parent)]
    parent = subprocess.Popen([*command, *options], env=os.environ | {"STAND_INS_PIDS": str(pids)})
    try:
        _wait_until(lambda: pids.exists() and pids.read_text().endswith(" "), 120)
    finally:
        parent.kill()
        parent.wait()
    running = [int(pid) for pid in pids.read_text().split()]
    assert len(running) == 2  # the method, and the program that it had started
    _wait_until(lambda: not any(_is_alive(pid) for pid in running), 10)
    cases = BenchmarkStudy.of(one_pair, ["identity", "endless"]).plan(
        one_pair.parent, ask(out, threads=1, gpu=False, pictures=False)
    )
    assert [(found.todo, found.why) for found in cases] == [("done", ""), ("run", "")]
    with locked(out, "another benchmark"):
        pass


def test_two_benchmarks_in_one_folder(one_pair, tmp_path):
    out = tmp_path / "out"
    with locked(out, "another benchmark"), pytest.raises(OutputError, match="another benchmark is writing into it"):
        benchmark(one_pair, ["identity"], out=out, data=one_pair.parent)
    with locked(out, "another benchmark"):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"), locked(tmp_path / "file" / "out", "another benchmark"):
        pass


def test_half_written_files_of_a_killed_run_are_removed_and_not_read(one_pair, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / "cases").mkdir(parents=True)
    (out / "cases" / ".partial-stepwarp-1234.json").write_text('{"pair"')
    (out / ".lock").write_text('{"stepwarp": "benchmark"}')
    asked = ask(out, threads=1, gpu=False)
    assert asked.places.read_cases() == []
    runner.run([], asked)
    assert list((out / "cases").iterdir()) == []


def test_a_summary_of_nothing_says_so(one_pair, tmp_path):
    with pytest.raises(study.InputError, match="holds no case of 'blobs'"):
        BenchmarkStudy.of(one_pair).conclude(tmp_path)


def test_the_time_left_is_that_of_the_methods():
    now, steps = [0.0], []
    cases = [
        SimpleNamespace(todo="run", method=SimpleNamespace(name=name)) for name in ("quick", "slow", "quick", "slow")
    ]
    forecast = Forecast(cases, steps.append, clock=lambda: now[0])
    for found, seconds in zip(cases, (1, 99, 1, 99), strict=True):
        forecast.begin(found)
        now[0] += seconds
        forecast.tick()
        forecast.end()
    left = [step.total - step.done for step in steps]
    assert left[4] == 100  # when the third begins, both have shown what they take
    assert left[5] == 99
    assert left[-1] == 0


def _is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
