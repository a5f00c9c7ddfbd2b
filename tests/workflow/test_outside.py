"""What images hold where they end, and where their file says nothing."""

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stepwarp.errors import InputError
from stepwarp.files import TrustRules, proof, read_image, sha256, write_affine, write_volume
from stepwarp.geometry import Affine, Grid, Image, LabelMap
from stepwarp.workflow import apply as apply_module
from stepwarp.workflow.apply import apply
from stepwarp.workflow.register import register
from stepwarp.workflow.subjects import ants_options, described_inputs, outside_remarks, prepare

GRID = Grid((20, 22, 24), np.diag([2.0, 2.0, 2.0, 1.0]))
#: Half a voxel and a bit: every voxel is interpolated, and the image ends inside the new grid.
SHIFT = Affine(nib.affines.from_matvec(np.eye(3), (9.0, 5.0, -3.0)))


def ball(radius):
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), -1)
    return np.linalg.norm(index - (np.array(GRID.shape) - 1) / 2, axis=-1) < radius


def texture():
    return np.random.default_rng(0).uniform(50, 100, GRID.shape)


def air(value, noise=0.0):
    values = np.where(ball(8), texture(), value) + noise * np.random.default_rng(1).standard_normal(GRID.shape)
    return values.astype(np.float32)


@pytest.fixture
def carry(tmp_path):
    """What the voxels of a file become, as nibabel reads them, and how."""
    write_affine(tmp_path / "shift.mat", SHIFT)

    def carried(values, **options):
        image = nib.Nifti1Image(values, GRID.affine)
        image.set_qform(GRID.affine, 1)
        nib.save(image, tmp_path / "in.nii.gz")
        [done] = apply(
            [tmp_path / "shift.mat"],
            [tmp_path / "in.nii.gz"],
            [tmp_path / "out.nii.gz"],
            reference=tmp_path / "in.nii.gz",
            overwrite=True,
            **options,
        )
        return np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj), done

    return carried


def by_simpleitk(values, outside, interpolator=sitk.sitkLinear):
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    image.SetSpacing((2.0, 2.0, 2.0))
    shift = sitk.TranslationTransform(3, SHIFT.matrix[:3, 3].tolist())
    return sitk.GetArrayFromImage(sitk.Resample(image, image, shift, interpolator, outside)).T


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (air(0.0), 0.0),
        (air(-1000.0), -1000.0),
        (air(-1000.3), np.float32(-1000.3)),
        (air(7.5), 7.5),
        (texture().astype(np.float32), 0.0),
        (air(2.0, noise=1.0), 0.0),
    ],
    ids=["skull-stripped", "CT", "no whole number", "map", "no background", "noise about 0"],
)
def test_outside_is_the_background_of_the_image(carry, values, expected):
    out, done = carry(values)
    np.testing.assert_allclose(out, by_simpleitk(values, float(expected)), atol=1e-3)
    assert f"{expected:g} outside" in done.how


def test_noise_of_air_is_a_background(carry):
    out, _ = carry(air(-1000.0, noise=10.0))
    assert abs(out[-1].mean() + 1000) < 2
    assert np.ptp(out[-1]) == 0


def test_outside_as_asked_for(carry):
    out, done = carry(air(0.0), outside=-5.5)
    np.testing.assert_allclose(out, by_simpleitk(air(0.0), -5.5), atol=1e-4)
    assert "-5.5 outside" in done.how
    out, _ = carry(air(-1000.0).astype(np.int16), outside=-2000, interpolation="nearest")
    np.testing.assert_array_equal(out, by_simpleitk(air(-1000.0).astype(np.int16), -2000, sitk.sitkNearestNeighbor))
    assert out.dtype == np.int16
    assert np.isnan(carry(air(0.0), outside=np.nan)[0][-1]).all()


@pytest.fixture
def result(tmp_path):
    """result(values, outside): the folder of a registration of these values that was given a value outside."""

    def registered(values, outside):
        nib.save(nib.Nifti1Image(values, GRID.affine), tmp_path / "moving.nii.gz")
        write_affine(tmp_path / "0GenericAffine.mat", SHIFT, overwrite=True)
        image = {"shape": GRID.shape, "affine": GRID.affine.tolist()}
        record = {
            "inputs": {"fixed": image, "moving": {**image, "sha256": sha256(tmp_path / "moving.nii.gz")}},
            "verdict": {"status": "pass"},
            "settings": {"affine_only": True, "outside": outside},
        }
        (tmp_path / "registration.json").write_text(json.dumps(record))
        return tmp_path

    return registered


def applied(folder, values=None, **options):
    """What lies beyond, and what is said, of values (the moving image's own by default) carried along a result."""
    source = folder / ("moving.nii.gz" if values is None else "other.nii.gz")
    if values is not None:
        nib.save(nib.Nifti1Image(values, GRID.affine), source)
    [done] = apply([folder], [source], [folder / "out.nii.gz"], overwrite=True, **options)
    corner = np.asarray(nib.load(folder / "out.nii.gz").dataobj)[(0, 0, -1) if "source" in options else (-1, -1, 0)]
    return corner, " ".join((done.how, *done.notes))


def test_what_a_registration_was_given_holds_for_the_moving_image(result):
    values = np.where(ball(8), texture(), -900.0).astype(np.float32)
    corner, said = applied(result(values, -1024.0))
    assert corner == -1024
    assert "-1024 outside; moving to fixed" in said
    assert "-1024 outside as given to the registration" in said
    assert applied(result(values, -1024.0), outside=-5.0)[0] == -5
    assert applied(result(values, None))[0] == -900
    assert np.isnan(applied(result(values, "nan"))[0])
    assert applied(result(values.round(), -1024.0), interpolation="nearest")[0] == -1024


def test_what_a_registration_was_given_is_for_another_image_only_if_it_can_be_meant_for_it(result):
    folder = result(air(-900.0), -1024.0)
    ct = np.where(ball(8), texture(), -900.0).astype(np.float32)
    ct[9, 9, 9] = -1100
    assert applied(folder, ct)[0] == -1024
    probabilities = (ball(8) * texture() / 100).astype(np.float32)
    corner, said = applied(folder, probabilities)
    assert corner == 0
    assert "was given --outside -1024, which is no value of this image" in said
    assert np.isnan(applied(result(air(-900.0), "nan"), probabilities)[0])
    assert applied(folder, np.where(ball(8), 3, 0).astype(np.uint8))[0] == 0
    assert applied(folder, ct, source="fixed")[0] == -900  # the fixed image is of another modality


def test_labels_are_0_outside(carry):
    out, _ = carry(np.where(ball(8), 3, 7).astype(np.uint8), outside=9)
    np.testing.assert_array_equal(np.unique(out), [0, 3, 7])
    with pytest.raises(InputError, match="--outside"):
        carry(ball(8).astype(np.uint8), outside=9, labels=True)
    with pytest.raises(InputError, match="not a number"):
        carry(air(0.0), outside=np.inf)


@pytest.mark.parametrize("interpolation", ["auto", "nearest"])
def test_nan_stays_where_it_is_and_touches_nothing_else(carry, interpolation):
    known = ball(8)
    values = np.where(known, texture(), np.nan).astype(np.float32)
    out, done = carry(values, interpolation=interpolation)
    nearest = by_simpleitk(known.astype(np.uint8), 0, sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(np.isfinite(out), nearest == 1)
    whole = by_simpleitk(known.astype(np.float32), 0.0) == 1
    way = sitk.sitkLinear if interpolation == "auto" else sitk.sitkNearestNeighbor
    np.testing.assert_allclose(out[whole], by_simpleitk(np.nan_to_num(values), 0.0, way)[whole], atol=1e-3)
    assert whole.any()
    assert 50 <= np.nanmin(out) <= np.nanmax(out) <= 100  # no 0 was mixed in at the rim
    assert "nan outside" in done.how


@pytest.mark.parametrize(("way", "theirs"), [("cubic", sitk.sitkBSpline3), ("sinc", sitk.sitkLanczosWindowedSinc)])
def test_whatever_the_interpolation_an_image_ends_alike(carry, way, theirs):
    values = air(-1000.0)
    out, done = carry(values, interpolation=way)
    np.testing.assert_allclose(out, by_simpleitk(values, -1000.0, theirs), atol=1e-2)
    assert "-1000 outside" in done.how
    missing, _ = carry(values, interpolation=way, outside=np.nan)
    beyond, _ = carry(values, outside=np.nan)
    np.testing.assert_array_equal(np.isnan(missing), np.isnan(beyond))
    values[5, 5, 5] = np.nan
    with pytest.raises(InputError, match=f"NaN, which --interpolation {way} would spread"):
        carry(values, interpolation=way)


def test_an_image_with_gaps_is_not_searched_for_long_if_it_is_to_be_read_by_splines():
    with pytest.raises(InputError, match="holds NaN, which --interpolation cubic would spread"):
        register(Image(torch.from_numpy(air(0.0)), GRID), (air(np.nan), GRID.affine), interpolation="cubic")


def test_nan_in_a_label_map_is_no_label(carry):
    values = np.where(ball(8), 3, np.nan)
    values[9:11, 9:11, 9:11] = 2**24 + 1
    out, _ = carry(values)
    np.testing.assert_array_equal(np.unique(out), [0, 3, 2**24 + 1])
    assert out.dtype == np.int32


def test_a_nan_background_is_searched_like_one_of_0(tmp_path):
    values = air(0.0)
    images = [Image(torch.from_numpy(v), GRID) for v in (values, np.where(values == 0, np.nan, values))]
    zero, absent = (prepare(image, None, None) for image in images)
    assert torch.equal(zero.scaled.data, absent.scaled.data)
    write_volume(tmp_path / "nan.nii.gz", absent.image)
    back = read_image(tmp_path / "nan.nii.gz")
    assert torch.equal(back.missing, torch.from_numpy(values == 0))


@pytest.mark.parametrize("outside", [None, -300.0, np.nan])
@pytest.mark.parametrize("background", [-1000.0, np.nan])
def test_the_proof_compares_what_is_outside_and_leaves_out_what_is_missing(tmp_path, outside, background):
    moving = prepare(Image(torch.from_numpy(air(background)), GRID), None, None, outside).image
    write_affine(tmp_path / "a.mat", SHIFT)
    chain = proof.read_chain([tmp_path / "a.mat"])
    moved = moving.warp(SHIFT, GRID)
    write_volume(tmp_path / "moved.nii.gz", moved)
    assert proof.voxel_error(chain, SHIFT, moving, moved, tmp_path / "moved.nii.gz") < 1e-5
    wrong = Image(moved.data + 10, GRID)
    write_volume(tmp_path / "wrong.nii.gz", wrong)
    assert proof.voxel_error(chain, SHIFT, moving, wrong, tmp_path / "wrong.nii.gz") > 1e-3
    one = moved.data.clone()
    one[8, 12, 12] += 10  # of a hundred and more that are resampled
    wrong = Image(one, GRID)
    write_volume(tmp_path / "wrong.nii.gz", wrong, overwrite=True)
    assert proof.voxel_error(chain, SHIFT, moving, wrong, tmp_path / "wrong.nii.gz") > 1e-3


@pytest.mark.parametrize(
    ("value", "said"), [(-1000.0, "-t a.mat --default-value -1000"), (0.0, "-t a.mat"), (np.nan, "-t a.mat")]
)
def test_the_record_and_the_line_for_ants_say_it(value, said):
    subject = prepare(Image(torch.from_numpy(air(value)), GRID), None, None)
    record = {"inputs": described_inputs(subject, subject)}
    said_of_cubic = ants_options(record | {"settings": {"interpolation": "cubic"}}, ["a.mat"])
    assert said_of_cubic == said.replace("a.mat", "a.mat -n BSpline")
    assert record["inputs"]["moving"]["outside"] == ("nan" if np.isnan(value) else value)
    assert ants_options(record, ["a.mat"]) == said


@pytest.mark.parametrize(
    ("lowest", "outside", "said"), [(-1024, None, True), (-1024, -1024.0, False), (-50, None, False)]
)
def test_water_around_a_cropped_ct_is_remarked(lowest, outside, said):
    values = torch.cat([torch.full((64,), float(lowest)), torch.linspace(lowest, 1500, 448)]).reshape(8, 8, 8)
    moving = prepare(Image(values, Grid.isotropic((8, 8, 8))), None, TrustRules(), outside)
    remarks = outside_remarks(moving)
    assert bool(remarks) == said
    assert all(f"--outside {lowest}" in remark for remark in remarks)


def test_noise_around_a_magnetic_resonance_image_is_no_air_of_a_ct():
    noise = 600 * torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    noise[4:12, 4:12, 4:12] += 2000
    assert noise.min() < -1024
    assert not outside_remarks(prepare(Image(noise, Grid.isotropic(noise.shape)), None, TrustRules(), None))


def test_a_volume_of_the_images_shape_in_another_place_is_noted():
    here = Grid.isotropic((4, 5, 6))
    there = Grid(here.shape, here.affine + np.array([[0, 0, 0, 30.0], *[[0] * 4] * 3]))
    elsewhere = apply_module._elsewhere(LabelMap(torch.zeros(4, 5, 6, dtype=torch.uint8), there), here)
    assert "30 mm away" in elsewhere[0]
    assert apply_module._elsewhere(LabelMap(torch.zeros(4, 5, 6, dtype=torch.uint8), here), here) == ()
