"""Several contrasts of one subject: what is made of them, what is said of them, and what is refused."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from stepwarp.errors import InputError
from stepwarp.files import each_of, read_image
from stepwarp.geometry import Affine, Grid, Image, LabelMap
from stepwarp.workflow import outputs
from stepwarp.workflow.apply import apply
from stepwarp.workflow.register import register


def folded(image, factor=1.0):
    """Another contrast of a brain, in other units."""
    data = image.data.float() / image.data.max()
    return Image(torch.where(data > 0.05, (data - 0.6).abs() * factor, 0), image.grid, "folded")


def coarser(image):
    """The same on a grid of other voxels, which reaches beyond."""
    shape = tuple(round(n * 0.8) + 4 for n in image.grid.shape)
    linear = image.grid.linear * (4.5 / 4, 5.5 / 4, 5 / 4)
    offset = image.grid.centre - linear @ ((np.array(shape) - 1) / 2)
    return image.warp(Affine.identity(3), Grid(shape, nib.affines.from_matvec(linear, offset)))


def moved_by(image, shift):
    return Image(image.data, Grid(image.grid.shape, nib.affines.from_matvec(np.eye(3), shift) @ image.grid.affine))


@pytest.fixture(scope="module")
def both(brains):
    """The brains in two contrasts: fixed and moving ones."""
    return [brains.fixed, coarser(folded(brains.fixed))], [brains.moving, coarser(folded(brains.moving, 300))]


@pytest.fixture(scope="module")
def found(both, recipe):
    with pytest.MonkeyPatch.context() as patch:  # which greys alone would have it look for structures
        patch.setattr("stepwarp.workflow.search.with_doubted_anatomy", lambda fixed, moving, *_: (fixed, moving))
        return register(*both, preset=recipe, threads=1, pair_weight=[1, 0.5], escalate=False)


def test_two_contrasts_bring_the_brains_together_and_the_record_says_both(brains, found):
    assert brains.error(found.transform) < 0.36 * brains.error(Affine.identity(3))
    assert found.fixed.grid == found.moved.grid == brains.fixed.grid
    record = found.record
    assert list(record["inputs"]) == ["fixed", "moving", "fixed_2", "moving_2"]
    assert record["settings"]["pair_weight"] == (1.0, 0.5)
    assert record["further"]["pair 2"]["weight"] == 0.5
    assert record["further"]["pair 2"]["contrast"]["alike"]
    measures = record["measures"]["further"]["pair 2"]
    assert measures["similarity"]["lncc"] > measures["similarity_affine"]["lncc"]
    assert any(reason.startswith("pair 2: the deformation raised") for reason in record["verdict"]["reasons"])
    json.dumps(record, allow_nan=False)


def test_all_moving_images_are_written_on_the_first_fixed_grid_and_the_page_names_them(tmp_path, found, both):
    out = found.save(tmp_path / "out")
    moved = read_image(out / "Warped2.nii.gz")
    assert moved.grid == both[0][0].grid
    nib.save(both[1][1].to_nibabel(), tmp_path / "second.nii.gz")
    apply([out], [tmp_path / "second.nii.gz"], [tmp_path / "moved.nii.gz"])
    torch.testing.assert_close(read_image(tmp_path / "moved.nii.gz").data, moved.data, atol=0.01, rtol=0)
    assert "Warped2.nii.gz" in json.loads((out / "registration.json").read_text())["outputs"]
    assert not (out / "Warped3.nii.gz").exists()
    page = (out / "report.html").read_text()
    assert "moving 2" in page
    assert "1 more pair of images of the same subjects drove it as well" in page
    outputs.check_target(out, overwrite=True)


def test_a_mask_holds_for_every_image_of_its_subject(both, recipe, found):
    """Nothing that any of them shows beyond it has an influence."""
    (first, second), moving = both
    trusted = torch.zeros(first.grid.shape, dtype=torch.uint8)
    trusted[18:] = 1
    mask = LabelMap(trusted, first.grid)
    world = second.grid.world(np.moveaxis(second.grid.indices()[0].numpy(), 0, -1))
    beyond = torch.from_numpy(first.grid.index(world)[..., 0] < 17.4)
    spoilt = Image(torch.where(beyond, 7.0, second.data), second.grid)
    options = {"fixed_mask": mask, "initial": found.affine, "transform": "none", "similarity": "lncc"}
    one, other = (
        register([first, each], moving, **options, preset=recipe, threads=1, escalate=False)
        for each in (second, spoilt)
    )
    assert torch.equal(one.warp.displacement, other.warp.displacement)


def test_a_wrong_pair_that_led_the_first_one_astray_is_named(brains, recipe, monkeypatch):
    monkeypatch.setattr("stepwarp.workflow.search.with_doubted_anatomy", lambda fixed, moving, *_: (fixed, moving))
    wrong = Image(brains.moving.data.flip(1, 2).contiguous(), brains.moving.grid, "wrong")
    images, weights = ([brains.fixed] * 2, [brains.moving, wrong]), [1, 30]
    found = register(*images, preset=recipe, similarity="lncc", pair_weight=weights, threads=1, escalate=False)
    verdict = found.record["verdict"]
    assert verdict["status"] == "fail"
    assert "pair 2 had a say in this, and may be of other subjects: try without" in verdict["reasons"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f, m: (f, m[:1]), "2 fixed images and 1 moving image do not pair up"),
        (lambda f, m: (f, m[0]), "2 fixed images and 1 moving image do not pair up"),
        (lambda f, m: ([], []), "0 fixed images"),
        (lambda f, m: (5 * f, 5 * m), "10 pairs of images are more than .* Give 9 at most"),
        (lambda f, m: (f, [m[0], f[1]]), "is the fixed and the moving image of one pair"),
        (lambda f, m: ([f[0], moved_by(f[1], (150, 0, 0))], m), "does not lie on .* their middles 1[45]. mm apart"),
        (lambda f, m: (f, [m[0], moved_by(m[1], (0, 0, 1000))]), " 0% of what one shows .*register --transform rigid"),
        (lambda f, m: ([f[0], Image(torch.zeros_like(f[1].data), f[1].grid, "flat")], m), "flat: is 0 everywhere"),
        (
            lambda f, m: ([f[0], nib.Nifti1Image(np.zeros((5, 5, 5, 3)), np.eye(4))], m),
            "fixed 2 image: holds 3 volumes",
        ),
    ],
)
def test_pairs_that_cannot_be_are_refused_before_the_search(both, recipe, monkeypatch, change, said):
    monkeypatch.setattr("stepwarp.workflow.search.register_linear", lambda *_, **__: pytest.fail("it searched"))
    with pytest.raises(InputError, match=said):
        register(*change(*both), preset=recipe, threads=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"similarity": ["lncc"] * 3}, "--similarity is given 3 times for 2 pairs of images"),
        ({"similarity": ["lncc", "lnc"]}, "similarity 'lnc' does not exist; did you mean 'lncc'"),
        ({"pair_weight": (1, 2, 3)}, "--pair-weight is given 3 times for 2 pairs"),
        ({"pair_weight": (3,)}, "--pair-weight is given 1 time for 2 pairs of images; give it once for each"),
        ({"pair_weight": (1, 0)}, "pair_weight.1: Input should be greater than 0"),
    ],
)
def test_what_is_said_of_more_or_other_pairs_is_refused(both, options, said):
    with pytest.raises(InputError, match=said):
        register(*both, threads=1, **options)


def test_one_image_is_told_from_several():
    array, affine, meta = np.zeros((3, 3, 3)), np.eye(4), MetaTensor(torch.zeros(1, 3, 3, 3))
    for one in ("a.nii", (array, affine), [torch.zeros(3, 3, 3), affine], meta):
        assert each_of(one) == (one,)
    for several in (["a.nii", "b.nii"], [(array, affine)], ((array, affine), "b.nii"), [meta, meta]):
        assert each_of(several) == tuple(several)
