"""What a user holds in hand, registered and carried along; and what a registration shows of itself."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

import stepwarp
from stepwarp.errors import InputError
from stepwarp.files import Landmarks, as_image, as_labels, write_volume
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Image, LabelMap
from stepwarp.workflow.register import register
from stepwarp.workflow.registration import Registration

FIXED = Grid(
    (13, 12, 14), nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, -0.1) * (-6, 7, 5), (30, -35, -30))
)
MOVING = Grid((12, 14, 13), nib.affines.from_matvec(np.diag([-7.0, -6, 6]), (38, 40, -33)))
FLIPPED = Grid(FIXED.shape, FIXED.affine @ nib.affines.from_matvec(np.diag([-1.0, 1, 1]), (FIXED.shape[0] - 1, 0, 0)))
#: A second contrast of the moving image, on another grid than its first.
SECOND = Grid((11, 12, 10), nib.affines.from_matvec(np.diag([7.0, 7, 8]), (-36, -38, -36)))
LPS = np.array([-1, -1, 1])
EXAMPLE = re.search(r"```python\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.DOTALL)[1]


def blob(grid, shift=0.0):
    """A lopsided ellipsoid in the world, 0 to 100."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    x = index @ grid.linear.T + grid.affine[:3, 3] - shift
    value = np.exp(-((x / (18, 24, 16)) ** 2).sum(-1)) + np.exp(-(((x - (14, 6, 2)) / 7) ** 2).sum(-1))
    return (100 * value / value.max()).astype(np.float32)


def in_itk(values, grid):
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection((LPS[:, None] * grid.linear / grid.spacing).ravel().tolist())
    image.SetOrigin((LPS * grid.affine[:3, 3]).tolist())
    return image


def in_torchio(values, grid):
    tio = pytest.importorskip("torchio")
    kind = tio.LabelMap if values.dtype.kind in "iu" else tio.ScalarImage
    return kind(tensor=torch.from_numpy(values)[None], affine=grid.affine)


HELD = {
    "nibabel": lambda v, g: nib.Nifti1Image(v, g.affine),
    "numpy": lambda v, g: (v, g.affine),
    "torch": lambda v, g: (torch.from_numpy(v), torch.tensor(g.affine)),
    "MONAI": lambda v, g: MetaTensor(torch.from_numpy(v)[None], affine=torch.tensor(g.affine)),
    "SimpleITK": in_itk,
    "TorchIO": in_torchio,
    "own": lambda v, g: (LabelMap if v.dtype.kind in "iu" else Image)(torch.from_numpy(v), g),
}


@pytest.fixture(scope="module")
def found():
    """As if it had been found: an affine after a smooth field."""
    field = torch.zeros(1, 3, *FIXED.shape)
    field[0, 0] = 0.6 * torch.sin(torch.linspace(0, 3, FIXED.shape[1]))[None, :, None]
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(0.05, -0.1, 0.1)
    affine[:3, 3] = (3, -4, 2)
    warp = DisplacementField(field, FIXED)
    images = (Image(torch.from_numpy(blob(g)), g, n) for g, n in ((FIXED, "<fixed>"), (MOVING, "moving")))
    record = {
        "verdict": {"status": "pass"},
        "measures": {
            "similarity_affine": {"lncc": 0.5},
            "similarity": {"lncc": 0.7},
            "regularity": {"corner_folds": {"count": 3}},
        },
    }
    return Registration(*images, Affine(affine), warp, warp.inverse(), record)


# --- registering


@pytest.mark.parametrize("held", [*HELD, "path"])
def test_the_example_of_the_front_page(held, tmp_path, monkeypatch, recipe):
    """As it stands, with a recipe that takes no time."""
    monkeypatch.setattr(stepwarp.options, "preset", lambda name, changes: recipe)
    monkeypatch.setattr(stepwarp.workflow.register, "use_threads", lambda number: 1)

    def make(values, grid, name):
        if held != "path":
            return HELD[held](values, grid)
        write_volume(tmp_path / name, HELD["own"](values, grid))
        return str(tmp_path / name)

    values = blob(MOVING, 4.0)
    given = {
        "fixed": make(blob(FIXED), FIXED, "fixed.nii.gz"),
        "moving": make(values, MOVING, "moving.nii.gz"),
        "labels": make((values > 40).astype(np.uint8), MOVING, "labels.nii.gz"),
        "points": np.zeros((2, 3)),
    }
    exec(EXAMPLE, given)
    result, labels = given["result"], given["labels_on_fixed"]
    assert type(labels) is (LabelMap if held == "path" else type(given["labels"]))
    found = as_labels(labels)
    assert found.grid == FIXED
    assert set(found.data.unique().tolist()) == {0, 1}
    np.testing.assert_allclose(given["points_on_fixed"], result.inverse(np.zeros((2, 3))))
    inside = 10 * np.vstack([np.zeros(3), np.eye(3), -np.eye(3)])
    assert np.linalg.norm(result.transform(inside) - (inside + 4), axis=1).mean() < 2


def test_masks_come_through_the_same_door_and_images_without_a_name_have_a_role(recipe):
    fixed, moving = blob(FIXED), blob(MOVING, 4.0)
    mask = np.ones(FIXED.shape, bool)
    mask[:5] = False
    by_kind = [
        register(
            (fixed, FIXED.affine), (moving, MOVING.affine), fixed_mask=given, preset=recipe, affine_only=True, threads=1
        ).affine.matrix
        for given in ((mask, FIXED.affine), in_itk(mask.astype(np.uint8), FIXED), LabelMap(torch.tensor(mask), FIXED))
    ]
    for matrix in by_kind:
        np.testing.assert_allclose(matrix[:3, 3], by_kind[0][:3, 3], atol=1)
    with pytest.raises(InputError, match=r"^the fixed mask: the mask is empty"):
        register((fixed, FIXED.affine), (moving, MOVING.affine), fixed_mask=(0 * mask, FIXED.affine))
    with pytest.raises(InputError, match=r"^the moving image: is 0 everywhere"):
        register((fixed, FIXED.affine), (0 * moving, MOVING.affine))


def test_the_former_names_are_understood_and_said(recipe):
    pair = (blob(FIXED), FIXED.affine), (blob(MOVING), MOVING.affine)
    former = pytest.warns(DeprecationWarning, match="network is now called weights")
    with former as caught, pytest.raises(InputError, match="no-such-weights"):
        register(*pair, preset=recipe, network="no-such-weights")
    assert caught[0].filename == __file__
    for both in ({"network": "a", "weights": "b"}, {"network_steps": 2, "steps": 3}):
        with pytest.raises(InputError, match=r"is the former name of \w+; give one of them"):
            register(*pair, preset=recipe, **both)


# --- applying


@pytest.mark.parametrize("held", HELD)
def test_a_second_contrast_on_another_grid_comes_out_as_what_it_was(found, held):
    image = Image(torch.from_numpy(blob(SECOND)), SECOND)
    given = HELD[held](blob(SECOND), SECOND)
    back = found.apply(given)
    assert type(back) is type(given)
    assert as_image(back).grid == FIXED
    np.testing.assert_allclose(as_image(back).data, image.warp(found.transform, FIXED).data, atol=1e-3)


def test_there_and_back_and_onto_another_grid(found):
    given = HELD["own"](blob(FIXED), FIXED)
    there = found.apply(given, source="fixed")
    assert there.grid == MOVING
    np.testing.assert_allclose(there.data, given.warp(found.inverse, MOVING).data, atol=1e-4)
    onto = found.apply(found.moving, reference=HELD["SimpleITK"](blob(SECOND), SECOND))
    assert onto.grid == SECOND


@pytest.mark.parametrize("grid", [SECOND, MOVING, FLIPPED])
def test_simpleitk_resamples_to_the_same_with_the_saved_files(found, tmp_path, grid):
    from stepwarp.files import write_affine, write_displacement

    write_affine(tmp_path / "a.mat", found.affine)
    write_displacement(tmp_path / "w.nii.gz", found.warp)
    warp = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "w.nii.gz"), sitk.sitkVectorFloat64))
    chain = sitk.CompositeTransform([sitk.ReadTransform(str(tmp_path / "a.mat")), warp])
    given = in_itk(blob(grid), grid)
    ours = found.apply(given, source="moving", outside=0)
    theirs = sitk.Resample(given, in_itk(blob(FIXED), FIXED), chain, sitk.sitkLinear, 0.0)
    assert ours.GetSize() == theirs.GetSize()
    for place in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(ours, place)(), getattr(theirs, place)(), atol=1e-5)
    a, b = sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs)
    both = (a > 0) & (b > 0)
    assert both.mean() > 0.5
    np.testing.assert_allclose(a[both], b[both], atol=0.01)


def test_points_of_every_kind_go_from_moving_to_fixed_unless_said_otherwise(found, tmp_path):
    points = np.array([[1.0, 2, 3], [-10, 5, 0]])
    expected = found.inverse(points)
    np.testing.assert_array_equal(found.apply(points), expected)
    tensor = found.apply(torch.from_numpy(points))
    np.testing.assert_array_equal(tensor, expected)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(found.apply(points, source="fixed"), found.transform(points))
    np.testing.assert_allclose(found.apply(points * LPS, space="lps"), expected * LPS)
    np.testing.assert_array_equal(found.apply(Landmarks(("a", "b"), points)).points, expected)
    (tmp_path / "p.csv").write_text("name,x_ras,y_ras,z_ras\na,1,2,3\nb,-10,5,0\n")
    np.testing.assert_array_equal(found.apply(tmp_path / "p.csv").points, expected)


@pytest.mark.parametrize(
    ("what", "options", "words"),
    [
        (np.zeros((4, 4, 4)), {}, r"ndarray: does not say where its voxels lie. Give \(array, affine\)"),
        (np.zeros((4, 2)), {}, r"give \(N, 3\)"),
        (np.full((4, 3), np.nan), {}, r"give \(N, 3\) finite"),
        (np.zeros((4, 3)), {"reference": "a.nii"}, "need no grid"),
        (HELD["own"](blob(FIXED), FIXED), {}, "lies on the grid of the fixed image"),
        (HELD["own"](blob(SECOND), SECOND), {"source": "Fixed"}, "there are fixed, moving"),
        (HELD["own"](blob(SECOND), SECOND), {"source": "fixed", "target": "fixed"}, "nothing to do"),
        (HELD["own"](blob(SECOND), SECOND), {"labels": True, "interpolation": "linear"}, "no values in between"),
    ],
)
def test_what_cannot_be_applied_is_refused(found, what, options, words):
    with pytest.raises(InputError, match=words):
        found.apply(what, **options)


def test_a_volume_from_far_away_is_refused(found):
    away = SECOND.affine.copy()
    away[:3, 3] += 900
    with pytest.raises(InputError, match="nothing of it falls on the new grid"):
        found.apply((blob(SECOND), away))


# --- showing


def test_everything_says_in_one_line_what_it_is(found):
    labels = LabelMap(torch.arange(24).reshape(2, 3, 4), Grid.isotropic((2, 3, 4), 2.0), "seg")
    composed = Composition.of(found.affine, found.warp)
    for thing in (found, found.moving, labels, FIXED, found.affine, found.warp, composed):
        assert "\n" not in repr(thing)
    assert repr(labels) == "LabelMap(seg: 2 x 3 x 4 voxels of 2 x 2 x 2 mm, RAS, labels 0 to 23)"
    size = "13 x 12 x 14 voxels of 6 x 7 x 5 mm, LAS"
    assert repr(found) == f"Registration(moving -> <fixed>: pass, local correlation 0.70, 3 corner folds; onto {size})"


def test_a_notebook_shows_pictures_that_need_nothing_from_anywhere(found):
    shown = found._repr_html_()
    assert shown.count('src="data:image/') == shown.count("src=") == 9
    assert "&lt;fixed&gt;" in shown
    assert "<fixed>" not in shown
    HTMLParser().feed(shown)
    assert len(shown) < 100_000


def test_an_image_shows_its_middle_slices_upright():
    from io import BytesIO

    from PIL import Image as Picture

    values = torch.zeros(20, 20, 20)
    values[12:, 14:, :] = 1  # right and front
    pictures = []
    for affine in (np.eye(4), np.diag([-1.0, 1, 1, 1])):
        data = values if affine[0, 0] > 0 else values.flip(0)
        picture = np.asarray(Picture.open(BytesIO(LabelMap(data, Grid(data.shape, affine))._repr_png_())))
        pictures.append(picture[:, : picture.shape[0]])
    for axial in pictures:
        assert axial[10, 10] == 255  # right and front: upper left corner
        assert axial[-10, 10] == axial[10, -10] == 0


def test_the_moved_image_in_nibabel_lies_on_the_fixed_grid(found):
    moved = found.to_nibabel()
    np.testing.assert_array_equal(moved.affine, FIXED.affine)
    np.testing.assert_array_equal(moved.get_fdata(dtype=np.float32), found.moved.data)


@pytest.mark.parametrize("outside", [-7.0, "nan", None])
def test_what_the_registration_was_given_is_outside_of_the_moving_image(found, outside):
    given = replace(found, record=found.record | {"settings": {"outside": outside}})
    far = Image(torch.zeros(4, 4, 4), Grid.isotropic((4, 4, 4), 30.0))

    def corner(what, **options):
        image = given.apply(what, reference=far, **options).to_nibabel()
        return float(image.dataobj[3, 3, 3])

    expected = 0.0 if outside is None else float(outside)
    np.testing.assert_equal(corner(found.moving), expected)
    assert corner(found.moving, outside=2.0) == 2
    other = Image(found.moving.data + 1, MOVING)
    np.testing.assert_equal(corner(other), 0.0 if outside != "nan" else np.nan)
