import json
import re
import sys
import time
from pathlib import Path

import pytest

from stepwarp import machine
from stepwarp.benchmark import case, child, judged, warm_up
from stepwarp.benchmark.case import Meter
from stepwarp.benchmark.methods import OWN, find_method
from stepwarp.data.manifest import pairs, read_manifest
from stepwarp.errors import InputError, OutputError
from stepwarp.files import write_affine
from stepwarp.files.json import read_record, write_record
from stepwarp.geometry import Affine
from stepwarp.registrar.weights import SHIPPED


def test_processor_seconds_are_those_of_the_work():
    meter = Meter()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    cost = meter.read()
    assert 0.15 < cost["cpu_seconds"] <= cost["seconds"] + 0.5
    assert cost["peak_mib"] > 10


def test_what_no_run_wrote_stays(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    case._refuse_foreign(tmp_path)
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(OutputError, match=r"notes\.txt: is no part of the result"):
        case._refuse_foreign(tmp_path)


def test_a_job_survives_its_way_to_the_other_process(one_pair, tmp_path):
    [pair] = pairs(read_manifest(one_pair), one_pair.parent)
    job = json.loads(json.dumps(judged.as_job(pair, "identity", "nothing", tmp_path, False)))
    assert judged._pair(job["pair"]) == pair
    assert judged.standard(judged._pair(job["pair"]), str) == judged.standard(pair, str)


def test_a_run_is_judged_by_labels_and_landmarks(one_pair, tmp_path):
    [pair] = pairs(read_manifest(one_pair), one_pair.parent)
    shift = Affine.identity(3).matrix.copy()
    shift[0, 3] = -4  # the blob lies two voxels of 2 mm further along the first axis, which points left
    write_affine(tmp_path / "0GenericAffine.mat", Affine(shift))
    found = judged.judge(pair, tmp_path)
    assert found["mean_dice"] == 1
    assert found["labels"]["2"]["name"] == "core"
    assert found["tre_mm"]["max"] == pytest.approx(0, abs=1e-3)
    assert found["inverse_mm"]["max"] == pytest.approx(0, abs=1e-6)


def test_a_run_is_judged_by_one_table_of_both_images(one_pair, tmp_path):
    tables = [(one_pair.parent / f"s{n}.csv").read_text().splitlines()[1:] for n in (0, 1)]
    names = [f"{side}_{axis}_ras" for side in ("fixed", "moving") for axis in "xyz"]
    lines = [f"{fixed},{moving.partition(',')[2]}" for fixed, moving in zip(*tables, strict=True)]
    (one_pair.parent / "both.csv").write_text("\n".join([f"name,{','.join(names)}", *lines]))
    content = json.loads(one_pair.read_text())
    for scan, side in (("s0", "fixed"), ("s1", "moving")):
        content["images"][scan] |= {"landmarks": "both.csv", "landmark_columns": side, "sha256": {}}
    one_pair.write_text(json.dumps(content))
    [pair] = pairs(read_manifest(one_pair), one_pair.parent)
    assert (
        judged._pair(json.loads(json.dumps(judged.as_job(pair, "identity", "nothing", tmp_path, False)))["pair"])
        == pair
    )
    write_affine(tmp_path / "0GenericAffine.mat", Affine.identity(3))
    assert judged.judge(pair, tmp_path)["tre_mm"]["mean"] == pytest.approx(4)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL, as the system does when memory runs out"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("import sys; sys.exit(3)", "it printed nothing"),
        ("raise ValueError('in /home/me/x.nii')", "ValueError: in x.nii"),
        ("import sys; sys.exit('y' * 1000)", " ..."),
    ],
)
def test_a_process_that_fails_says_why(tmp_path, monkeypatch, script, reason):
    monkeypatch.setattr(child, "PYTHON", (sys.executable, "-c", script))
    with pytest.raises(child.ChildError, match=f"{re.escape(reason)}$"):
        child.run("ignored", {}, tmp_path / "log", threads=1, use_gpu=False, tick=lambda: None)


def test_a_process_is_told_its_threads_and_what_it_leaves_behind_is_removed(tmp_path, monkeypatch):
    script = "import os, tempfile; print(os.environ['OMP_NUM_THREADS'], tempfile.mkdtemp())"
    monkeypatch.setattr(child, "PYTHON", (sys.executable, "-c", script))
    child.run("ignored", {}, tmp_path / "log", threads=3, use_gpu=False, tick=lambda: None)
    threads, folder = (tmp_path / "log").read_text().split()
    assert threads == "3"
    assert not Path(folder).exists()


def test_folders_are_taken_out_of_what_is_shown():
    shown = child.without_folders({"a": ["/home/me/x.nii", "-o /tmp/b c/d"], "b": 3, "url": "https://example.org/a/b"})
    assert shown == {"a": ["x.nii", "-o b c/d"], "b": 3, "url": "https://example.org/a/b"}


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    write_record(tmp_path / "a" / "x.json", {"a": float("nan"), "b": [float("inf"), 1.5], 3: (1, 2)})
    assert read_record(tmp_path / "a" / "x.json") == {"a": None, "b": [None, 1.5], "3": [1, 2]}
    (tmp_path / "broken.json").write_text("[1")
    with pytest.raises(InputError, match=r"broken\.json: cannot be read as JSON"):
        read_record(tmp_path / "broken.json")


def test_the_environment_tells_the_machine_but_not_whose_it_is():
    import platform

    found = machine.environment(threads=2, device="cpu")
    assert found["threads"] == 2
    assert found["packages"]["torch"]
    assert platform.node() not in json.dumps(found).split('"')
    assert "/" not in (found["commit"] or "")


def test_stepwarps_methods_run_on_images_in_memory():
    direct = [f"stepwarp-{preset}" for preset in ("affine", "fast", "default", "ct", "best")]
    presets = ("", "-fast", "-default", "-best")
    network = [f"stepwarp-{name}{preset}" for name in ("network", "labels") for preset in presets]
    assert list(OWN) == direct + network
    warm_up.main({"methods": ["stepwarp-affine"], "threads": 1})


@pytest.mark.parametrize("name", OWN)
def test_stepwarps_methods_run_with_the_threads_they_are_given(name, monkeypatch):
    def stop(*images, threads, **_):
        raise InputError(f"asked for {threads} threads")

    monkeypatch.setattr("stepwarp.workflow.register.register", stop)
    with pytest.raises(InputError, match="asked for 3 threads"):
        find_method(name)(None, None, threads=3, seed=0)


def test_settings_are_known_before_the_run_and_ready_for_json():
    settings = {name: json.loads(json.dumps(method.settings)) for name, method in OWN.items()}
    assert settings["stepwarp-fast"] == OWN["stepwarp-fast"].settings
    assert settings["stepwarp-fast"] != settings["stepwarp-best"]
    assert "deformable" not in settings["stepwarp-affine"]
    # New weights under the old name are another method.
    assert settings["stepwarp-network-fast"]["weights_sha256"] == SHIPPED["brain-t1"]
    assert settings["stepwarp-labels-fast"]["weights_sha256"] == SHIPPED["brain-t1-labels"]
    assert settings["stepwarp-network"] != settings["stepwarp-network-fast"]


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'ants-syn-quick'"):
        find_method("ants-synquick")
