import gzip
import os
import time

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stepwarp.errors import InputError, OutputError
from stepwarp.files import (
    TrustRules,
    as_image,
    as_labels,
    as_mask,
    on_grid_of,
    read_image,
    read_labels,
    read_mask,
    sha256,
    write_volume,
)
from stepwarp.geometry import Affine, Grid, Image, LabelMap
from stepwarp.geometry.intensities import scale_intensities

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


def saved_volume(tmp_path, volume):
    write_volume(tmp_path / "written.nii.gz", volume, overwrite=True)
    return tmp_path / "written.nii.gz"


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


def scaled(tmp_path, values, dtype):
    """Floats as nibabel and SPM store them in integers: with a factor that they choose."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    image = nib.Nifti1Image(np.asarray(values, np.float64), OBLIQUE, header)
    return saved(tmp_path, image, "scaled.nii.gz")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_labels_stored_with_a_factor_are_labels(tmp_path, dtype):
    values = np.random.default_rng(1).choice([0, 13, 58, 117], SHAPE)
    path = scaled(tmp_path, values, dtype)
    assert (nib.load(path).get_fdata() != values).any()
    np.testing.assert_array_equal(read_labels(path).data, values)
    np.testing.assert_array_equal(as_labels(nib.load(path)).data, values)
    np.testing.assert_array_equal(read_mask(path).data, values != 0)


def test_fractions_stored_with_a_factor_are_none(tmp_path):
    path = scaled(tmp_path, np.linspace(0, 1, 720).reshape(SHAPE), np.int16)
    refused(path, "not whole numbers", read=read_labels)
    np.testing.assert_array_equal(read_mask(path).data.flatten(), [0] + [1] * 719)
    coarse = patched(saved(tmp_path, nifti(np.arange(720, dtype=np.int16).reshape(SHAPE)), "a.nii"), scl_slope=1.7)
    refused(coarse, "not whole numbers", read=read_labels)


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, 5), (2, -3)])
def test_large_ids_keep_all_their_digits(tmp_path, slope, intercept):
    ids = np.full(SHAPE, 2**62 - 2**20 + 1, np.int64) + np.arange(720).reshape(SHAPE)
    if slope == 2:
        ids //= 4
    path = patched(saved(tmp_path, nifti(ids), "a.nii"), scl_slope=slope, scl_inter=intercept)
    expected = ids * slope + intercept
    np.testing.assert_array_equal(read_labels(path).data, expected)
    np.testing.assert_array_equal(as_labels(nib.load(path)).data, expected)
    write_volume(tmp_path / "b.nii.gz", read_labels(path))
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj), expected)


def test_ids_beyond_64_bits_are_refused(tmp_path):
    refused(
        saved(tmp_path, nifti(np.full(SHAPE, 2**63, np.uint64))),
        "64 bits with a sign. Renumber them: in Python",
        read=read_labels,
    )


def test_any_number_but_0_counts_in_a_mask(tmp_path):
    values = np.zeros(SHAPE, np.float32)
    values[1], values[2], values[3] = 0.3, -2, np.nan
    inside = np.zeros(SHAPE, bool)
    inside[1:3] = True
    np.testing.assert_array_equal(read_mask(saved(tmp_path, nifti(values))).data, inside)
    np.testing.assert_array_equal(as_mask(Image(torch.from_numpy(values), Grid(SHAPE, OBLIQUE))).data, inside)


def test_nan_is_missing_in_an_image_and_no_label(tmp_path):
    values = np.full(SHAPE, np.nan, np.float32)
    values[2:6] = 3
    values[4] = 5
    image = read_image(saved(tmp_path, nifti(values)))
    assert torch.equal(image.missing, torch.from_numpy(np.isnan(values)))
    np.testing.assert_array_equal(image.data, np.nan_to_num(values))
    np.testing.assert_array_equal(read_labels(tmp_path / "image.nii.gz").data, np.nan_to_num(values))
    write_volume(tmp_path / "again.nii.gz", image)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "again.nii.gz").dataobj), values)
    refused(saved(tmp_path, nifti(np.full(SHAPE, np.nan, np.float32))), "NaN everywhere")


def test_nan_becomes_the_lowest_value_where_0_would_be_bright(tmp_path):
    values = np.full(SHAPE, np.nan, np.float32)
    values[2:6] = -5
    values[4] = -3
    image = read_image(saved(tmp_path, nifti(values)))
    np.testing.assert_array_equal(image.data, np.nan_to_num(values, nan=-5))


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
@pytest.mark.parametrize("more", [b"x", bytes(511) + b"x", bytes(2 << 20)])
def test_data_beyond_the_voxels(tmp_path, values, name, more):
    raw = saved(tmp_path, nifti(values), "raw.nii").read_bytes() + more
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    refused(path, "more data")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("padding", [b"\0", bytes(512), b"\n", b"\r\n\x1a"])
def test_padding_beyond_the_voxels_is_no_damage(tmp_path, values, name, padding):
    raw = saved(tmp_path, nifti(values), "raw.nii").read_bytes() + padding
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    np.testing.assert_array_equal(read_image(path).data.numpy(), values)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mgz"])
def test_what_follows_a_gzip_stream_that_is_whole_does_no_harm(tmp_path, values, suffix):
    kind = nib.MGHImage if suffix == ".mgz" else nib.Nifti1Image
    whole = saved(tmp_path, kind(values, OBLIQUE), "whole" + suffix).read_bytes()
    path = tmp_path / ("a" + suffix)
    for more in (bytes(512), b"garbage", bytes(3) + b"ga", gzip.compress(b"")):
        path.write_bytes(whole + more)
        np.testing.assert_array_equal(read_image(path).data.numpy(), values)
    for damaged in (whole[:-3], whole[:-30], whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]):
        path.write_bytes(damaged)
        refused(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"dim": [4, 8, 9, 10, 0, 0, 0, 0]},
        {"dim": [7, 8, 9, 10, 0, 0, 0, 0]},
        {"magic": b"ni1"},
        {"scl_slope": np.inf},
        {"scl_slope": np.nan, "scl_inter": 5},
    ],
)
def test_odd_headers_that_every_reader_takes_alike(tmp_path, values, fields):
    read = read_image(patched(saved(tmp_path, nifti(values), "a.nii"), **fields))
    np.testing.assert_array_equal(read.data.numpy(), values)
    assert read.grid == Grid(SHAPE, OBLIQUE)


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
        ({"magic": b"n+2"}, "single-file"),
        ({"sizeof_hdr": 349}, "not a NIfTI"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "scaling"),
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


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_voxels_that_are_not_finite(tmp_path, values, bad):
    values[1, 2, 3:5] = bad
    path = saved(tmp_path, nifti(values))
    refused(path, "2 of 720 voxels")
    refused(path, "2 of 720 voxels", read=read_labels)
    refused(path, "2 of 720 voxels", read=read_mask)


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
    with pytest.raises(InputError, match="fate is none of sform, qform, base"):
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
    sheared[:3, 0] = OBLIQUE[:3, 0] + 0.05 * OBLIQUE[:3, 1]
    refused(saved(tmp_path, nifti(values, sheared, codes=(0, 1)), "a.nii"), "perpendicular", "mm")
    sheared[:3, 0] = OBLIQUE[:3, 0] + 0.012 * OBLIQUE[:3, 1]
    grid = read_image(saved(tmp_path, nifti(values, sheared, codes=(0, 1)), "b.nii")).grid
    axes = grid.linear / grid.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    assert grid.distance_to(Grid(SHAPE, sheared)) < 0.09  # a tenth of the smallest voxel
    np.testing.assert_allclose(grid.centre, Grid(SHAPE, sheared).centre)


def test_directions_of_three_decimals_are_straightened_whatever_the_size(tmp_path):
    shape, spacing = (180, 170, 2), np.array([0.4, 0.4, 2.0])
    exact = nib.eulerangles.euler2mat(0.21, 0.13, -0.17)
    rounded = nib.affines.from_matvec(np.round(exact, 3) * spacing, (-100, -90, 20))
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for codes in ((0, 1), (1, 1)):
        grid = read_image(saved(tmp_path, nifti(values, rounded, codes))).grid
        assert grid.distance_to(Grid(shape, nib.affines.from_matvec(exact * spacing, (-100, -90, 20)))) < 0.1
        path = saved_volume(tmp_path, Image(torch.zeros(shape), grid))
        assert sitk.ReadImage(str(path)).GetSize() == shape
    tilted = np.diag([1.0, 1, 1, 1])
    tilted[1, 2] = np.tan(np.radians(13.5))
    refused(saved(tmp_path, nifti(values, rounded @ tilted, (0, 1))), "perpendicular")


def near_half_a_turn(radians):
    """An affine turned by nearly 180 degrees about an axis along which its quaternion loses most."""
    axis = np.array([0.3, 0.5, 0.81])
    return nib.affines.from_matvec(nib.quaternions.angle_axis2mat(np.pi - radians, axis) * 1.0, (10, 20, -30))


@pytest.mark.parametrize("radians", [0, 1e-4, 3e-4, 6e-4, 2e-3])
def test_what_a_quaternion_in_single_precision_loses_is_no_contradiction(tmp_path, radians):
    shape, affine = (200, 2, 180), near_half_a_turn(radians)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image = read_image(saved(tmp_path, nifti(values, affine)))
    assert image.grid == Grid(shape, affine)
    mask = read_mask(saved(tmp_path, nifti((values > 0).astype(np.uint8), affine, (1, 0)), "qform_alone.nii.gz"))
    assert on_grid_of(mask, image).grid is image.grid


def test_statements_further_apart_than_a_tenth_of_a_voxel_contradict(tmp_path, values):
    image = nifti(values)
    for mm, reads in ((0.08, True), (0.1, False)):  # the smallest voxel is 0.9 mm
        image.header.set_qform(nib.affines.from_matvec(OBLIQUE[:3, :3], OBLIQUE[:3, 3] + (mm, 0, 0)), 2)
        path = saved(tmp_path, image)
        if reads:
            assert read_image(path).grid == Grid(SHAPE, OBLIQUE)
        else:
            refused(path, "contradict")
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.012) @ OBLIQUE[:3, :3], OBLIQUE[:3, 3])
    image.header.set_qform(turned, 2)
    refused(saved(tmp_path, image), "contradict", "0.688 degrees")


@pytest.mark.parametrize(("voxels", "fits"), [(1 / 771, True), (0.09, True), (0.11, False), (1, False)])
def test_a_mask_lies_on_its_image_within_a_tenth_of_a_voxel(tmp_path, values, voxels, fits):
    image = read_image(saved(tmp_path, nifti(values)))
    moved = nib.affines.from_matvec(OBLIQUE[:3, :3], OBLIQUE[:3, 3] + (0.9 * voxels, 0, 0))
    mask = read_mask(saved(tmp_path, nifti((values > 0).astype(np.uint8), moved), "mask.nii.gz"))
    if fits:
        assert on_grid_of(mask, image).grid is image.grid
    else:
        with pytest.raises(InputError, match=f"{0.9 * voxels:.3g} mm away"):
            on_grid_of(mask, image)


# --- trust


def test_trust_touches_no_header_that_is_in_order(tmp_path, values):
    good = saved(tmp_path, nifti(values, codes=(0, 2)), "good.nii.gz")
    unset = patched(saved(tmp_path, nifti(values, codes=(0, 2)), "a.nii"), quatern_b=0, qoffset_x=0, qoffset_y=0)
    for path in (good, unset):
        for trust in ("sform", "qform", "base"):
            rules = TrustRules([trust])
            assert read_image(path, trust=rules).grid == Grid(SHAPE, OBLIQUE)
            assert rules.record() == []
            assert "in order" in rules.notes()[0]


def test_trust_of_one_file_is_not_that_of_another(tmp_path, values):
    image = nifti(values)
    image.header.set_qform(MOVED, 1)
    first, second = (saved(tmp_path, image, name) for name in ("first.nii.gz", "second.nii.gz"))
    rules = TrustRules([f"{first}=qform", "second.nii.gz=sform", "third.nii.gz=base"])
    assert read_image(first, trust=rules).grid == Grid(SHAPE, MOVED)
    assert read_image(second, trust=rules).grid == Grid(SHAPE, OBLIQUE)
    record = rules.record()
    assert [(row["file"], row["statement"]) for row in record] == [(str(first), "qform"), (str(second), "sform")]
    assert all("contradict each other" in row["because"] for row in record)
    np.testing.assert_allclose(record[0]["header"]["sform"], OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(record[0]["header"]["qform"], MOVED, atol=1e-5)
    assert rules.notes()[-1] == "--trust third.nii.gz=base changed nothing: no such file was read"
    refused(second, trust=TrustRules([f"{first}=qform"]))
    assert read_image(second, trust=TrustRules(["base", "second.nii.gz=qform"])).grid == Grid(SHAPE, MOVED)


# --- numbers that single precision does not hold


@pytest.mark.parametrize(("offset", "contrast"), [(0, 1e300), (1e9, 1), (-1e12, 50), (0, 1e-40), (0, 1e-300), (1e5, 1)])
def test_intensities_beyond_single_precision_keep_their_contrast(tmp_path, offset, contrast):
    part = np.random.default_rng(0).random(SHAPE)
    image = read_image(saved(tmp_path, nifti(offset + contrast * part)))
    found = (image.data.double().numpy() - offset) / contrast
    np.testing.assert_allclose(found, part, atol=2e-4)
    scaled = scale_intensities(image)
    assert scaled.data.dtype == torch.float32
    plain = scale_intensities(Image(torch.from_numpy(part.astype(np.float32)), image.grid)).data
    np.testing.assert_allclose(scaled.data.numpy(), plain.numpy(), atol=1e-3)
    half = Affine(np.vstack([np.column_stack([np.eye(3), OBLIQUE[:3, 0] / 2]), [0, 0, 0, 1]])[:3])
    moved = image.surrounded(offset).warp(half)
    expected = Image(torch.from_numpy(part.astype(np.float32)), image.grid).warp(half).data.numpy()
    np.testing.assert_allclose((moved.data.double().numpy() - offset) / contrast, expected, atol=3e-4)
    back = nib.load(saved_volume(tmp_path, moved)).get_fdata()
    np.testing.assert_allclose((back - offset) / contrast, expected, atol=3e-4)


def test_differences_that_single_precision_does_not_hold_are_interpolated(tmp_path):
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    values[3, 3, 3], values[4, 3, 3] = -3e38, 3e38
    image = read_image(saved(tmp_path, nifti(values)))
    half = Affine(np.vstack([np.column_stack([np.eye(3), OBLIQUE[:3, 0] / 2]), [0, 0, 0, 1]]))
    assert image.warp(half).data.isfinite().all()


def test_huge_numbers_are_no_labels_for_being_whole(tmp_path):
    path = saved(tmp_path, nifti(np.round(np.random.default_rng(0).random(SHAPE) * 9) * 1e300))
    refused(path, "not whole numbers", read=read_labels)


def test_memory_that_is_not_there_is_said_with_sizes(tmp_path, values, monkeypatch):
    path = saved(tmp_path, nifti(values))
    monkeypatch.setattr(np, "frombuffer", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError, match=r"image.nii.gz: its voxels take .* GiB .* and .* GiB are free"):
        read_image(path)


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


def test_equal_volumes_give_equal_bytes(tmp_path, values, monkeypatch):
    image = Image(torch.from_numpy(values), Grid(SHAPE, OBLIQUE))
    write_volume(tmp_path / "a.nii.gz", image)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
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


@pytest.mark.data
def test_development_images_are_read_as_nibabel_reads_them(data_folder):
    for name in ("oasis/1000_SS.nii.gz", "wholehead/1000_T1w_2mm.nii.gz", "multimodal/avg152T1.nii.gz"):
        theirs = nib.load(data_folder / name)
        ours = read_image(data_folder / name)
        np.testing.assert_array_equal(ours.data, theirs.get_fdata(dtype=np.float32))
        assert ours.grid == Grid(theirs.shape, theirs.affine)
    assert read_labels(data_folder / "oasis/1000_glm.nii.gz").data.dtype == torch.uint8
