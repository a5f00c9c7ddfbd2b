"""What users of other libraries hold in hand goes in, lies where their library says, and comes out as what it was."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, SaveImage

from stepwarp.errors import InputError
from stepwarp.files import as_image, as_labels, as_mask, given_back, write_volume
from stepwarp.geometry import Grid, Image, LabelMap

SHAPE = (8, 9, 10)
#: Oblique and anisotropic; stored as LAS and as LPS, left-handed and right-handed.
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.5) * (1.5, 0.9, 2.1), (10, -20, 30))
AFFINES = {"RAS": np.diag([2.0, 2, 2, 1]), "oblique": OBLIQUE}
AFFINES |= {"LAS": OBLIQUE @ np.diag([-1.0, 1, 1, 1]), "LPS": OBLIQUE @ np.diag([-1.0, -1, 1, 1])}
LPS = np.diag([-1.0, -1, 1, 1])


def in_itk(values, affine):
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def in_torchio(values, affine, kind="ScalarImage"):
    tio = pytest.importorskip("torchio")
    return getattr(tio, kind)(tensor=torch.from_numpy(values)[None], affine=affine)


HELD = {
    "nibabel": lambda v, a: nib.Nifti1Image(v, a, dtype=v.dtype),
    "arrays": lambda v, a: (v, a),
    "flipped array": lambda v, a: (v[::-1].copy()[::-1], a),
    "tensors": lambda v, a: (torch.from_numpy(v)[None], torch.from_numpy(a)),
    "MetaTensor": lambda v, a: MetaTensor(torch.from_numpy(v)[None], affine=torch.from_numpy(a)),
    "MetaTensor without channel": lambda v, a: MetaTensor(torch.from_numpy(v), affine=torch.from_numpy(a)),
    "MetaTensor in LPS": lambda v, a: MetaTensor(
        torch.from_numpy(v)[None], affine=torch.from_numpy(LPS @ a), meta={"space": "LPS"}
    ),
    "SimpleITK": in_itk,
    "TorchIO": in_torchio,
    "own": lambda v, a: Image(torch.from_numpy(v), Grid(v.shape, a)),
}


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.float32)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("held", HELD)
def test_it_goes_in_where_it_lies_and_comes_out_as_what_it_was(values, held, affine):
    source = HELD[held](values, affine)
    image = as_image(source)
    np.testing.assert_array_equal(image.data, values)
    np.testing.assert_allclose(image.grid.affine, affine, atol=1e-5)
    back = given_back(image, source)
    assert type(back) is type(source)
    again = as_image(back)
    np.testing.assert_array_equal(again.data, values)
    np.testing.assert_allclose(again.grid.affine, affine, atol=1e-5)
    if held in ("arrays", "tensors"):
        assert [type(part) for part in back] == [type(part) for part in source]
    shapes = [getattr(part, "shape", None) for part in (source, back)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_simpleitk_finds_each_voxel_where_it_was(values, affine):
    given = given_back(Image(torch.from_numpy(values), Grid(SHAPE, affine)), in_itk(values, np.eye(4)))
    index = (3, 7, 2)
    point = LPS[:3, :3] @ (affine @ [*index, 1])[:3]
    np.testing.assert_allclose(given.TransformIndexToPhysicalPoint(index), point, atol=1e-4)
    assert given[index] == values[index]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_monai_saves_and_loads_what_comes_out(values, affine, tmp_path):
    write_volume(tmp_path / "a.nii.gz", Image(torch.from_numpy(values), Grid(SHAPE, affine)))
    loaded = LoadImage(image_only=True, ensure_channel_first=True)(tmp_path / "a.nii.gz")
    other = Grid((5, 6, 7), OBLIQUE @ np.diag([1.5, -1, 1, 1]))
    back = given_back(Image(torch.rand(other.shape), other), loaded)
    SaveImage(output_dir=tmp_path, output_postfix="out", separate_folder=False, print_log=False)(back)
    stored = nib.load(tmp_path / "a_out.nii.gz")
    np.testing.assert_allclose(stored.affine, other.affine, atol=1e-4)
    np.testing.assert_allclose(stored.get_fdata(), back.numpy()[0], atol=1e-6)
    again = LoadImage(image_only=True, ensure_channel_first=True)(tmp_path / "a_out.nii.gz")
    np.testing.assert_allclose(as_image(again).data, as_image(back).data, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float64, bool])
@pytest.mark.parametrize("held", ["nibabel", "arrays", "tensors", "MetaTensor", "SimpleITK"])
def test_labels_and_masks_keep_their_type_of_number(held, dtype):
    values = np.zeros(SHAPE, dtype)
    values[2:5, 3:6, 4:7] = 1
    if dtype is bool and held in ("nibabel", "SimpleITK"):
        pytest.skip("they know no such numbers")
    source = HELD[held](values, OBLIQUE)
    labels = as_labels(source)
    np.testing.assert_array_equal(labels.data, values)
    np.testing.assert_array_equal(as_mask(source).data, values)
    back = given_back(labels, source)
    numbers = {
        "nibabel": lambda x: x.get_data_dtype(),
        "arrays": lambda x: x[0].dtype,
        "tensors": lambda x: x[0].dtype,
        "MetaTensor": lambda x: x.dtype,
        "SimpleITK": lambda x: x.GetPixelID(),
    }[held]
    assert numbers(back) == numbers(source) or dtype is bool


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16, torch.float64])
def test_tensors_of_any_type(dtype):
    values = torch.arange(720).reshape(SHAPE).remainder(100).to(dtype).requires_grad_(dtype.is_floating_point)
    np.testing.assert_array_equal(as_image((values, np.eye(4))).data, values.detach().float())


def test_what_is_missing_comes_back_as_nan(values):
    values[1:3] = np.nan
    for held in ("arrays", "nibabel", "SimpleITK"):
        source = HELD[held](values, OBLIQUE)
        again = as_image(given_back(as_image(source), source))
        assert torch.equal(again.missing, torch.from_numpy(np.isnan(values)))


def test_later_changes_of_an_array_do_not_reach_the_image(values):
    image = as_image((values, np.eye(4)))
    values[:] = 0
    assert image.data.any()


def vector(values):
    return sitk.GetImageFromArray(np.stack([values] * 3, -1), isVector=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda v: v, r"ndarray: does not say where its voxels lie\. Give \(array, affine\)"),
        (torch.from_numpy, r"Tensor: does not say where"),
        (lambda v: 3, "int: is no image"),
        (lambda v: ("a", "b"), "str: is no array"),
        (lambda v: (v, np.eye(3)), "affine is not 4 x 4"),
        (lambda v: (v, "somewhere"), "affine is no matrix"),
        (lambda v: (v, np.full((4, 4), np.nan)), "affine"),
        (lambda v: (v, np.diag([1.0, 1, 0, 1])), "affine is singular"),
        (lambda v: (v, np.eye(4) + np.eye(4)[::-1]), "last row"),
        (lambda v: (v, np.eye(4) + np.eye(4, k=1) * [0, 1, 0, 0]), "not perpendicular"),
        (lambda v: (v[0], np.eye(4)), "flat"),
        (lambda v: (np.stack([v, v]), np.eye(4)), r"Give one channel: \(i, j, k\) or \(1, i, j, k\)"),
        (lambda v: (v.astype(complex), np.eye(4)), "complex"),
        (lambda v: (v * np.inf, np.eye(4)), "infinite"),
        (lambda v: (v * 0, np.eye(4)), "everywhere"),
        (lambda v: (np.ma.masked_less(v, 100), np.eye(4)), "masked"),
        (lambda v: MetaTensor(torch.from_numpy(np.stack([v, v])), affine=torch.eye(4)), "Give one channel"),
        (lambda v: MetaTensor(torch.from_numpy(v)[None], meta={"space": "scanner"}), "space"),
        (vector, "vector of 32-bit float"),
        (lambda v: sitk.GetImageFromArray(v[0]), "has 2 axes"),
        (lambda v: sitk.JoinSeries([sitk.GetImageFromArray(v)] * 2), "has 4 axes"),
        (lambda v: Image(torch.from_numpy(v * np.nan), Grid.isotropic(SHAPE)), "NaN everywhere"),
        (lambda v: Image(torch.rand(4, 4), Grid.isotropic((4, 4))), "flat"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(values, make, words):
    with pytest.raises(InputError, match=words) as caught:
        as_image(make(values))
    assert "\n" not in str(caught.value)


def test_a_volume_to_nibabel_is_placed_by_both_statements_of_its_header(values):
    for volume in (
        Image(torch.from_numpy(values), Grid(SHAPE, OBLIQUE)),
        LabelMap(torch.ones(SHAPE).long(), Grid(SHAPE, OBLIQUE)),
    ):
        image = volume.to_nibabel()
        np.testing.assert_array_equal(image.affine, OBLIQUE)
        np.testing.assert_allclose(image.get_sform(), OBLIQUE, atol=1e-5)
        np.testing.assert_allclose(image.get_qform(), OBLIQUE, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(image.dataobj), volume.data)
        assert image.get_data_dtype() == volume.data.numpy().dtype
