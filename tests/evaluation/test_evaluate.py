import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter

from stepwarp.errors import InputError
from stepwarp.evaluation.evaluate import evaluate, measured_in
from stepwarp.evaluation.regularity import regularity
from stepwarp.files import Landmarks
from stepwarp.geometry import Affine, DisplacementField, Grid, Image, LabelMap

SHAPE = (24, 22, 20)
GRID = Grid(SHAPE, nib.affines.from_matvec(np.diag([-1.0, 2.0, 1.5]), (10, 20, -30)))


def smooth(seed, shape=SHAPE, sigma=2.0):
    values = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (values - values.min()) / (values.max() - values.min())


def brain(seed=0, grid=GRID):
    """An image with a background of 0 around a ball."""
    index = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in grid.shape], indexing="ij"))
    inside = (index**2).sum(0) < 0.8
    return Image(torch.from_numpy(np.where(inside, 50 + 100 * smooth(seed, grid.shape), 0)).float(), grid, "image")


def labels_of(values, grid=GRID, name="labels"):
    return LabelMap(torch.as_tensor(np.asarray(values, np.int16)), grid, name)


def patches(seed=0, count=5, grid=GRID):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(count, *grid.shape)), (0, 3, 3, 3))
    return labels_of(noise.argmax(0), grid)


def field(longest_mm=3.0, seed=3):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(*SHAPE, 3)), (3, 3, 3, 0))
    return DisplacementField.from_millimetres(noise * longest_mm / np.abs(noise).max(), GRID)


WARP = field()
SHIFT = Affine(nib.affines.from_matvec(np.eye(3), (2.0, -1.0, 1.5)))
MARKS = Landmarks(("AC", "PC", "tip"), nib.affines.apply_affine(GRID.affine, [[8, 9, 10], [12, 11, 9], [5, 6, 7]]))


def test_everything_that_is_measured_is_json_and_has_its_key():
    result = evaluate(
        brain(),
        brain(1),
        SHIFT @ WARP,
        inverse=WARP.inverse() @ SHIFT.inverse(),
        fixed_labels=patches(),
        moving_labels=patches(1),
        label_names={1: "one"},
        fixed_landmarks=MARKS,
        moving_landmarks=MARKS,
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert set(result) == {
        *("mask", "mean_dice", "mean_jaccard", "mean_hd95_mm", "mean_asd_mm", "labels_scored", "surfaces_scored"),
        *("surfaces_penalised", "surface_penalty_mm"),
        *("labels", "labels_lost", "labels_created", "labels_missing_in", "tre_mm", "folds", "corner_folds", "ndv"),
        *("std_log_jacobian", "jacobian", "displacement_mm", "inverse_mm", "similarity"),
    }
    assert result["labels"]["1"]["name"] == "one"
    assert "name" not in result["labels"]["2"]
    assert set(result["similarity"]["after"]) == {"ncc", "lncc", "mutual_information"}
    assert set(result["inverse_mm"]) == {"mean", "median", "p95", "max"}


def test_what_has_no_ground_truth_is_absent():
    result = evaluate(brain(), brain(1), WARP)
    assert not {"mean_dice", "labels", "tre_mm", "inverse_mm"} & set(result)


def test_overlap_and_surfaces_agree_with_simpleitk_on_the_warped_labels():
    fixed, moving = patches(), patches(1)
    result = evaluate(brain(), brain(1), WARP, fixed_labels=fixed, moving_labels=moving, ignore_labels=[4])
    warped = moving.warp(WARP, onto=GRID)
    images = [sitk.GetImageFromArray(m.data.numpy().T) for m in (fixed, warped)]
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(*images)
    assert set(result["labels"]) == {"1", "2", "3"}
    for label, values in result["labels"].items():
        assert values["dice"] == pytest.approx(measures.GetDiceCoefficient(int(label)), rel=1e-5)
        assert values["jaccard"] == pytest.approx(measures.GetJaccardCoefficient(int(label)), rel=1e-5)
        assert values["fixed_ml"] == pytest.approx(int((fixed.data == int(label)).sum()) * 3.0 / 1000, rel=1e-5)
    for key in ("dice", "jaccard", "hd95_mm", "asd_mm"):
        mean = result[f"mean_{key}"]
        assert mean == pytest.approx(np.mean([v[key] for v in result["labels"].values()]), rel=1e-4)


def test_a_label_that_the_warp_loses_scores_zero_and_is_named():
    fixed, moving = np.zeros((2, *SHAPE), int)
    fixed[4:12, 4:12, 4:12] = moving[4:12, 4:12, 4:12] = 1
    fixed[20, 18, 17] = moving[0, 0, 0] = 2  # shifted out of the moving image's box
    fixed[5, 5, 5], moving[6, 6, 6], moving[0, 1, 0] = 3, 8, 9
    away = Affine(nib.affines.from_matvec(np.eye(3), GRID.linear @ (1, 0, 0)))
    result = evaluate(
        brain(), brain(1), away, fixed_labels=labels_of(fixed), moving_labels=labels_of(moving), ignore_labels=[9]
    )
    assert result["labels_lost"] == [2]
    assert result["labels_created"] == []
    assert result["labels_missing_in"] == {"fixed": [8], "moving": [3]}
    assert set(result["labels"]) == {"1", "2"}
    lost = result["labels"]["2"]
    worst = float(f"{np.linalg.norm(GRID.linear @ (np.array(SHAPE) - 1)):.6g}")  # the axes stand at right angles
    assert (lost["dice"], lost["jaccard"], lost["hd95_mm"], lost["asd_mm"], lost["moved_ml"]) == (0, 0, worst, worst, 0)
    assert result["mean_dice"] == pytest.approx(result["labels"]["1"]["dice"] / 2, rel=1e-4)
    assert (result["labels_scored"], result["surfaces_scored"], result["surfaces_penalised"]) == (2, 1, 1)
    assert result["surface_penalty_mm"] == worst
    for key in ("hd95_mm", "asd_mm"):
        assert result[f"mean_{key}"] == pytest.approx((result["labels"]["1"][key] + worst) / 2, rel=1e-4)


def test_losing_a_label_is_worse_than_misplacing_it():
    ids = np.zeros(SHAPE, int)
    ids[4:12, 4:12, 4:12], ids[0, 0, 0] = 1, 2
    means = []
    for voxels in (-1, 1):  # the second label is a voxel away from its place, or off the map
        shift = Affine(nib.affines.from_matvec(np.eye(3), GRID.linear @ (voxels, 0, 0)))
        result = evaluate(brain(), brain(1), shift, fixed_labels=labels_of(ids), moving_labels=labels_of(ids))
        means.append((result["labels_lost"], result["mean_hd95_mm"], result["mean_asd_mm"]))
    (kept, hd95, asd), (lost, hd95_lost, asd_lost) = means
    assert (kept, lost) == ([], [2])
    assert hd95_lost > hd95
    assert asd_lost > asd


def test_the_whole_transform_is_measured_on_the_fixed_grid():
    result = evaluate(brain(), brain(1), Affine(np.diag([1.5, 1, 1, 1])) @ WARP)
    alone = evaluate(brain(), brain(1), WARP)
    assert result["jacobian"]["median"] == pytest.approx(1.5 * alone["jacobian"]["median"], rel=1e-4)
    assert result["std_log_jacobian"] == pytest.approx(alone["std_log_jacobian"], rel=1e-3)
    shifted = evaluate(brain(), brain(1), SHIFT)
    assert shifted["displacement_mm"]["max"] == pytest.approx(np.linalg.norm([2, 1, 1.5]), rel=1e-5)
    assert shifted["std_log_jacobian"] == pytest.approx(0, abs=1e-5)


def test_mask_is_given_or_the_subject_or_everything_and_says_so():
    subject = evaluate(brain(), brain(1), WARP)["mask"]
    assert subject == {"source": "non-zero voxels of the fixed image", "voxels": int((brain().data != 0).sum())}
    ct = Image(brain().data - 1000, GRID)
    assert evaluate(ct, brain(1), WARP)["mask"] == {
        "source": "all voxels of the fixed image",
        "voxels": int(np.prod(SHAPE)),
    }
    inside = np.zeros(SHAPE)
    inside[5:15, 5:15, 5:15] = 7
    result = evaluate(brain(), brain(1), WARP, mask=labels_of(inside, name="mask.nii.gz"))
    assert result["mask"] == {"source": "given: mask.nii.gz", "voxels": 1000}
    expected = regularity(WARP, torch.from_numpy(inside > 0))
    assert result["std_log_jacobian"] == pytest.approx(expected.std_log_jacobian, rel=1e-4)
    with pytest.raises(InputError, match="empty"):
        evaluate(brain(), brain(1), WARP, mask=labels_of(np.zeros(SHAPE)))


@pytest.mark.parametrize(
    ("share", "lowest", "subject"),
    [(0.05, 0, False), (0.4, 0, False), (0.6, 0, True), (0.95, 0, True), (0.95, -50, False)],
    ids=["a few zeros", "defaced", "mostly empty", "empty", "zero is a value among others"],
)
def test_zero_is_the_background_where_most_of_the_faces_show_it(share, lowest, subject):
    """A whole head has some zeros on its faces: where it was defaced, and at corners that a scanner does not reach."""
    values = np.full(SHAPE, 100.0)
    faces = np.ones(SHAPE, bool)
    faces[1:-1, 1:-1, 1:-1] = False
    at = np.argwhere(faces)
    values[tuple(at[: round(share * len(at))].T)] = 0
    values[10, 10, 10] = lowest or 100
    source = evaluate(Image(torch.from_numpy(values).float(), GRID), brain(1), WARP)["mask"]["source"]
    assert source == f"{'non-zero' if subject else 'all'} voxels of the fixed image"


@pytest.mark.parametrize("end", [0, -1])
def test_the_faces_at_both_ends_of_an_axis_count(end):
    values = torch.full(SHAPE, 100.0)
    for axis in range(2):
        values.select(axis, end).zero_()
    assert measured_in(Image(values, GRID))[1] == "all voxels of the fixed image"


def test_similarity_before_is_that_of_the_two_worlds_as_they_are():
    fixed = brain()
    moving = fixed.warp(SHIFT.inverse(), onto=GRID)
    result = evaluate(fixed, moving, SHIFT)["similarity"]
    assert result["after"]["ncc"] > result["before"]["ncc"] + 0.1
    assert evaluate(fixed, moving, Affine.identity(3))["similarity"]["after"] == result["before"]


def test_landmarks_that_either_side_lists_without_a_position_are_left_out():
    fixed = Landmarks(("AC", "tip"), MARKS.points[[0, 2]], missing=((1, "PC"),))
    moving = Landmarks(("AC", "PC"), SHIFT(MARKS.points)[:2], missing=((0, "tip"),))
    tre = evaluate(brain(), brain(1), SHIFT, fixed_landmarks=fixed, moving_landmarks=moving)["tre_mm"]
    assert (list(tre["landmarks"]), tre["left_out"]) == (["AC"], ["PC", "tip"])
    assert tre["mean"] == pytest.approx(0, abs=1e-4)
    options = {"fixed_landmarks": fixed, "moving_landmarks": Landmarks(("AC", "tip"), SHIFT(MARKS.points)[[0, 2]])}
    numbered = evaluate(brain(), brain(1), SHIFT, **options, unreliable_landmarks=["3"])["tre_mm"]
    assert numbered["left_out"] == ["tip", "PC"]


def test_landmarks_pair_up_by_name_and_unreliable_ones_are_left_out():
    errors = np.array([[0, 0, 9], [0, 3, 4], [0, 0, 0]])
    moving = Landmarks(("tip", "PC", "AC"), SHIFT(MARKS.points)[::-1] + errors)
    images = brain(), brain(1)
    tre = evaluate(*images, SHIFT, fixed_landmarks=MARKS, moving_landmarks=moving)["tre_mm"]
    assert list(tre["landmarks"]) == ["AC", "PC", "tip"]
    after = [v["after"] for v in tre["landmarks"].values()]
    assert after == pytest.approx([0, 5, 9], abs=1e-5)
    assert (tre["count"], tre["mean"], tre["median"], tre["max"]) == pytest.approx((3, 14 / 3, 5, 9), rel=1e-5)
    assert tre["p75"] == pytest.approx(7, rel=1e-5)
    assert tre["landmarks"]["AC"]["before"] == pytest.approx(np.linalg.norm([2, 1, 1.5]), rel=1e-5)
    for unreliable in (["tip"], ["3"]):
        options = {"fixed_landmarks": MARKS, "moving_landmarks": moving, "unreliable_landmarks": unreliable}
        tre = evaluate(*images, SHIFT, **options)["tre_mm"]
        assert (tre["count"], tre["max"], tre["left_out"]) == (2, pytest.approx(5), ["tip"])


def test_landmarks_that_do_not_pair_up_are_named():
    images = brain(), brain(1)
    fewer = Landmarks(("AC", "other"), MARKS.points[:2])
    with pytest.raises(InputError, match=r"3 fixed and 2 moving .*fixed ones lack other; the moving ones lack PC, tip"):
        evaluate(*images, WARP, fixed_landmarks=MARKS, moving_landmarks=fewer)
    twice = Landmarks(("AC", "AC", "tip"), MARKS.points)
    with pytest.raises(InputError, match="moving landmarks hold AC more than once"):
        evaluate(*images, WARP, fixed_landmarks=MARKS, moving_landmarks=twice)
    options = {"fixed_landmarks": MARKS, "moving_landmarks": MARKS}
    with pytest.raises(InputError, match=r"'4' is to be left out.*AC, PC, tip"):
        evaluate(*images, WARP, **options, unreliable_landmarks=["4"])
    with pytest.raises(InputError, match="every one"):
        evaluate(*images, WARP, **options, unreliable_landmarks=["1", "2", "3"])
    with pytest.raises(InputError, match="landmarks of the fixed image and none of the moving"):
        evaluate(*images, WARP, fixed_landmarks=MARKS)


def test_labels_that_do_not_fit_are_refused():
    images = brain(), brain(1)
    away = Grid(SHAPE, nib.affines.from_matvec(GRID.linear, GRID.affine[:3, 3] + (0, 3, 4)))
    with pytest.raises(InputError, match="5 mm away from image"):
        evaluate(*images, WARP, fixed_labels=patches(grid=away), moving_labels=patches())
    small = Grid((20, 22, 20), GRID.affine)
    with pytest.raises(InputError, match=r"does not fit.*4 mm apart"):
        evaluate(*images, WARP, fixed_labels=patches(), moving_labels=patches(grid=small))
    with pytest.raises(InputError, match=r"no label to score: labels holds 1, labels holds 2"):
        evaluate(*images, WARP, fixed_labels=labels_of(np.ones(SHAPE)), moving_labels=labels_of(2 * np.ones(SHAPE)))
    with pytest.raises(InputError, match=r"no label to score.*holds none"):
        evaluate(*images, WARP, fixed_labels=labels_of(np.zeros(SHAPE)), moving_labels=patches())
    with pytest.raises(InputError, match="labels of the moving image and none of the fixed"):
        evaluate(*images, WARP, moving_labels=patches())


@pytest.mark.parametrize("longest_mm", [3.0, 30.0])
def test_agrees_with_learn2reg_but_for_its_defects(learn2reg_script, longest_mm):
    warp = field(longest_mm)
    u = np.moveaxis(warp.displacement[0].numpy(), 0, -1)
    fixed, moving = patches(), patches(1)
    for axis in range(3):
        moving.data.select(axis, 0).zero_()
        moving.data.select(axis, -1).zero_()
    at = np.array([[8.0, 9.0, 10.0], [12.0, 11.0, 9.0]])
    towards = at + np.random.default_rng(0).normal(size=at.shape)
    theirs = learn2reg_script(u, fixed.data.numpy(), moving.data.numpy(), at, towards, GRID.spacing)
    inner = np.zeros(SHAPE)
    inner[2:-2, 2:-2, 2:-2] = 1
    result = evaluate(
        brain(),
        brain(1),
        warp,
        fixed_labels=fixed,
        moving_labels=moving,
        fixed_landmarks=Landmarks("ab", nib.affines.apply_affine(GRID.affine, at)),
        moving_landmarks=Landmarks("ab", nib.affines.apply_affine(GRID.affine, towards)),
        mask=labels_of(inner),
    )
    mean_dice, tre, determinant, their_spread, their_folds = theirs
    assert result["mean_dice"] == pytest.approx(mean_dice, abs=2e-3)  # ties between voxels go to either side
    assert [v["after"] for v in result["tre_mm"]["landmarks"].values()] == pytest.approx(tre.tolist(), rel=1e-4)
    assert result["folds"]["count"] == (determinant <= 0).sum()
    spread = np.log(determinant[determinant > 0]).std()
    assert result["std_log_jacobian"] == pytest.approx(spread, rel=1e-3)
    assert their_folds == 0
    assert abs(their_spread - spread) > 0.2 * spread
    assert (result["folds"]["count"] > 0) == (longest_mm > 10)


def test_numbers_that_are_not_finite_are_null():
    broken = DisplacementField(torch.full((1, 3, *SHAPE), torch.nan), GRID)
    result = evaluate(brain(), brain(1), broken)
    assert result["folds"]["share"] == 1
    assert result["jacobian"] is None
    assert result["displacement_mm"]["mean"] is None
    json.dumps(result, allow_nan=False)
