"""Files made to do harm, or damaged as files get damaged: refused in one line or read as they are, in bounded memory.

The rows of HEADERS are those at which other readers fill up with zeros, guess or die. `benchmarks/fuzz.py` does the
same at random, a hundred thousand times."""

import gzip
import json
import os
import subprocess
import sys
import zipfile

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwarp.errors import InputError
from stepwarp.files import (
    Landmarks,
    read_image,
    read_landmarks,
    read_transform,
    write_affine,
    write_composite,
    write_displacement,
    write_landmarks,
)
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid

GRID = Grid(
    (8, 9, 10), nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.5) * (1.5, 0.9, 2.1), (9, 0, 30))
)
VALUES = np.random.default_rng(0).normal(100, 30, GRID.shape).astype(np.float32)
FIELD = DisplacementField(torch.full((1, 3, *GRID.shape), 0.1), GRID)
TEXT = "#Insight Transform File V1.0\n#Transform 0\nTransform: {}\nParameters: {}\nFixedParameters: {}\n"


def raw(values=VALUES, sform=GRID.affine, qform=None, codes=(1, 1), **fields):
    header = nib.Nifti1Header()
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    header.set_qform(GRID.affine if qform is None else qform, codes[0])
    header.set_sform(sform, codes[1])
    header["vox_offset"] = 352
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + values.tobytes(order="F")


def with_voxel(value):
    values = VALUES.copy()
    values[1, 2, 3] = value
    return values


def affine_with(value, *place):
    affine = GRID.affine.copy()
    affine[place] = value
    return affine


MIRRORED = GRID.affine @ np.diag([-1.0, 1, 1, 1])
#: What the file is called and holds, and what must be said of it; None where it is read.
HEADERS = {
    "gzip cut in half": ("a.nii.gz", lambda: gzip.compress(raw())[:1000], "cut off"),
    "shorter than announced": ("a.nii", lambda: raw()[:-100], "cut off"),
    "not compressed but called so": ("a.nii.gz", raw, "not compressed"),
    "random bytes": ("a.nii.gz", lambda: np.random.default_rng(1).bytes(3000), ""),
    "empty": ("a.nii", lambda: b"", "empty"),
    "NaN everywhere": ("a.nii", lambda: raw(np.full_like(VALUES, np.nan)), "NaN everywhere"),
    "infinity": ("a.nii", lambda: raw(with_voxel(np.inf)), "infinite"),
    "shear": ("a.nii", lambda: raw(sform=affine_with(1.0, 0, 1), codes=(0, 1)), "not perpendicular"),
    "NaN in the sform": ("a.nii", lambda: raw(sform=affine_with(np.nan, 0, 0), codes=(0, 1)), "singular or not finite"),
    "an sform of zeros": ("a.nii", lambda: raw(sform=np.zeros((4, 4)), codes=(0, 1)), "singular or not finite"),
    "light years away": ("a.nii", lambda: raw(sform=affine_with(1e30, 0, 3), codes=(0, 1)), "a kilometre away"),
    "sform and qform mirrored": ("a.nii", lambda: raw(qform=MIRRORED), "contradict each other"),
    "no place": ("a.nii", lambda: raw(codes=(0, 0)), "does not say where it lies"),
    "280 TB": ("a.nii", lambda: raw(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "limit"),
    "a negative size": ("a.nii", lambda: raw(dim=[3, -8, 9, 10, 1, 1, 1, 1]), "impossible size"),
    "one voxel": ("a.nii", lambda: raw(VALUES[:1, :1, :1]), "flat"),
    "a fourth axis of one": ("a.nii", lambda: raw(VALUES[..., None]), None),
}


def refused(read, path, *words):
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("row", HEADERS)
def test_every_row_of_the_table_is_read_as_it_is_or_refused(tmp_path, row):
    name, content, words = HEADERS[row]
    (tmp_path / name).write_bytes(content())
    if words is None:
        np.testing.assert_array_equal(read_image(tmp_path / name).data, VALUES)
    else:
        refused(read_image, tmp_path / name, words)


def test_a_command_ends_in_one_line_for_every_row(tmp_path, monkeypatch, capsys):
    from stepwarp.cli import main

    monkeypatch.setattr("signal.signal", lambda *_: None)
    good = tmp_path / "good.nii"
    good.write_bytes(raw())
    for number, (name, content, words) in enumerate(HEADERS.values()):
        if words is None:
            continue
        bad = tmp_path / f"{number}-{name}"
        bad.write_bytes(content())
        arguments = ["register", "-f", str(bad), "-m", str(good), "-o", str(tmp_path / "out"), "--json"]
        monkeypatch.setattr(sys, "argv", ["stepwarp", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert (end.value.code, out) == (3, "")
        assert err.startswith(f"stepwarp: {bad}: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_traps_are_refused_before_memory_is_taken(tmp_path):
    """In a process that may take 1 GiB more than it has, whose death would be seen."""
    volume = raw(dim=[3, 1000, 1000, 1000, 1, 1, 1, 1], datatype=2, bitpix=8)[:352]
    (tmp_path / "more.nii.gz").write_bytes(gzip.compress(raw() + bytes(1 << 26), 1))
    (tmp_path / "said.nii.gz").write_bytes(gzip.compress(volume + bytes(1 << 20), 1))
    (tmp_path / "bomb.mgz").write_bytes(gzip.compress(bytes(300 << 20), 1))
    for name, size in (("grid", "60000 60000 60000"), ("negative", "-5 -5 5"), ("nan", "nan 1 1")):
        fixed = f"{size} 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1"
        (tmp_path / f"{name}.tfm").write_text(TEXT.format("DisplacementFieldTransform_double_3_3", "0 0 0", fixed))
    (tmp_path / "fewer.tfm").write_text(TEXT.format("Euler3DTransform_double_3_3", "0.1", "0 0 0"))
    (tmp_path / "nul.txt").write_text(TEXT.format("Euler3DTransform_double_3_3", "\0\0 0.1 0.2 1 2 3", "1 2 3 0"))
    (tmp_path / "kind.txt").write_text(TEXT.format("ComposeScaleSkewVersor3DTransform_double_3_3", "0 " * 12, "0 0 0"))
    for name, how in (
        ("zeros.h5", {"chunks": (1 << 20,), "compression": "gzip"}),
        ("absent.h5", {}),
        ("chunk.h5", {"chunks": (1 << 28,), "maxshape": (None,), "compression": "gzip"}),
    ):
        write_composite(tmp_path / name, Composition.of(Affine.identity(3), FIELD))
        with h5py.File(tmp_path / name, "r+") as file:
            del file["TransformGroup/2/TransformParameters"]
            size = 3 * VALUES.size if name == "chunk.h5" else 10**11
            file["TransformGroup/2"].create_dataset("TransformParameters", (size,), "f8", **how)
    with zipfile.ZipFile(tmp_path / "bomb.trch", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", bytes(300 << 20), compresslevel=1)
    (tmp_path / "name.trch").write_bytes(b"\x80\x02c" + bytes(1 << 20) + b"\nOrderedDict\n.")
    script = """
import resource, sys
from pathlib import Path
import stepwarp
import h5py, SimpleITK
from stepwarp.errors import InputError
from stepwarp.files import read_image, read_transform
from stepwarp.registrar.weights import load_weights
size = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), size + (1 << 30)))
readers = {".gz": read_image, ".mgz": read_image, ".trch": load_weights}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, "was read:", readers.get(path.suffix, read_transform)(path))
    except InputError as error:
        print("refused")
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "STEPWARP_MAX_GIB": "0.25"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["refused"] * len(list(tmp_path.iterdir())), done.stdout


def test_a_file_that_draws_on_others_is_refused(tmp_path):
    for name in ("link.h5", "member.h5", "external.h5"):
        write_composite(tmp_path / name, Composition.of(Affine.identity(3), FIELD))
    write_composite(tmp_path / "other.h5", Affine.identity(3))
    with h5py.File(tmp_path / "link.h5", "r+") as file:
        del file["TransformGroup/2"]
        file["TransformGroup/2"] = h5py.ExternalLink(tmp_path / "other.h5", "TransformGroup/1")
    with h5py.File(tmp_path / "member.h5", "r+") as file:
        del file["TransformGroup/1/TransformParameters"]
        file["TransformGroup/1/TransformParameters"] = h5py.ExternalLink(tmp_path / "other.h5", "a")
    with h5py.File(tmp_path / "external.h5", "r+") as file:
        del file["TransformGroup/1/TransformParameters"]
        (tmp_path / "secret").write_bytes(bytes(96))
        where = [(str(tmp_path / "secret"), 0, 96)]
        file["TransformGroup/1"].create_dataset("TransformParameters", (12,), "f8", external=where)
    for name in ("link.h5", "member.h5", "external.h5"):
        refused(read_transform, tmp_path / name, "several files")


def test_numbers_that_readers_understand_differently_are_refused(tmp_path):
    for number in ("1_0", "0x10", "1e", "\u0661", "nan", "inf"):
        path = tmp_path / "a.tfm"
        path.write_text(TEXT.format("TranslationTransform_double_3_3", f"{number} 2 3", ""), encoding="utf-8")
        refused(read_transform, path)


def test_links_are_followed_and_those_that_lead_nowhere_are_refused(tmp_path):
    (tmp_path / "a.nii").write_bytes(raw())
    (tmp_path / "link.nii").symlink_to(tmp_path / "a.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "link.nii").data, VALUES)
    (tmp_path / "nowhere.nii").symlink_to(tmp_path / "absent.nii")
    refused(read_image, tmp_path / "nowhere.nii", "does not exist")
    (tmp_path / "circle.nii").symlink_to(tmp_path / "circle.nii")
    refused(read_image, tmp_path / "circle.nii")


@pytest.mark.parametrize("name", ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "\t=1", "a\nb", 'a"b', "<b>"])
def test_no_spreadsheet_runs_a_name_and_it_comes_back(tmp_path, name):
    for file in ("a.csv", "a.fcsv"):
        write_landmarks(tmp_path / file, Landmarks((name,), np.ones((1, 3))), overwrite=True)
        text = (tmp_path / file).read_text(encoding="utf-8").replace('""', '"')
        assert (f"'{name}" in text) == name.startswith(("=", "+", "-", "@", "\t"))
        assert read_landmarks(tmp_path / file).names == (name,)


@pytest.mark.parametrize("name", ["../a", "a/b", "a\nb", "<script>", ".hidden", "", "a" * 121, "=1+1", "a b", "a\0"])
def test_ids_that_are_no_names_of_files_are_refused(tmp_path, name):
    from stepwarp.data.manifest import read_manifest

    path = tmp_path / "manifest.json"
    images = {"a": {"image": "a.nii"}, "b": {"image": "b.nii"}}
    pairs = [{"id": name, "fixed": "a", "moving": "b"}]
    path.write_text(json.dumps({"name": "m", "images": images, "pairs": pairs}))
    refused(read_manifest, path)
    path.write_text(json.dumps({"name": "m", "images": {name: {"image": "a.nii"}}}))
    refused(read_manifest, path)


def test_what_a_file_says_does_not_reach_the_terminal_as_a_command(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("name,x_ras,y_ras,z_ras\na,1,\x1b[31mred\x1b[0m,3\n")
    refused(read_landmarks, path)
    path.write_text(f"name,x_ras,y_ras,z_ras\na,1,{'9x' * 50_000},3\n")
    with pytest.raises(InputError) as caught:
        read_landmarks(path)
    assert len(str(caught.value)) < 2000
    assert "is not a finite number" in str(caught.value)


def survives(read, path):
    """Read, or refused as it should be."""
    try:
        with np.errstate(all="ignore"):
            return read(path)
    except InputError as error:
        message = str(error)
    assert str(path) in message
    assert message.isprintable()
    return None


quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FIELDS = list(nib.Nifti1Header.template_dtype.names)


@quick
@given(field=st.sampled_from(FIELDS), content=st.binary(min_size=80, max_size=80), packed=st.booleans())
def test_any_header_is_read_or_refused(tmp_path, field, content, packed):
    dtype, start = nib.Nifti1Header.template_dtype.fields[field]
    data = bytearray(raw())
    data[start : start + dtype.itemsize] = content[: dtype.itemsize]
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    image = survives(read_image, path)
    if image is not None:
        assert image.data.isfinite().all()
        np.testing.assert_allclose(image.data, nib.load(path).get_fdata().reshape(image.grid.shape), rtol=1e-5)


@quick
@given(
    name=st.sampled_from(["a.mat", "a.tfm", "a.h5", "a.nii.gz"]),
    start=st.integers(0, 2**31),
    content=st.binary(min_size=1, max_size=16),
    keep=st.booleans(),
)
def test_any_transform_is_read_or_refused(tmp_path, name, start, content, keep):
    path = tmp_path / name
    if name == "a.nii.gz":
        write_displacement(path, FIELD, overwrite=True)
    elif name == "a.h5":
        write_composite(path, Composition.of(Affine.identity(3), FIELD), overwrite=True)
    else:
        write_affine(path, Affine.identity(3), overwrite=True)
    data = bytearray(path.read_bytes())
    start %= len(data)
    data[start : start + len(content)] = content if keep else b""
    path.write_bytes(data)
    transform = survives(read_transform, path)
    if transform is not None:
        assert np.isfinite(transform(np.zeros((1, 3)))).all()
