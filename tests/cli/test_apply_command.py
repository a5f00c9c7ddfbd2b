import json

import numpy as np
import pytest

import stepwarp.workflow.apply as module
from stepwarp.files import Landmarks, read_landmarks, write_affine, write_landmarks
from stepwarp.geometry import Affine


@pytest.fixture
def calls(monkeypatch):
    """What the workflow was called with."""
    made = []

    def fake(transforms, inputs, outputs, **options):
        made.append({"transforms": transforms, "inputs": inputs, "outputs": outputs, **options})
        return [module.Applied(inputs[0], outputs[0], "image", "by magic", ("look twice",))]

    monkeypatch.setattr(module, "apply", fake)
    return made


def test_options_reach_the_workflow(run, calls, two_files, tmp_path):
    a, b = two_files
    text = (
        f"-t {tmp_path} -t x.mat -i {a} -i {b} -o c -o d --from fixed --to moving --inverse -r {a} -n nearest --labels "
        "--partial-volumes"
    )
    assert (
        run("apply", *text.split(), *["--space", "lps", "--trust", "qform", "--outside", "-1024", "--force"]).code == 0
    )
    assert calls == [
        {
            "transforms": [str(tmp_path), "x.mat"],
            "inputs": [a, b],
            "outputs": [tmp_path.__class__("c"), tmp_path.__class__("d")],
            "source": "fixed",
            "target": "moving",
            "inverse": True,
            "reference": a,
            "interpolation": "nearest",
            "labels": True,
            "partial_volumes": True,
            "space": "lps",
            "trust": ("qform",),
            "outside": -1024.0,
            "overwrite": True,
        }
    ]


def test_it_prints_how_and_what_to_look_at(run, calls, two_files):
    result = run("apply", "-t", "T", "-i", two_files[0], "-o", "out.nii.gz")
    assert result.out == f"{two_files[0]} -> out.nii.gz\n  by magic\n  note: look twice\n"


def test_json_is_json_only(run, calls, two_files):
    result = run("apply", "-t", "T", "-i", two_files[0], "-o", "out.nii.gz", "--json")
    assert json.loads(result.out) == [
        {
            "input": str(two_files[0]),
            "output": "out.nii.gz",
            "kind": "image",
            "how": "by magic",
            "notes": ["look twice"],
        }
    ]


def test_missing_input_is_named(run, calls, tmp_path):
    result = run("apply", "-t", "T", "-i", tmp_path / "absent.nii.gz", "-o", "out.nii.gz")
    assert result.code == 3
    assert result.err.startswith(f"stepwarp: {tmp_path}/absent.nii.gz: does not exist")
    assert not calls


def test_landmarks_go_through_files(run, tmp_path):
    write_affine(tmp_path / "shift.mat", Affine(np.array([[1, 0, 0, 5.0], [0, 1, 0, 0], [0, 0, 1, -2]])))
    write_landmarks(tmp_path / "in.csv", Landmarks(["a"], [[1.0, 2, 3]]))
    files = ("-t", tmp_path / "shift.mat", "-i", tmp_path / "in.csv", "-o", tmp_path / "out.csv")
    assert run("apply", *files).code == 0
    assert read_landmarks(tmp_path / "out.csv").points == pytest.approx(np.array([[6, 2, 1]]))
    again = run("apply", *files)
    assert again.code == 4
    assert "out.csv: exists already" in again.err
    assert run("apply", *files, "--force", "--inverse").code == 0
    assert read_landmarks(tmp_path / "out.csv").points == pytest.approx(np.array([[-4, 2, 5]]))
