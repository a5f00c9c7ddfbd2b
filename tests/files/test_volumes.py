import gzip
import os
import subprocess
import sys

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stepwarp.errors import InputError, OutputError
from stepwarp.files import as_image, as_labels, read_image, read_labels, sha256, write_volume
from stepwarp.geometry import Grid, Image, LabelMap

SHAPE = (8, 9, 10)
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.5) * (1.5, 0.9, 2.1), (10, -20, 30))


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.float32)


def nifti(values, affine=OBLIQUE, codes=(1, 1), kind=nib.Nifti1Image):
    header = kind.header_class()
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    header.set_qform(affine, codes[0])
    header.set_sform(affine, codes[1])
    header.set_xyzt_units("mm")
    return kind(values, None, header)  # with an affine nibabel would choose the codes itself


def saved(tmp_path, image, name="image.nii.gz"):
    path = tmp_path / name
    nib.save(image, path)
    return path


def patched(path, **fields):
    """A file whose header says something else than nibabel would write."""
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    path.write_bytes(raw)
    return path


def refused(path, *words, read=read_image, **keywords):
    """The message with which `path` is refused: one line that names the file and says what is wrong."""
    with pytest.raises(InputError) as caught:
        read(path, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message
    return message


# --- what is read


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ", "a b ü.nii.gz", "a.mgz", "a.hdr"])
def test_values_and_place_are_those_of_nibabel(tmp_path, values, name):
    image = nib.MGHImage(values, OBLIQUE) if name.endswith("mgz") else nifti(values)
    image = nib.Nifti1Pair(values, OBLIQUE, image.header) if name.endswith("hdr") else image
    path = saved(tmp_path, image, name)
    ours, theirs = read_image(path), nib.load(path)
    np.testing.assert_array_equal(ours.data.numpy(), theirs.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(ours.grid.affine, theirs.affine, atol=1e-4)
    assert ours.data.dtype == torch.float32
    assert ours.data.is_contiguous()
    assert ours.name == str(path)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_number_type_and_byte_order(tmp_path, code, order):
    values = np.arange(720).reshape(SHAPE) % 120
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(order + code))
    path = saved(tmp_path, nib.Nifti1Image(values.astype(order + code), OBLIQUE, header))
    np.testing.assert_array_equal(read_image(path).data, values)
    np.testing.assert_array_equal(read_labels(path).data, values)
    assert read_labels(path).data.dtype == torch.uint8


def test_nifti_2(tmp_path, values):
    path = saved(tmp_path, nifti(values, kind=nib.Nifti2Image))
    np.testing.assert_array_equal(read_image(path).data, values)


@pytest.mark.parametrize(("slope", "intercept", "expected"), [(2, -3, (2, -3)), (0, 5, (1, 0)), (np.nan, 0, (1, 0))])
def test_scaling(tmp_path, slope, intercept, expected):
    stored = np.arange(720, dtype=np.int16).reshape(SHAPE)
    path = patched(saved(tmp_path, nifti(stored), "a.nii"), scl_slope=slope, scl_inter=intercept)
    np.testing.assert_allclose(read_image(path).data, stored * expected[0] + expected[1])


def test_one_volume_with_four_axes_is_a_volume(tmp_path, values):
    path = saved(tmp_path, nifti(values[..., None]))
    np.testing.assert_array_equal(read_image(path).data, values)


def test_a_file_of_many_gzip_members(tmp_path, values):
    raw = saved(tmp_path, nifti(values), "a.nii").read_bytes()
    path = tmp_path / "blocks.nii.gz"
    path.write_bytes(b"".join(gzip.compress(raw[n : n + 500]) for n in range(0, len(raw), 500)))
    np.testing.assert_array_equal(read_image(path).data, values)


@pytest.mark.parametrize(
    ("highest", "dtype"), [(255, torch.uint8), (256, torch.int16), (40_000, torch.int32), (2**40, torch.int64)]
)
def test_labels_take_the_smallest_type_that_holds_them(tmp_path, highest, dtype):
    values = np.zeros(SHAPE, np.int64)
    values[2, 3, 4] = highest
    labels = read_labels(saved(tmp_path, nifti(values)))
    assert labels.data.dtype == dtype
    assert labels.data[2, 3, 4] == highest


def test_labels_stored_as_whole_floats_are_labels(tmp_path):
    values = np.zeros(SHAPE, np.float32)
    values[1] = -7
    assert read_labels(saved(tmp_path, nifti(values))).data.dtype == torch.int16


def test_a_label_map_of_one_value_is_one(tmp_path):
    assert read_labels(saved(tmp_path, nifti(np.ones(SHAPE, np.uint8)))).data.min() == 1


def test_images_of_nibabel_and_own_volumes(values, tmp_path):
    image = as_image(nifti(values))
    np.testing.assert_array_equal(image.data, values)
    assert as_image(image) is image
    assert as_image(saved(tmp_path, nifti(values))).grid == image.grid
    labels = as_labels(nifti(np.eye(9, 8, dtype=np.int16)[None].repeat(7, 0)))
    assert as_labels(labels) is labels
    with pytest.raises(InputError, match="ndarray"):
        as_image(values)
    with pytest.raises(InputError, match="NaN"):
        as_image(nifti(np.full(SHAPE, np.nan, np.float32)))
    with pytest.raises(InputError, match="limit"):
        as_image(nib.Nifti1Image(np.broadcast_to(np.float32(0), (32767,) * 3), OBLIQUE))


def test_the_hash_is_that_of_the_bytes_on_disk(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- what is not: bytes


def test_absent_folder_and_empty_files(tmp_path):
    refused(tmp_path / "absent.nii.gz", "does not exist")
    (tmp_path / "folder.nii.gz").mkdir()
    refused(tmp_path / "folder.nii.gz", "is a folder")
    (tmp_path / "empty.nii.gz").touch()
    refused(tmp_path / "empty.nii.gz", "is empty")
    refused(tmp_path / "empty.nii.gz", "is empty", read=read_labels)
    refused(tmp_path / ("n" * 300 + ".nii"), "cannot be read")
    os.mkfifo(tmp_path / "pipe.nii")
    refused(tmp_path / "pipe.nii", "regular file")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read anything")
def test_a_file_without_permission(tmp_path, values):
    path = saved(tmp_path, nifti(values))
    path.chmod(0)
    refused(path, "permission")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.hdr"])
def test_random_bytes(tmp_path, name):
    path = tmp_path / name
    if name == "a.hdr":
        (tmp_path / "a.img").write_bytes(b"voxels")
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    refused(path)
    path.write_bytes(b"\x1f\x8b" + np.random.default_rng(0).bytes(5000))
    refused(path)


@pytest.mark.parametrize("kept", [0.01, 0.1, 0.5, 0.99, 1])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgh", "a.mgz"])
def test_truncated_files(tmp_path, values, name, kept):
    path = saved(tmp_path, nib.MGHImage(values, OBLIQUE) if ".mg" in name else nifti(values), name)
    content = path.read_bytes()
    if ".mgh" in name and kept > 0.9:
        pytest.skip("the last bytes of MGH are a footer that may be absent")
    path.write_bytes(content[: min(int(kept * len(content)), len(content) - 1)])
    refused(path)


@pytest.mark.parametrize("position", [-8, -4, -200])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz"])
def test_a_damaged_byte_fails_the_checksum(tmp_path, values, name, position):
    path = saved(tmp_path, nib.MGHImage(values, OBLIQUE) if name.endswith("mgz") else nifti(values), name)
    content = bytearray(path.read_bytes())
    content[position] ^= 0x55
    path.write_bytes(content)
    refused(path)


def test_a_name_that_contradicts_the_compression(tmp_path, values):
    plain, packed = saved(tmp_path, nifti(values), "a.nii"), saved(tmp_path, nifti(values), "b.nii.gz")
    plain, packed = plain.rename(tmp_path / "c.nii.gz"), packed.rename(tmp_path / "d.nii")
    refused(plain, "not compressed", "rename it to .nii")
    refused(packed, "is compressed", "rename it to .nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_bytes_beyond_the_voxels(tmp_path, values, name):
    raw = saved(tmp_path, nifti(values), "raw.nii").read_bytes() + b"\0"
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    refused(path, "more data")


def test_a_bomb_is_not_unpacked(tmp_path, values, monkeypatch):
    raw = saved(tmp_path, nifti(values), "raw.nii").read_bytes()
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(raw + bytes(50 << 20)))
    refused(path, "more data")
    path = path.rename(tmp_path / "bomb.mgz")
    monkeypatch.setenv("STEPWARP_MAX_GIB", "0.01")
    refused(path, "unpacks to more than")


def test_an_absurd_size_is_refused_before_memory_is_taken(tmp_path, values, monkeypatch):
    huge = patched(saved(tmp_path, nifti(values), "a.nii"), dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    refused(huge, "32767 x 32767 x 32767", "limit")
    large = patched(saved(tmp_path, nifti(values), "b.nii"), dim=[3, 1000, 1000, 1000, 1, 1, 1, 1])
    refused(large, "cut off")
    small = saved(tmp_path, nifti(values))
    monkeypatch.setenv("STEPWARP_MAX_GIB", "1e-9")
    refused(small, "limit", "STEPWARP_MAX_GIB")
    monkeypatch.setenv("STEPWARP_MAX_GIB", "plenty")
    with pytest.raises(InputError, match="plenty"):
        read_image(small)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"dim": [3, -8, 9, 10, 1, 1, 1, 1]}, "impossible size"),
        ({"dim": [3, 0, 9, 10, 1, 1, 1, 1]}, "impossible size"),
        ({"dim": [0, 8, 9, 10, 1, 1, 1, 1]}, "axes"),
        ({"dim": [9, 8, 9, 10, 1, 1, 1, 1]}, "axes"),
        ({"datatype": 77}, "data type"),
        ({"datatype": 1}, "voxels are"),
        ({"vox_offset": 0}, "byte 0"),
        ({"vox_offset": np.nan}, "byte nan"),
        ({"vox_offset": 1e30}, "byte 1e+30"),
        ({"magic": b"ni1"}, "single-file"),
        ({"sizeof_hdr": 349}, "not a NIfTI"),
        ({"scl_slope": np.inf}, "scaling"),
        ({"xyzt_units": 1}, "metres"),
        ({"xyzt_units": 3}, "micrometres"),
    ],
)
def test_headers_that_make_no_sense(tmp_path, values, fields, word):
    refused(patched(saved(tmp_path, nifti(values), "a.nii"), **fields), word)


# --- what is not: content


@pytest.mark.parametrize("shape", [(8,), (8, 9), (8, 9, 1), (1, 9, 10)])
def test_flat_images(tmp_path, shape):
    refused(saved(tmp_path, nifti(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))), "flat")


def test_several_volumes_and_vectors(tmp_path):
    refused(saved(tmp_path, nifti(np.zeros((*SHAPE, 5), "f4"))), "5 volumes")
    refused(saved(tmp_path, nifti(np.zeros((*SHAPE, 1, 3), "f4"))), "5 axes")


def test_colours_and_complex_numbers(tmp_path, values):
    colours = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    refused(saved(tmp_path, nifti(colours)), "colours")
    refused(saved(tmp_path, nifti(values.astype(np.complex64))), "complex")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite(tmp_path, values, bad):
    values[1, 2, 3:5] = bad
    path = saved(tmp_path, nifti(values))
    refused(path, "2 of 720 voxels")
    refused(path, "2 of 720 voxels", read=read_labels)


def test_values_beyond_float32(tmp_path):
    refused(saved(tmp_path, nifti(np.linspace(0, 1e300, 720).reshape(SHAPE))), "infinite")


def test_a_constant_image(tmp_path):
    refused(saved(tmp_path, nifti(np.full(SHAPE, 7, np.int16))), "7 everywhere")


def test_labels_that_are_none(tmp_path, values):
    refused(saved(tmp_path, nifti(values)), "not whole numbers", read=read_labels)
    refused(saved(tmp_path, nifti(np.full(SHAPE, 2**64 - 1, np.uint64)), "b.nii"), "64 bits", read=read_labels)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a"])
def test_other_formats(tmp_path, name):
    (tmp_path / name).write_bytes(b"NRRD0004")
    refused(tmp_path / name, "Convert it to NIfTI")


def test_analyze_does_not_say_which_side_is_left(tmp_path, values):
    path = tmp_path / "a.hdr"
    nib.AnalyzeImage(values, None).to_filename(path)
    refused(path, "left")


# --- where it lies


MOVED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1) @ OBLIQUE[:3, :3], OBLIQUE[:3, 3] + (5, 0, 0))


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 1), "sform"), ((1, 0), "qform"), ((4, 0), "qform"), ((0, 2), "sform")]
)
def test_the_one_statement_there_is_is_used(tmp_path, values, codes, expected):
    image = nifti(values, MOVED, codes)
    image.header.set_sform(OBLIQUE, codes[1])
    grid = read_image(saved(tmp_path, image)).grid
    assert grid == Grid(SHAPE, OBLIQUE if expected == "sform" else MOVED)


def test_contradicting_statements_stop_until_one_is_trusted(tmp_path, values):
    image = nifti(values)
    image.header.set_qform(MOVED, 1)
    path = saved(tmp_path, image)
    apart = Grid(SHAPE, OBLIQUE).distance_to(Grid(SHAPE, MOVED))
    refused(path, "--trust sform", "--trust qform", f"{apart:.3g} mm", "5.73 degrees")
    assert read_image(path, trust="sform").grid == Grid(SHAPE, OBLIQUE)
    assert read_image(path, trust="qform").grid == Grid(SHAPE, MOVED)
    with pytest.raises(InputError, match="fate: is none of sform, qform, base"):
        read_image(path, trust="fate")


def test_a_mirror_between_the_statements_is_called_one(tmp_path, values):
    image = nifti(values)
    image.header.set_qform(OBLIQUE @ np.diag([-1, 1, 1, 1]), 1)
    refused(saved(tmp_path, image), "mirror")


def test_statements_that_differ_by_rounding_are_one(tmp_path, values):
    image = nifti(values)
    image.header.set_qform(nib.affines.from_matvec(OBLIQUE[:3, :3], OBLIQUE[:3, 3] + 0.05), 2)
    assert read_image(saved(tmp_path, image)).grid == Grid(SHAPE, OBLIQUE)


def test_no_statement_stops_until_one_is_trusted(tmp_path, values):
    path = saved(tmp_path, nifti(values, codes=(0, 0)))
    refused(path, "does not say where it lies", "--trust")
    assert read_image(path, trust="sform").grid == Grid(SHAPE, OBLIQUE)
    assert read_image(path, trust="qform").grid == Grid(SHAPE, OBLIQUE)
    base = read_image(path, trust="base").grid
    np.testing.assert_allclose(base.affine, nib.load(path).header.get_base_affine())
    with pytest.raises(InputError, match="--trust"):
        as_image(nib.Nifti1Image(values, None))


@pytest.mark.parametrize("row", [[np.nan] * 4, [np.inf, 0, 0, 0], [0] * 4])
def test_an_unusable_affine(tmp_path, values, row):
    path = saved(tmp_path, nifti(values, codes=(0, 1)), "a.nii")
    refused(patched(path, srow_y=row), "singular or not finite")
    refused(path, "sform", trust="sform")
    both = patched(saved(tmp_path, nifti(values), "b.nii"), srow_y=row)
    assert read_image(both).grid == Grid(SHAPE, OBLIQUE)


@pytest.mark.parametrize("fields", [{"pixdim": [1, 0, 1, 1, 0, 0, 0, 0]}, {"quatern_b": 3}, {"quatern_c": np.nan}])
def test_an_unusable_quaternion(tmp_path, values, fields):
    path = saved(tmp_path, nifti(values, codes=(1, 0)), "a.nii")
    refused(patched(path, **fields), "singular or not finite")


def test_a_handedness_of_0_means_1(tmp_path, values):
    path = patched(saved(tmp_path, nifti(values, codes=(1, 0)), "a.nii"), pixdim=[0, 1.5, 0.9, 2.1, 0, 0, 0, 0])
    assert read_image(path).grid == Grid(SHAPE, OBLIQUE)


def test_shear_is_refused_above_its_limit_and_removed_below(tmp_path, values):
    sheared = OBLIQUE.copy()
    sheared[:3, 0] += 0.1 * OBLIQUE[:3, 1]
    refused(saved(tmp_path, nifti(values, sheared, codes=(0, 1)), "a.nii"), "perpendicular", "mm")
    sheared[:3, 0] = OBLIQUE[:3, 0] + 0.001 * OBLIQUE[:3, 1]
    grid = read_image(saved(tmp_path, nifti(values, sheared, codes=(0, 1)), "b.nii")).grid
    axes = grid.linear / grid.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    assert grid.distance_to(Grid(SHAPE, sheared)) < 0.01


# --- what is written


def ras_of(origin, spacing, direction):
    lps = nib.affines.from_matvec(np.reshape(direction, (3, 3)) * spacing, origin)
    return np.diag([-1, -1, 1, 1]) @ lps


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1)])
def test_strangers_read_the_same_voxels_in_the_same_place(tmp_path, values, name, flips):
    grid = Grid(SHAPE, OBLIQUE @ np.diag([*flips, 1]))
    path = tmp_path / name
    write_volume(path, Image(torch.from_numpy(values), grid))

    itk = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk).T, values)
    assert Grid(SHAPE, ras_of(itk.GetOrigin(), itk.GetSpacing(), itk.GetDirection())).distance_to(grid) < 1e-4
    by_ants = ants.image_read(str(path))
    np.testing.assert_array_equal(by_ants.numpy(), values)
    assert Grid(SHAPE, ras_of(by_ants.origin, by_ants.spacing, by_ants.direction)).distance_to(grid) < 1e-4
    by_nibabel = nib.load(path)
    np.testing.assert_array_equal(by_nibabel.get_fdata(), values)
    for affine, code in (by_nibabel.get_sform(coded=True), by_nibabel.get_qform(coded=True)):
        assert code == 1
        assert Grid(SHAPE, affine).distance_to(grid) < 1e-4
    assert by_nibabel.header.get_xyzt_units()[0] == "mm"
    assert read_image(path).grid == grid


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_keep_their_type(tmp_path, dtype):
    data = (torch.arange(720).reshape(SHAPE) % 100).to(dtype)
    write_volume(tmp_path / "a.nii.gz", LabelMap(data, Grid.isotropic(SHAPE)))
    assert str(nib.load(tmp_path / "a.nii.gz").get_data_dtype()) == str(dtype).removeprefix("torch.")
    assert (read_labels(tmp_path / "a.nii.gz").data == data).all()


def test_images_can_be_stored_as_integers_that_hold_them(tmp_path, values):
    image = Image(torch.from_numpy(values), Grid.isotropic(SHAPE))
    write_volume(tmp_path / "a.nii.gz", image, dtype=torch.int16)
    np.testing.assert_array_equal(nib.load(tmp_path / "a.nii.gz").get_fdata(), np.rint(values))
    with pytest.raises(OutputError, match="do not fit"):
        write_volume(tmp_path / "b.nii.gz", Image(image.data * 1000, image.grid), dtype=torch.int16)


def test_equal_volumes_give_equal_bytes(tmp_path, values):
    image = Image(torch.from_numpy(values), Grid(SHAPE, OBLIQUE))
    write_volume(tmp_path / "a.nii.gz", image)
    write_volume(tmp_path / "b.nii.gz", image)
    assert sha256(tmp_path / "a.nii.gz") == sha256(tmp_path / "b.nii.gz")


def test_what_cannot_be_written_leaves_nothing(tmp_path, values):
    image = Image(torch.from_numpy(values), Grid.isotropic(SHAPE))
    with pytest.raises(OutputError, match=r"\.nii"):
        write_volume(tmp_path / "a.mha", image)
    with pytest.raises(OutputError, match="not finite"):
        write_volume(tmp_path / "a.nii", Image(image.data * torch.nan, image.grid))
    with pytest.raises(OutputError, match="does not fit into NIfTI"):
        write_volume(tmp_path / "a.nii", image, dtype=torch.float16)
    with pytest.raises(OutputError, match="does not fit into NIfTI"):
        write_volume(tmp_path / "a.nii", Image(torch.zeros(40_000, 2, 2), Grid.isotropic((40_000, 2, 2))))
    assert list(tmp_path.iterdir()) == []
    write_volume(tmp_path / "a.nii", image)
    with pytest.raises(OutputError, match="--force"):
        write_volume(tmp_path / "a.nii", image)
    write_volume(tmp_path / "a.nii", image, overwrite=True)


def test_importing_does_not_load_simpleitk():
    code = "import sys, stepwarp.files; sys.exit('SimpleITK' in sys.modules or 'ants' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.data
def test_development_images_are_read_as_nibabel_reads_them(data_folder):
    for name in ("oasis/1000_SS.nii.gz", "wholehead/1000_T1w_2mm.nii.gz", "multimodal/avg152T1.nii.gz"):
        theirs = nib.load(data_folder / name)
        ours = read_image(data_folder / name)
        np.testing.assert_array_equal(ours.data, theirs.get_fdata(dtype=np.float32))
        assert ours.grid == Grid(theirs.shape, theirs.affine)
    assert read_labels(data_folder / "oasis/1000_glm.nii.gz").data.dtype == torch.uint8
