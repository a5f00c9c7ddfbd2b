import json

import nibabel as nib
import numpy as np
import pytest
import torch

import stepwarp.workflow.manifests as module
from stepwarp.data.manifest import pairs, read_manifest
from stepwarp.data.mni152 import Template, mni152
from stepwarp.files import read_image, read_landmarks, sha256
from stepwarp.workflow.demo import make_pair


def volume(path, values=None, shift=0.0):
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    affine[0, 3] = shift
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(6 * 7 * 8).reshape(6, 7, 8) % 5 if values is None else values
    image = nib.Nifti1Image(values.astype(np.int16), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)


@pytest.fixture
def study(tmp_path):
    """A folder with two scans, their label maps, landmarks of one, and a CSV with their pair."""
    for name in "ab":
        volume(tmp_path / f"{name}.nii.gz")
        volume(tmp_path / f"{name}_seg.nii.gz")
    (tmp_path / "a.csv").write_text("name,x_ras,y_ras,z_ras\none,-1,2,4\n")
    (tmp_path / "pairs.csv").write_text(
        "id,fixed,moving,fixed_labels,moving_labels,fixed_landmarks\n"
        "ab,a.nii.gz,b.nii.gz,a_seg.nii.gz,b_seg.nii.gz,a.csv\n"
    )
    return tmp_path


@pytest.fixture
def made(run, study):
    """The manifest of the study, with the checksums of its files."""
    result = run("manifest", "make", study / "pairs.csv", "--out", study / "study.json", "--split", "test")
    assert result.code == 0, result.err
    assert "2 scans, 1 pair. " in result.out
    return study / "study.json"


def findings(run, *arguments, code=3):
    result = run("manifest", "check", *arguments, "--json")
    assert result.code == code
    assert result.err == ""
    return [(found["kind"], found["scan"], found["role"]) for found in json.loads(result.out)["findings"]]


def test_what_is_made_is_complete(run, study, made):
    assert findings(run, made, code=0) == []
    result = run("manifest", "check", made)
    assert result.code == 0
    assert "scans      2 (2 test), 1 pair\n" in result.out
    assert "files      5 of 5 there, checksums for 5" in result.out
    assert "wrong      nothing" in result.out
    manifest = read_manifest(made)
    assert manifest.images["a"].sha256["labels"] == sha256(study / "a_seg.nii.gz")
    [pair] = pairs(manifest, study, "test")
    assert pair.fixed.landmarks == study / "a.csv"


def test_checksums_can_be_left_out_and_names_given(run, study, made):
    run("manifest", "make", study / "pairs.csv", "--out", made, "--no-checksums", "--name", "lungs", "--force")
    assert read_manifest(made).name == "lungs"
    assert read_manifest(made).images["a"].sha256 == {}


def test_a_manifest_gets_checksums(run, study, made):
    run("manifest", "make", study / "pairs.csv", "--out", study / "bare.json", "--no-checksums", "--split", "test")
    run("manifest", "make", study / "bare.json", "--out", study / "again.json")
    assert read_manifest(study / "again.json") == read_manifest(made).model_copy(update={"name": "pairs"})


def test_missing_changed_and_unreadable_files_are_told_apart(run, study, made):
    (study / "a_seg.nii.gz").unlink()
    volume(study / "b.nii.gz", shift=3.0)
    (study / "a.csv").write_text("name,x,y,z\none,1,2,3\n")
    assert findings(run, made) == [
        ("missing", "a", "labels"),
        ("changed", "a", "landmarks"),
        ("changed", "b", "image"),
    ]
    result = run("manifest", "check", made)
    assert result.code == 3
    assert "4 of 5 there" in result.out
    assert "a labels: a_seg.nii.gz does not exist" in result.out
    assert "to obtain" in result.out


@pytest.mark.parametrize(
    ("spoil", "finding", "reason"),
    [
        (lambda f: volume(f / "a_seg.nii.gz", shift=3.0), ("elsewhere", "a", "labels"), "up to 3 mm from its image"),
        (
            lambda f: volume(f / "a_seg.nii.gz", np.ones((6, 7, 9))),
            ("elsewhere", "a", "labels"),
            "has 6 x 7 x 9 voxels, its image 6 x 7 x 8",
        ),
        (
            lambda f: (f / "a.csv").write_text("name,x_lps,y_lps,z_lps\none,-1,2,4\n"),
            ("elsewhere", "a", "landmarks"),
            "1 of 1 landmark lies outside the image",
        ),
        (lambda f: (f / "b.nii.gz").write_bytes(b"no"), ("unusable", "b", "image"), "b.nii.gz"),
        (
            lambda f: (f / "b.nii.gz").write_bytes((f / "b.nii.gz").read_bytes()[:-20]),
            ("unusable", "b", "image"),
            "cut off",
        ),
        (
            lambda f: ((f / "b.nii.gz").unlink(), (f / "b.nii.gz").symlink_to("/etc/hostname")),
            ("unusable", "b", "image"),
            "leaves the data root",
        ),
    ],
)
def test_files_that_cannot_be_right_are_found(run, study, spoil, finding, reason):
    run("manifest", "make", study / "pairs.csv", "--out", study / "study.json", "--no-checksums")
    spoil(study)
    assert findings(run, study / "study.json") == [finding]
    assert reason in run("manifest", "check", study / "study.json").out


def test_a_start_that_cannot_be_used_is_found(run, study):
    run("manifest", "make", study / "pairs.csv", "--out", study / "study.json", "--no-checksums")
    content = json.loads((study / "study.json").read_text())
    content["pairs"][0]["initial"] = "[none.mat,1]"
    (study / "study.json").write_text(json.dumps(content))
    assert findings(run, study / "study.json") == [("unusable", f"pair {content['pairs'][0]['id']}", "initial")]
    assert "none.mat: does not exist" in run("manifest", "check", study / "study.json").out


def test_the_data_root_can_be_elsewhere(run, study, made, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "study.json"
    made.rename(moved)
    assert findings(run, moved, "--data", study, code=0) == []
    assert len(findings(run, moved)) == 5


def test_shipped_manifests_are_listed_and_checked_by_name(run, tmp_path):
    result = run("manifest", "list")
    assert result.code == 0
    assert {line.split()[0] for line in result.out.splitlines()} >= {"demo", "oasis", "learn2reg_oasis", "dirlab"}
    found = findings(run, "demo", "--data", tmp_path)
    assert [kind for kind, _, _ in found] == ["missing"] * 6
    assert "stepwarp manifest make demo" in run("manifest", "check", "demo", "--data", tmp_path).out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["check", "osis"], 3, "did you mean 'oasis'?"),
        (["check", "absent.json"], 3, "absent.json: does not exist"),
        (["check", "oasis", "--data", "absent"], 3, "absent: is no folder (--data)"),
        (["make", "absent.csv", "--out", "x.json"], 3, "absent.csv: does not exist"),
        (["make", "demo", "--out", "x.yaml"], 4, "a manifest is a JSON file"),
        (["make", "demo"], 2, "--out"),
        (["unmake"], 2, "unmake"),
    ],
)
def test_errors_are_one_line_and_a_code(run, tmp_path, monkeypatch, arguments, code, text):
    monkeypatch.chdir(tmp_path)
    result = run("manifest", *arguments)
    assert result.code == code
    assert text in result.err
    assert "Traceback" not in result.err
    assert not list(tmp_path.iterdir())


def test_results_that_are_there_are_kept(run, study, made):
    before = made.read_text()
    result = run("manifest", "make", study / "pairs.csv", "--out", made, "--name", "other")
    assert result.code == 4
    assert "study.json: exists already" in result.err
    assert made.read_text() == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("notes.json", "is there already, and is no manifest"),
        ("missing/new.json", "no such file or directory"),
        ("x" * 300 + ".json", "file name too long"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_anything_is_read(run, tmp_path, monkeypatch, name, reason):
    (tmp_path / "notes.json").write_text('{"precious": 1}')
    monkeypatch.setattr(module, "read_foreign", lambda *arguments, **options: pytest.fail("it was read"))
    result = run("manifest", "make", "pairs.csv", "--out", tmp_path / name, "--force")
    assert result.code == 4
    assert reason in result.err
    assert (tmp_path / "notes.json").read_text() == '{"precious": 1}'


@pytest.mark.parametrize("beside", [{}, {"name": "my study", "images": {}}])
def test_the_demo_pair_replaces_no_file_of_the_users(run, tmp_path, monkeypatch, beside):
    monkeypatch.setattr(module, "make_pair", lambda *arguments: pytest.fail("it was made"))
    (tmp_path / "fixed.nii.gz").write_text("precious")
    if beside:
        (tmp_path / "demo.json").write_text(json.dumps(beside))
    result = run("manifest", "make", "demo", "--out", tmp_path / "demo.json", "--force")
    assert result.code == 4
    assert "fixed.nii.gz: is there already, and no demo of stepwarp" in result.err
    assert (tmp_path / "fixed.nii.gz").read_text() == "precious"


@pytest.fixture(scope="module")
def template():
    """The brain of the demo at 4 mm, so that tests are quick."""
    fine = mni152()
    brain, *tissues = (image.coarser(4) for image in (fine.brain, *fine.tissues))
    return Template(brain, tuple(tissues), brain.data > 0.1)


def test_the_demo_pair_with_its_landmarks(run, tmp_path, monkeypatch, template):
    monkeypatch.setattr(module, "mni152", lambda: template)
    out = tmp_path / "pair" / "demo.json"
    assert run("manifest", "make", "demo", "--out", out, "--seed", "3").code == 0
    assert findings(run, out, "--data", out.parent, code=0) == []
    made, shipped = read_manifest(out), read_manifest("demo")
    assert {name: scan.model_copy(update={"sha256": {}}) for name, scan in made.images.items()} == shipped.images
    assert made.pairs == shipped.pairs
    [pair] = pairs(made, out.parent)
    fixed, moving = (read_landmarks(scan.landmarks) for scan in (pair.fixed, pair.moving))
    assert fixed.names == moving.names
    assert len(set(fixed.names)) == 100
    truth = make_pair(template, 3).transform
    np.testing.assert_allclose(truth(fixed.points), moving.points, atol=1e-3)
    image = read_image(pair.fixed.image)
    indices = np.rint((fixed.points - image.grid.affine[:3, 3]) @ np.linalg.inv(image.grid.linear).T).astype(int)
    assert (image.data[tuple(torch.from_numpy(indices).T)] > 0).all()


@pytest.mark.data
def test_the_development_data_is_complete(run, data_folder):
    assert findings(run, "templates", "--data", data_folder, code=0) == []


def test_help_does_not_wait_for_slow_imports_and_lists_the_options(run):
    result = run("manifest", "make", "--help")
    assert result.code == 0
    assert all(option in result.out for option in ("--out", "--data", "--split", "--fixed", "--no-checksums", "--seed"))
    assert "130  interrupted" in result.out
