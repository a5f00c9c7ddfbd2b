import json
import re

import pytest

import stepwarp.workflow.evaluate as module
import stepwarp.workflow.learn2reg as tasks
from stepwarp.errors import InputError
from stepwarp.progress import ProgressReport

RESULT = {
    "stepwarp": "0",
    "inputs": {},
    "transform": ["result/1Warp.nii.gz", "result/0GenericAffine.mat"],
    "mask": {"source": "non-zero voxels of the fixed image", "voxels": 1000},
    "mean_dice": 0.61234,
    "mean_jaccard": 0.45,
    "mean_hd95_mm": 3.2,
    "mean_asd_mm": 1.1,
    "labels_scored": 12,
    "surfaces_scored": 11,
    "surfaces_penalised": 1,
    "surface_penalty_mm": 300.0,
    "labels": {
        str(n): {
            "name": f"region {n}",
            "dice": n / 20,
            "jaccard": n / 30,
            "hd95_mm": 300.0 if n == 0 else 5.0 - n / 10,
            "asd_mm": 300.0 if n == 0 else 1.0,
            "fixed_ml": 2.0,
            "moved_ml": 1.5,
        }
        for n in range(12)
    },
    "labels_lost": [0],
    "labels_created": [],
    "labels_missing_in": {"fixed": [88], "moving": [77, 78]},
    "tre_mm": {
        "count": 12,
        "mean": 2.0,
        "median": 1.5,
        "p75": 2.5,
        "p95": 4.0,
        "max": 6.0,
        "before_mean": 15.0,
        "left_out": ["tip"],
        "landmarks": {f"mark {n}": {"before": 15.0, "after": float(n)} for n in range(12)},
    },
    "folds": {"count": 3, "share": 0.003},
    "corner_folds": {"count": 5, "share": 0.005},
    "ndv": {"percent": 0.01, "ml": 0.0001},
    "std_log_jacobian": 0.4,
    "jacobian": {"min": -0.1, "p01": 0.2, "median": 1.0, "p99": 2.0, "max": 3.0},
    "displacement_mm": {"mean": 3.0, "p95": 6.0, "max": 9.0},
    "inverse_mm": {"mean": 0.1, "median": 0.1, "p95": 0.2, "max": 0.4, "source": "numerical inversion"},
    "similarity": {
        "before": {"ncc": 0.3, "lncc": 0.1, "mutual_information": 0.05},
        "after": {"ncc": 0.9, "lncc": 0.7, "mutual_information": 0.4},
    },
    "notes": ["look [twice]"],
}


@pytest.fixture
def calls(monkeypatch):
    """What the workflow was called with."""
    made = []

    def fake(fixed, moving, transforms, *, progress, **options):
        made.append({"fixed": fixed, "moving": moving, "transforms": transforms, **options})
        return RESULT

    monkeypatch.setattr(module, "evaluate_files", fake)
    return made


def test_options_reach_the_workflow(run, calls, two_files):
    a, b = two_files
    text = (
        f"-f {a} -m {b} -t one -t two --fixed-labels {a} --moving-labels {b} --label-names {a} --fixed-landmarks {a} "
        f"--moving-landmarks {b} --landmark-space lps --mask {a} --trust qform"
    )
    more = ["--ignore-labels", "0, 42,Left thing", "--unreliable-landmarks", "30,tip"]
    assert run("evaluate", *text.split(), *more).code == 0
    assert calls == [
        {
            "fixed": a,
            "moving": b,
            "transforms": ["one", "two"],
            "fixed_labels": a,
            "moving_labels": b,
            "ignore_labels": ["0", "42", "Left thing"],
            "label_names": a,
            "fixed_landmarks": a,
            "moving_landmarks": b,
            "unreliable_landmarks": ["30", "tip"],
            "space": "lps",
            "mask": a,
            "trust": ("qform",),
        }
    ]


def test_no_transform_is_the_identity(run, calls, two_files):
    assert run("evaluate", "-f", two_files[0], "-m", two_files[1]).code == 0
    assert calls[0]["transforms"] == ()


def test_summary_shows_the_means_what_was_lost_and_the_worst_first(run, calls, two_files):
    out = run("evaluate", "-f", two_files[0], "-m", two_files[1]).out
    for text in (
        "12 scored, distances of 1 lost counted as 300.000",
        "median 1.500, 95 % 4.000, largest 6.000; 15.000 before",
        "0.050 before (an image and itself: about 0.7)",
    ):
        assert text in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    expected = ("Dice 0.6123", "HD95 (mm) 3.20", "folds (%) 0.300", "folds (voxels) 3", "corner folds (voxels) 5")
    assert set(expected) <= set(lines)
    assert "lost by the transform 0" in lines
    assert "only in the fixed map 77, 78" in lines
    assert "only in the moving map 88" in lines
    assert "left out tip" in lines
    assert "note: look [twice]" in lines
    assert lines.index("0 region 0 0.000 0.000 300.000 300.000 2.00 1.50") + 1 == lines.index(
        "1 region 1 0.050 0.033 4.900 1.000 2.00 1.50"
    )
    assert "region 10" not in out
    assert "mark 11" in out
    assert "mark 1 " not in out
    assert out.count("2 better ones are shown by --all.") == 2


def test_all_shows_every_label_and_landmark(run, calls, two_files):
    out = run("evaluate", "-f", two_files[0], "-m", two_files[1], "--all").out
    assert all(f"region {n} " in out and f"mark {n} " in out for n in range(12))
    assert "better ones" not in out


def test_what_was_not_measured_is_not_shown(run, monkeypatch, two_files):
    gone = {"labels", "tre_mm", *(key for key in RESULT if key.startswith("mean_"))}
    lacking = {key: value for key, value in RESULT.items() if key not in gone} | {"transform": []}
    monkeypatch.setattr(module, "evaluate_files", lambda *files, **options: lacking | {"jacobian": None})
    out = run("evaluate", "-f", two_files[0], "-m", two_files[1]).out
    assert "the identity" in out
    assert "Dice" not in out
    assert "landmarks" not in out
    assert "Jacobian" not in out


def test_json_is_one_object_on_stdout_and_nothing_else(run, calls, two_files, tmp_path):
    out = tmp_path / "numbers.json"
    result = run("evaluate", "-f", two_files[0], "-m", two_files[1], "--json", "-o", out)
    assert json.loads(result.out) == RESULT
    assert result.err == ""
    assert json.loads(out.read_text()) == RESULT


def test_an_existing_file_is_replaced_only_if_asked_for(run, calls, two_files, tmp_path):
    out = tmp_path / "numbers.json"
    out.write_text("precious")
    result = run("evaluate", "-f", two_files[0], "-m", two_files[1], "-o", out)
    assert result.code == 4
    assert "exists already" in result.err
    assert not calls
    assert out.read_text() == "precious"
    assert run("evaluate", "-f", two_files[0], "-m", two_files[1], "-o", out, "--force").code == 0
    assert json.loads(out.read_text()) == RESULT


def test_a_file_that_cannot_be_written_is_found_before_any_work(run, calls, two_files, tmp_path):
    for out in (tmp_path / "missing" / "numbers.json", tmp_path / ("x" * 300 + ".json"), tmp_path):
        assert run("evaluate", "-f", two_files[0], "-m", two_files[1], "-o", out, "--force").code == 4
    assert not calls


def test_bad_input_is_one_line_and_exit_code_3(run, monkeypatch, two_files, tmp_path):
    missing = run("evaluate", "-f", tmp_path / "absent.nii.gz", "-m", two_files[1])
    assert missing.code == 3
    assert "absent.nii.gz: does not exist" in missing.err

    def refuse(*files, **options):
        raise InputError("labels.nii.gz: lies 5 mm away.")

    monkeypatch.setattr(module, "evaluate_files", refuse)
    result = run("evaluate", "-f", two_files[0], "-m", two_files[1])
    assert (result.code, result.out) == (3, "")
    assert result.err.endswith("stepwarp: labels.nii.gz: lies 5 mm away.\n")


def summary(value):
    return dict.fromkeys(("mean", "std", "30", "70"), value)


TASK = {
    "stepwarp": "0",
    "task": "OASIS",
    "measures": [
        {"name": "DSC", "metric": "dice", "stepwarp": "mean_dice"},
        {"name": "HD95", "metric": "hd95", "stepwarp": "mean_hd95_mm"},
    ],
    "pairs": [
        {
            "pair": "0001_0000<--0002_0000",
            "prediction": "a.npz",
            "learn2reg": {"DSC": 0.7123456, "HD95": None},
            "stepwarp": {"DSC": 0.75, "HD95": 3.21},
        },
        {"pair": "0002_0000<--0003_0000", "prediction": None, "reason": "predictions: holds no disp_0002_0003."},
    ],
    "aggregates": {
        "DSC": {"learn2reg": summary(0.7), "stepwarp": summary(0.8)},
        "HD95": {"learn2reg": summary(None), "stepwarp": summary(3.2)},
    },
    "notes": ["one label is lost"],
}


@pytest.fixture
def task(monkeypatch):
    """What the workflow of a task was called with, and what it returns."""
    made = {"calls": [], "result": TASK}

    def fake(config, predictions, *, progress, **options):
        made["calls"].append({"config": config, "predictions": predictions, **options})
        progress(ProgressReport("pairs", 0, 2))
        return made["result"]

    monkeypatch.setattr(tasks, "evaluate_learn2reg", fake)
    return made


def test_a_task_of_learn2reg_is_a_table_with_a_row_for_each_pair(run, task, two_files, tmp_path):
    result = run("evaluate", "--learn2reg", two_files[0], "--predictions", "there", "--data", "D", "--trust", "qform")
    assert [(str(c.pop("predictions")), str(c.pop("data")), c) for c in task["calls"]] == [
        ("there", "D", {"config": two_files[0], "trust": ("qform",)})
    ]
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[:2] == ["OASIS Learn2Reg stepwarp Learn2Reg stepwarp", "DSC Dice HD95 HD95, mm"]
    assert "0001_0000<--0002_0000 0.71235 0.7500 - 3.21" in lines
    assert "0002_0000<--0003_0000 no result" in lines
    assert [line for line in lines if line.endswith("- 3.20")] == [
        f"{name} 0.70000 0.8000 - 3.20" for name in ("mean", "std", "30 %", "70 %")
    ]
    assert "0002_0000<--0003_0000: predictions: holds no disp_0002_0003." in lines
    assert lines[-1] == "note: one label is lost"
    assert "pairs\n" in result.err
    assert result.code == 3
    assert result.err.endswith("stepwarp: 1 of 2 pairs has no result; the rows say why.\n")


def test_a_task_is_written_and_printed_as_json_although_a_pair_failed(run, task, two_files, tmp_path):
    arguments = (
        "evaluate",
        "--learn2reg",
        two_files[0],
        "--predictions",
        tmp_path,
        "--json",
        "-o",
        tmp_path / "a.json",
    )
    result = run(*arguments)
    assert result.code == 3
    assert json.loads(result.out) == json.loads((tmp_path / "a.json").read_text()) == TASK
    assert run(*arguments).code == 4
    task["result"] = TASK | {"pairs": TASK["pairs"][:1]}
    assert run(*arguments, "--force").code == 0


def test_what_one_pair_and_a_task_need_is_not_mixed(run, calls, task, two_files):
    a, b = two_files
    for arguments, said in (
        (("--learn2reg", a, "--predictions", b, "-f", a, "--all"), "--fixed, --all: not here.* leave them out"),
        (("--learn2reg", a), "--learn2reg needs --predictions"),
        (("-f", a, "-m", b, "--data", "D"), "--data: not here.* leave it out"),
        (("-f", a), "a pair needs --fixed and --moving"),
        ((), "a pair needs --fixed and --moving"),
        (("--learn2reg", a.with_name("absent.json"), "--predictions", b), "absent.json: does not exist"),
    ):
        result = run("evaluate", *arguments)
        assert result.code == 3
        assert re.search(said, result.err)
    assert not calls
    assert not task["calls"]
