"""A user's start: what is made of it, that the files hold all of it, and which are refused."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stepwarp.config import AffineSettings, DeformableSettings, Level, Preset
from stepwarp.errors import InputError
from stepwarp.files import proof, read_transform, write_affine, write_composite, write_displacement, write_volume
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Image
from stepwarp.workflow.register import register

#: Where the linear part of the true map goes is close to this one: a user who turned the head by hand.
TURNED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.05, -0.04, 0.06), (4.0, -3.0, 5.0))
STRETCHED = nib.affines.from_matvec(np.diag([1.1, 0.95, 1.0]), (0.0, 2.0, 0.0))
#: Hardly anything happens after the start.
STILL = Preset(
    affine=AffineSettings(across=10, refine_across=(), candidates=1),
    deformable=DeformableSettings(
        levels=tuple(Level(across=across, iterations=1, step=1e-3, smooth_field=0) for across in (10, 40))
    ),
)


@pytest.fixture
def run(brains, recipe):
    def make(fixed=None, moving=None, **options):
        options = {"preset": recipe, "threads": 1, "escalate": False} | options
        return register(fixed or brains.fixed, moving or brains.moving, **options)

    return make


@pytest.fixture(scope="module")
def folder(brains, recipe, tmp_path_factory):
    """The pair as files, registered and saved: (fixed, moving, result)."""
    place = tmp_path_factory.mktemp("pair")
    for name, image in (("fixed", brains.fixed), ("moving", brains.moving)):
        write_volume(place / f"{name}.nii.gz", image)
    found = register(place / "fixed.nii.gz", place / "moving.nii.gz", preset=recipe, threads=1)
    found.save(place / "result")
    return place


def shifted(image, mm):
    """The same voxels, said to lie elsewhere."""
    affine = image.grid.affine.copy()
    affine[0, 3] += mm
    return Image(image.data, Grid(image.grid.shape, affine), image.name)


def affine_by_itk(path, matrix):
    """RAS -> LPS, as ITK holds it, in whatever file."""
    flip = np.diag([-1.0, -1.0, 1.0])
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((flip @ matrix[:3, :3] @ flip).ravel().tolist())
    transform.SetTranslation((flip @ matrix[:3, 3]).tolist())
    sitk.WriteTransform(transform, str(path))


@pytest.mark.parametrize("name", ["a.mat", "a.tfm", "a.txt"])
def test_a_linear_start_of_itk_is_the_linear_part_as_it_is(name, brains, run, tmp_path):
    affine_by_itk(tmp_path / name, TURNED)
    found = run(initial=tmp_path / name, transform="none", preset=STILL)
    np.testing.assert_allclose(found.affine.matrix, TURNED, atol=1e-9)
    record = found.record["initial"]
    assert (record["kind"], record["refined"]) == ("linear", False)
    assert record["files"][0]["path"] == str(tmp_path / name)
    assert found.record["settings"]["initial"] == [str(tmp_path / name)]
    assert (found.record["affine"]["starts"], found.record["affine"]["loss"]) == ([], None)
    np.testing.assert_allclose(run(initial=Affine(TURNED), transform="none", preset=STILL).affine.matrix, TURNED)


def test_a_linear_start_is_the_only_one_and_is_refined(brains, run):
    found = run(initial=Affine(TURNED), affine_only=True)
    assert [start["name"] for start in found.record["affine"]["starts"]] == ["initial"]
    assert brains.error(found.affine) < 0.7 * brains.error(Affine(TURNED))
    assert brains.error(found.affine) < 1.1 * brains.error(run(affine_only=True).affine)
    assert "refined (affine)" in " ".join(found.record["verdict"]["reasons"])


def test_what_the_linear_stage_may_not_change_stays(run):
    found = run(initial=Affine(STRETCHED), transform="rigid", affine_only=True)
    stretches = np.linalg.svd(found.affine.matrix[:3, :3], compute_uv=False)
    np.testing.assert_allclose(stretches, [1.1, 1.0, 0.95], atol=1e-6)


def test_the_files_hold_the_whole_of_a_start_with_a_field(brains, run, folder, tmp_path):
    """As SimpleITK reads them. The start is one field that holds the affine as well."""
    parts = [read_transform(folder / "result" / name) for name in ("0GenericAffine.mat", "1Warp.nii.gz")]
    whole = Composition.of(*parts).on(brains.fixed.grid)
    write_displacement(tmp_path / "start.nii.gz", whole)
    found = run(initial=tmp_path / "start.nii.gz", preset=STILL)
    found.save(tmp_path / "out")
    files = [tmp_path / "out" / name for name in ("0GenericAffine.mat", "1Warp.nii.gz")]
    assert proof.point_error(proof.read_chain(files), whole, brains.points) < 0.5
    # The affine is the nearest one to the whole in the brain, and is not moved.
    np.testing.assert_allclose(found.affine.matrix, found.record["initial"]["affine"])
    errors = [np.square(whole(brains.points) - each(brains.points)).sum() for each in (found.affine, parts[0])]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("form", ["folder", "chain", "composite", "in hand"])
def test_a_result_is_gone_on_from_in_every_form(form, brains, run, folder, recipe, tmp_path):
    result = folder / "result"
    parts = [read_transform(result / name) for name in ("0GenericAffine.mat", "1Warp.nii.gz")]
    write_composite(tmp_path / "whole.h5", Composition.of(*parts))
    initial = {
        "folder": result,
        "chain": [result / "1Warp.nii.gz", result / "0GenericAffine.mat"],
        "composite": tmp_path / "whole.h5",
        "in hand": Composition.of(*parts),
    }[form]
    before = Composition.of(*parts)
    found = run(folder / "fixed.nii.gz", folder / "moving.nii.gz", initial=initial, transform="none")
    record = found.record["initial"]
    assert record["kind"] == "deformable"
    assert record["information"] > record["information_affine"]
    # The recipe has levels of 16 and 8 mm, the field one of 4: only the finest runs.
    assert {row["level_mm"] for row in found.record["loss"]} == {8.0}
    assert brains.error(found.transform) < 1.05 * brains.error(before)


def test_levels_as_fine_as_the_field_run(run, brains, folder, tmp_path):
    coarse = read_transform(folder / "result" / "1Warp.nii.gz").on(brains.fixed.grid.coarser(4))
    write_displacement(tmp_path / "coarse.nii.gz", coarse)
    found = run(initial=[tmp_path / "coarse.nii.gz", folder / "result" / "0GenericAffine.mat"])
    assert {row["level_mm"] for row in found.record["loss"]} == {16.0, 8.0}


def test_the_inverse_of_a_result_the_other_way_round_is_one_of_this_way(brains, run, folder):
    there = run(folder / "moving.nii.gz", folder / "fixed.nii.gz", initial=f"[{folder / 'result'},1]")
    assert there.record["initial"]["kind"] == "deformable"
    back = there.transform(brains.truth(brains.points))
    assert np.linalg.norm(back - brains.points, axis=1).mean() < 4


def test_header_and_identity_are_one_and_what_none_means(brains, run):
    found = [run(transform="none", initial=word, preset=STILL) for word in ("header", "identity", ())]
    for each in found:
        assert (each.affine.matrix == np.eye(4)).all()
        assert torch.equal(each.warp.displacement, found[0].warp.displacement)


def test_centres_are_put_on_each_other_wherever_the_headers_put_them(brains, run):
    near, far = (
        run(moving=shifted(brains.moving, mm), initial="centres", transform="none", preset=STILL).affine.matrix
        for mm in (0, 300)
    )
    np.testing.assert_allclose(far[:3, 3] - near[:3, 3], [300, 0, 0], atol=1e-6)
    assert (far[:3, :3] == np.eye(3)).all()


def folding(grid):
    ramp = np.zeros((*grid.shape, 3))
    ramp[..., 0] = 12 * np.sin(np.arange(grid.shape[0]) / 1.5)[:, None, None]
    return DisplacementField.from_millimetres(ramp, grid)


def test_starts_that_cannot_be_are_refused_with_their_numbers(brains, run, folder, tmp_path):
    def refused(says, moving=None, **options):
        with pytest.raises(InputError, match=says):
            run(moving=moving, **options)

    far = shifted(brains.moving, 300)
    refused(r"sends 0% of the fixed subject .* 3\d\d mm apart\. Give --initial centres", far, transform="none")
    refused(r"header: sends 0%", far, initial="header")
    write_affine(tmp_path / "back.mat", Affine(nib.affines.from_matvec(np.eye(3), (-300, 0, 0))))
    refused(
        rf"sends 0% .* its inverse sends \d+%. Give that: --initial '\[{tmp_path}/back.mat,1\]'",
        far,
        initial=tmp_path / "back.mat",
    )
    refused(r"mirrors the subject \(determinant -1\)", initial=Affine(np.diag([-1.0, 1, 1, 1])))
    refused(r"folds in \d+\.\d\d% of the fixed subject \(\d+ voxels\)", initial=folding(brains.fixed.grid))
    foreign = Composition.of(Affine(TURNED), read_transform(folder / "result" / "1InverseWarp.nii.gz"))
    refused(r"share 0\.\d+ of their information under it, 0\.\d+ under its affine", initial=foreign)
    point = DisplacementField.from_millimetres(
        -brains.fixed.grid.world(np.stack(np.indices(brains.fixed.grid.shape), -1)), brains.fixed.grid
    )
    refused("into a plane, a line or a point", initial=point)
    refused("no single transform of 3D", initial=Affine(np.eye(3)))
    refused("ndarray is no start", initial=[np.eye(4)])
    refused("does not exist", initial=tmp_path / "none.mat")


def test_a_start_the_other_way_round_is_known_by_the_images(folder, run):
    with pytest.raises(InputError, match=r"goes from the moving image to the fixed one\. Give its inverse"):
        run(folder / "moving.nii.gz", folder / "fixed.nii.gz", initial=folder / "result")


def test_a_start_of_other_files_is_said_to_be_one(folder, brains, run, tmp_path):
    write_volume(tmp_path / "other.nii.gz", Image(brains.moving.data * 2, brains.moving.grid))
    found = run(folder / "fixed.nii.gz", tmp_path / "other.nii.gz", initial=folder / "result")
    assert any("is the result of other files" in reason for reason in found.record["verdict"]["reasons"])


def test_options_that_leave_nothing_of_a_start_are_refused(folder, run):
    for options, says in (
        ({"transform": "none", "affine_only": True}, "nothing is left to do"),
        ({"initial": ["header", "x.mat"]}, "stands alone"),
        ({"initial": folder / "result", "affine_only": True}, "--affine-only ends before that"),
        ({"initial": folder / "result", "weights": "brain-t1"}, "so does the network"),
    ):
        with pytest.raises(InputError, match=says):
            run(folder / "fixed.nii.gz", folder / "moving.nii.gz", **options)


def test_a_kept_start_that_something_simpler_beats_is_to_be_checked(brains, run, registration):
    found = run(initial=registration.affine.inverse(), transform="none", preset=STILL)
    assert any("would make the images more alike" in reason for reason in found.record["verdict"]["reasons"])
    assert found.record["verdict"]["status"] != "pass"
    good = run(initial=registration.affine, transform="none")
    assert not any("more alike" in reason for reason in good.record["verdict"]["reasons"])


def test_the_second_try_keeps_the_start(run):
    wrong = Affine(nib.affines.from_matvec(nib.eulerangles.euler2mat(1.5, 0, 0), (0, 0, 0)))
    found = run(initial=wrong, transform="none", preset=STILL, escalate=True)
    escalation = found.record["escalation"]
    assert escalation["tried"] == {"iterations": "2 times as many"}
    assert "from the same start" in found.record["verdict"]["reasons"][-1]
    assert (found.affine.matrix == wrong.matrix).all()


def test_trust_holds_for_a_start_as_for_other_files(brains, run, tmp_path):
    write_displacement(tmp_path / "warp.nii.gz", DisplacementField.identity(brains.fixed.grid))
    image = nib.load(tmp_path / "warp.nii.gz")
    wrong = image.affine.copy()
    wrong[:3, 3] += 30
    image.header.set_qform(wrong, 1)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header), tmp_path / "odd.nii.gz")
    with pytest.raises(InputError, match=r"odd\.nii\.gz"):
        run(initial=tmp_path / "odd.nii.gz", preset=STILL)
    found = run(initial=tmp_path / "odd.nii.gz", trust="odd.nii.gz=sform", preset=STILL)
    assert [each["statement"] for each in found.record["trusted"]] == ["sform"]
