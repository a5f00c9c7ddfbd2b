"""`stepwarp doctor` prints what the doctor found, and its exit code says whether there is an error."""

import json

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def image(tmp_path):
    """A volume that stepwarp reads, though it is no brain."""
    values = np.add.outer(np.add.outer(np.arange(20.0), np.arange(21.0)), np.arange(22.0)).astype(np.float32)
    path = tmp_path / "<b>a[red].nii.gz"
    volume = nib.Nifti1Image(values, np.diag([2.0, 2, 2, 1]))
    volume.set_qform(volume.affine, 1)
    nib.save(volume, path)
    return path


def test_warnings_end_in_0_and_errors_in_3(run, image, tmp_path):
    done = run("doctor", image)
    assert done.code == 0
    assert "warning" in done.out
    assert "no T1" in " ".join(done.out.split())
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(image.read_bytes()[:500])
    done = run("doctor", image, broken)
    assert done.code == 3
    assert "2 files: 1 error, " in done.out


def test_json_is_all_there_is_on_stdout(run, image):
    done = run("doctor", image, "--json")
    said = json.loads(done.out)
    assert said["counts"]["error"] == 0
    assert said["files"][0]["file"] == str(image)
    assert said["files"][0]["orientation"] == "RAS"
    assert all(set(finding) == {"severity", "check", "file", "text", "remedy"} for finding in said["findings"])


def test_without_arguments_it_looks_at_the_machine(run, monkeypatch):
    from stepwarp.doctor import machine

    test = {"seconds": 1.5, "error": None, "mean_error_mm": 0.05}
    monkeypatch.setattr(machine, "_self_test", lambda: test)
    done = run("doctor")
    assert done.code == 0
    assert "1.5 s, a registration is 0.050 mm from the truth" in done.out
    assert "torch" in done.out


def test_a_folder_without_images_is_3(run, tmp_path):
    done = run("doctor", tmp_path)
    assert done.code == 3
    assert "holds no image" in done.err
