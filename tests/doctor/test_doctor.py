"""The doctor finds what was done to a good brain, names it, and says nothing of the good brain."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from stepwarp.doctor import examine, examine_machine
from stepwarp.errors import InputError
from stepwarp.files import write_affine, write_volume
from stepwarp.geometry import Affine, LabelMap


@pytest.fixture
def brain(tmp_path, brains):
    """A T1 brain of 4 mm in a file."""
    path = tmp_path / "sub-01_T1w.nii.gz"
    write_volume(path, brains.fixed)
    return path


def changed(path, name, values=None, sform=None, qform=None, codes=(1, 1), **fields):
    """The file under another name with other voxels or another header."""
    image = nib.load(path)
    values = image.get_fdata(dtype=np.float32) if values is None else np.asarray(values)
    header = nib.Nifti1Header()
    header.set_data_shape(values.shape)
    header.set_data_dtype(values.dtype)
    header.set_xyzt_units("mm")
    header.set_qform(image.affine if qform is None else qform, codes[0])
    header.set_sform(image.affine if sform is None else sform, codes[1])
    for field, value in fields.items():
        header[field] = value
    header["vox_offset"] = 352
    out = path.with_name(name)
    out.write_bytes(header.binaryblock + bytes(4) + values.tobytes(order="F"))
    return out


def found(*sources, **options):
    """(severity, check) of every finding; each has a sentence and a remedy, and all of it fits into JSON."""
    report = examine(sources, **options)
    json.dumps(report.as_dict(), allow_nan=False)
    for finding in report.findings:
        assert finding.text.endswith(".")
        assert finding.remedy.endswith(".")
    return {(finding.severity, finding.check) for finding in report.findings}


def values_of(path):
    return nib.load(path).get_fdata(dtype=np.float32)


def test_nothing_is_wrong_with_a_good_brain(brain):
    report = examine([brain])
    assert report.findings == []
    (file,) = report.files
    assert file.kind == "image"
    assert file.facts["subject"]["shows"] == "brain"
    assert 1200 < file.facts["subject"]["millilitres"] < 2500
    assert file.facts["orientation"] == "RAS"
    assert file.facts["handedness"] == "right"
    assert file.facts["qform_to_sform"] == {"mm": 0.0, "degrees": 0.0, "mirrored": False}
    assert file.facts["shear_mm"] < 1e-3


def test_files_that_cannot_be_read(brain):
    whole = brain.read_bytes()
    brain.write_bytes(whole[: len(whole) // 2])
    assert found(brain) == {("error", "readable")}
    brain.write_bytes(b"")
    assert found(brain) == {("error", "readable")}
    assert found(brain.with_name("absent.nii")) == {("error", "readable")}


def test_voxels_that_cannot_be_used(brain):
    values = values_of(brain)
    values[3, 4, 5] = np.nan
    assert ("note", "nan") in found(changed(brain, "nan.nii", values))
    assert found(changed(brain, "nothing.nii", np.full_like(values, np.nan))) == {("error", "finite")}
    values[3, 4, 5] = np.inf
    assert found(changed(brain, "infinite.nii", values)) == {("error", "finite")}
    values[3, 4, 5] = 0
    assert found(changed(brain, "flat.nii", np.full_like(values, 7))) == {("error", "constant")}
    assert found(changed(brain, "four.nii", np.stack([values, values], -1))) == {("error", "dimensions")}
    assert found(changed(brain, "slice.nii", values[:, :, :1])) == {("error", "dimensions")}


def turned(affine, degrees):
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return nib.affines.from_matvec(turn @ affine[:3, :3], affine[:3, 3])


def test_headers_that_contradict_themselves(brain):
    affine = nib.load(brain).affine
    path = changed(brain, "turned.nii", qform=turned(affine, 5))
    (file,) = examine([path]).files
    assert [finding.check for finding in file.findings] == ["qform-sform"]
    assert file.findings[0].severity == "error"
    assert file.facts["qform_to_sform"]["degrees"] == pytest.approx(5, abs=0.01)
    assert "5 degrees" in file.findings[0].text
    assert file.facts["qform_to_sform"]["mm"] > 10
    mirror = affine @ np.diag([-1.0, 1, 1, 1])
    (file,) = examine([changed(brain, "mirror.nii", qform=mirror)]).files
    assert file.facts["qform_to_sform"]["mirrored"] is True
    assert found(changed(brain, "unstated.nii", codes=(0, 0))) == {("error", "orientation")}
    slightly = affine + np.eye(4, k=3) * 0.05
    assert found(changed(brain, "near.nii", qform=slightly)) == {("note", "qform-sform")}
    broken = {"codes": (1, 1), "sform": np.zeros((4, 4))}
    assert found(changed(brain, "broken.nii", **broken)) == {("warning", "qform-sform")}


def test_shear_and_voxel_sizes(brain):
    affine = nib.load(brain).affine
    sheared = affine.copy()
    sheared[0, 1] = 0.4
    assert found(changed(brain, "sheared.nii", sform=sheared, codes=(0, 1))) == {("error", "shear")}
    slices = found(
        changed(brain, "slices.nii", values_of(brain)[:, :, ::3], affine @ np.diag([1, 1, 3, 1]), codes=(0, 1))
    )
    assert ("warning", "spacing") in slices
    metres = affine @ np.diag([1e-3, 1e-3, 1e-3, 1])
    assert ("warning", "spacing") in found(changed(brain, "metres.nii", sform=metres, codes=(0, 1)))
    said = changed(brain, "said.nii", codes=(0, 1), pixdim=[1, 1, 1, 1, 0, 0, 0, 0])
    assert found(said) == {("warning", "spacing")}
    assert ("warning", "size") in found(changed(brain, "thin.nii", values_of(brain)[:10]))


def test_intensities_that_lost_something(brain):
    values = values_of(brain)
    clipped = values.clip(max=np.quantile(values[values > 0], 0.9))
    assert ("warning", "clipped") in found(changed(brain, "clipped.nii", clipped))
    assert ("warning", "intensities") in found(changed(brain, "few.nii", np.round(values / values.max() * 12)))


@pytest.mark.parametrize("what", ["inverted", "noise", "air", "tiny"])
def test_what_is_no_t1_of_a_brain(brain, what):
    values = values_of(brain)
    affine = nib.load(brain).affine
    inside = values > 0.1 * values.max()
    other = {
        "inverted": np.where(inside, 1.2 * values.max() - values, 0),
        "noise": np.random.default_rng(0).normal(size=values.shape),
        "air": np.where(inside, values / values.max() * 100, -1000),
        "tiny": values,
    }[what].astype(np.float32)
    size = 0.3 if what == "tiny" else 1.0
    smaller = affine @ np.diag([size, size, size, 1])
    path = changed(brain, f"{what}.nii", other, sform=smaller, qform=smaller)
    assert ("warning", "not-a-brain-t1") in found(path)


def test_a_head_is_told_from_a_brain_and_both_together_are_remarked(brain, brains):
    from scipy import ndimage

    values = np.pad(values_of(brain), 4)
    brain_here = ndimage.binary_fill_holes(values > 0.1 * values.max())
    skull = ndimage.binary_dilation(brain_here, iterations=3)
    scalp = ndimage.binary_dilation(skull, iterations=2)
    head = np.where(scalp & ~skull, 0.9 * values.max(), values).astype(np.float32)
    path = changed(brain, "sub-02_T1w.nii", head)
    (file,) = examine([path]).files
    assert file.facts["subject"]["shows"] == "head"
    assert file.findings == ()
    assert found(brain, path) == {("warning", "skull")}


def test_the_same_voxels_twice_whatever_the_file(brain):
    copy = changed(brain, "copy.nii")
    assert found(brain, copy) == {("warning", "duplicate")}
    linked = brain.with_name("linked.nii.gz")
    linked.symlink_to(brain)
    assert found(brain, linked) == {("warning", "duplicate")}


def test_a_file_named_twice_is_one_file_and_what_the_manifest_says_of_it_holds(brain, monkeypatch):
    monkeypatch.chdir(brain.parent)
    manifest = brain.with_name("study.json")
    entry = {"image": brain.name, "sha256": {"image": "0" * 64}}
    manifest.write_text(json.dumps({"name": "study", "images": {"one": entry}}))
    plain = Path(brain.name)
    assert found(plain, brain.parent) == set()
    for sources in ((manifest, plain), (plain, manifest)):
        report = examine(sources)
        assert len(report.files) == 1
        assert {finding.check for finding in report.findings} == {"changed"}


def test_label_maps_are_known_as_such_and_belong_on_a_grid(brain, brains, tmp_path):
    labels = LabelMap((brains.fixed.data > 0.5 * brains.fixed.data.max()).int() * 3, brains.fixed.grid)
    write_volume(tmp_path / "sub-01_dseg.nii.gz", labels)
    report = examine([tmp_path])
    assert {file.path.name: file.kind for file in report.files} == {
        "sub-01_T1w.nii.gz": "image",
        "sub-01_dseg.nii.gz": "labels",
    }
    assert report.findings == []
    changed(brain, "sub-01_other.nii", labels.data.numpy()[1:].astype(np.int16))
    assert found(tmp_path) == {("warning", "labels-grid")}


def test_a_manifest_says_what_each_file_is(brain, brains, tmp_path):
    moved = LabelMap((brains.moving.data > 0).int(), brains.moving.grid)
    write_volume(tmp_path / "labels.nii.gz", moved)
    (tmp_path / "points.csv").write_text("name,x_ras,y_ras,z_ras\na,900,0,0\n")
    entry = {"image": brain.name, "labels": "labels.nii.gz", "landmarks": "points.csv", "sha256": {"image": "0" * 64}}
    manifest = {"name": "m", "images": {"a": entry, "b": {"image": "absent.nii"}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert found(tmp_path / "manifest.json") == {("error", "changed"), ("error", "labels-grid"), ("error", "missing")}
    (tmp_path / "manifest.json").write_text("nonsense")
    with pytest.raises(InputError, match=r"manifest\.json"):
        examine([tmp_path / "manifest.json"])


def test_a_table_of_several_images_is_looked_at_beside_each(brain, tmp_path):
    """What is wrong for one image is not forgotten when the next one is found to be in order."""
    (tmp_path / "points.csv").write_text("out_x_ras,out_y_ras,out_z_ras,in_x_ras,in_y_ras,in_z_ras\n900,0,0,0,0,0\n")
    (tmp_path / "copy.nii").write_bytes(brain.read_bytes())
    scans = {
        side: {"image": name, "landmarks": "points.csv", "landmark_columns": side}
        for side, name in (("out", brain.name), ("in", "copy.nii"))
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "m", "images": scans}))
    report = examine([tmp_path / "manifest.json"])
    assert [finding.text for finding in report.findings if finding.check == "labels-grid"] == [
        f"1 of its 1 landmark lies outside {brain.name}."
    ]


def test_transforms_are_read_too(tmp_path):
    write_affine(tmp_path / "0GenericAffine.mat", Affine.identity(3))
    assert found(tmp_path / "0GenericAffine.mat") == set()
    (tmp_path / "b.mat").write_bytes((tmp_path / "0GenericAffine.mat").read_bytes()[:50])
    assert found(tmp_path / "b.mat") == {("error", "readable")}


def test_a_folder_without_images_is_an_error_of_the_caller(tmp_path):
    with pytest.raises(InputError, match="holds no image"):
        examine([tmp_path])


def test_the_machine_registers_a_pair_and_says_what_it_is(monkeypatch):
    report = examine_machine()
    assert report.machine["self_test"]["error"] is None
    assert report.machine["self_test"]["mean_error_mm"] < 0.5
    assert report.machine["packages"]["torch"]
    assert report.machine["disk_free_mib"]
    json.dumps(report.as_dict(), allow_nan=False)


def test_a_full_disk_is_remarked(monkeypatch):
    from stepwarp.doctor import machine

    usage = shutil.disk_usage("/")._replace(free=1 << 20)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(machine, "_self_test", lambda: {"seconds": 0, "error": "broken", "mean_error_mm": None})
    checks = {(finding.severity, finding.check) for finding in examine_machine().findings}
    assert checks >= {("warning", "disk"), ("error", "self-test")}


@pytest.mark.data
@pytest.mark.slow
def test_there_is_no_false_alarm_on_any_development_image(data_folder):
    report = examine([data_folder])
    chests = {str(path) for path in (data_folder / "chest").glob("*.nii.gz")}  # CT, and no brains
    assert {finding.file for finding in report.findings if finding.check == "not-a-brain-t1"} == chests
    assert {(finding.severity, finding.check) for finding in report.findings if finding.file not in chests} == {
        ("warning", "skull"),  # the two whole heads and the averages with a skull, beside the brains
        ("note", "orientation"),
    }
    shows = {file.path.parent.name: set() for file in report.files}
    for file in report.files:
        if file.kind == "image":
            shows[file.path.parent.name].add(file.facts["subject"]["shows"])
    assert shows["oasis"] == shows["templates"] == {"brain"}
    assert shows["wholehead"] == {"head"}
    assert shows["synthseg"] == set()
