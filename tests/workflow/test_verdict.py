"""Pass, check or fail: on results that everybody would agree about, and at each of the limits."""

import copy

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stepwarp.geometry import Affine, Grid, Image
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.workflow.register import register
from stepwarp.workflow.verdict import judge, lowered, measure

#: What `measure` says of a good registration.
GOOD = {
    "subject_voxels": 10000,
    "overlap": 1.0,
    "overlap_of_moving": 1.0,
    "volume_ratio": 1.1,
    "stretch": 1.1,
    "subject_mm": 150.0,
    "voxel_mm": 1.0,
    "information": {"mm": 4.0, "affine": 0.14, "final": 0.4},
    "similarity_affine": {"ncc": 0.9, "lncc": 0.4, "mutual_information": 0.3},
    "similarity": {"ncc": 0.95, "lncc": 0.6, "mutual_information": 0.4},
    "displacement_mm": {"mean": 2.0, "max": 8.0},
    "regularity": {
        "voxels": 10000,
        "folds": {"count": 0, "share": 0.0},
        "corner_folds": {"count": 0, "share": 0.0},
        "std_log_jacobian": 0.3,
    },
    "inverse_residual": {"count": 1000, "mean_mm": 0.02, "median_mm": 0.02, "p95_mm": 0.05, "max_mm": 0.2},
}
LINEAR = {
    key: GOOD[key]
    for key in ("subject_voxels", "overlap", "overlap_of_moving", "volume_ratio", "stretch", "similarity_affine")
}
LINEAR["information"] = {"mm": 4.0, "affine": 0.14}


def with_(path, value):
    """The measures of a good registration but for one number."""
    measures = copy.deepcopy(GOOD)
    *folders, name = path.split(".")
    place = measures
    for folder in folders:
        place = place[folder]
    place[name] = value
    return measures


def noise(seed, shape=(24, 26, 28)):
    """Blobs without meaning, with an empty margin."""
    values = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5).clip(0)
    window = np.zeros(shape)
    window[4:-4, 4:-4, 4:-4] = 1
    values *= gaussian_filter(window, 1)
    return Image(torch.from_numpy(values).float(), Grid.isotropic(shape, 8.0), f"noise {seed}")


def test_two_brains_brought_together_pass(registration):
    verdict = registration.record["verdict"]
    assert verdict["status"] == "pass"
    assert verdict["reasons"][0] == "100% of the fixed subject has a partner inside the moving image"
    assert "no voxel folds by one-sided differences (corner folds)" in verdict["reasons"]


def test_a_brain_and_itself_pass(brains, recipe):
    assert register(brains.fixed, brains.fixed, preset=recipe, threads=1).record["verdict"]["status"] == "pass"


@pytest.mark.parametrize("seed", [0, 2])
def test_unrelated_noise_fails(recipe, seed):
    verdict = register(noise(seed), noise(seed + 1), preset=recipe, threads=1, escalate=False).record["verdict"]
    assert verdict["status"] == "fail", verdict["reasons"]


def test_images_that_do_not_meet_fail(brains):
    fixed, moving = scale_intensities(brains.fixed), scale_intensities(brains.moving)
    away = Affine(np.column_stack([np.eye(3), (500.0, 0.0, 0.0)]))
    verdict = judge(measure(fixed, moving, away, None, None))
    assert verdict["status"] == "fail"
    assert verdict["reasons"][0].startswith("0% of the fixed subject has a partner inside the moving image, and 0%")


@pytest.fixture(scope="module")
def quick(recipe):
    """The recipe without its finer level: enough to fail."""
    return recipe.model_copy(
        update={"deformable": recipe.deformable.model_copy(update={"levels": recipe.deformable.levels[:1]})}
    )


@pytest.mark.parametrize("what", ["half", "noise", "noise in its shape", "corner"])
def test_what_cannot_be_registered_is_known(brains, quick, what):
    moving = brains.moving
    data = moving.data.clone()
    if what == "half":
        data[data.shape[0] // 2 :] = 0
    elif what == "corner":
        data[:, data.shape[1] // 3 :] = 0
    else:
        random = torch.rand(data.shape, generator=torch.Generator().manual_seed(0))
        data = random if what == "noise" else torch.where(data > 0.05 * data.max(), random, 0)
    verdict = register(brains.fixed, Image(data, moving.grid, what), preset=quick, threads=1, escalate=False).record[
        "verdict"
    ]
    assert verdict["status"] == "fail", verdict["reasons"]


@pytest.mark.parametrize("missing", [1 / 3, 0.6], ids=["a third", "most"])
def test_a_brain_of_which_a_part_is_out_of_view_is_judged_by_the_part(brains, recipe, registration, missing):
    """And where it is in view, it is registered as the whole one is, to a voxel."""
    moving = brains.moving
    n = int(moving.data.shape[2] * missing)
    data = moving.data[:, :, n:].contiguous()
    corner = np.eye(4)
    corner[2, 3] = n
    cropped = Image(data, Grid(tuple(data.shape), moving.grid.affine @ corner), "cropped")
    found = register(brains.fixed, cropped, preset=recipe, threads=1, escalate=False)
    verdict = found.record["verdict"]
    assert verdict["status"] != "fail", verdict["reasons"]
    assert any(
        "of the fixed subject has a partner inside the moving image, and 100%" in each for each in verdict["reasons"]
    )
    points = brains.fixed.grid.world(np.argwhere(brains.fixed.data.numpy() > 0.3))
    whole = registration.transform(points)
    seen = (cropped.grid.index(whole) > 1).all(1)
    assert np.linalg.norm(found.transform(points[seen]) - whole[seen], axis=1).mean() < brains.fixed.grid.spacing.min()


def met(final, before=0.7, **heads):
    """The measures of a good registration of two heads whose structures overlap so much."""
    head, other = {"is_head": True, "certainty": 0.88}, {"is_head": False}
    roles = {role: other | {"certainty": heads[role]} if role in heads else head for role in ("fixed", "moving")}
    return GOOD | {"structures": roles | ({} if heads else {"affine": before, "final": final})}


def linear(overlap):
    """The same after a linear stage alone."""
    structures = met(0.0, overlap)["structures"]
    return LINEAR | {"structures": {name: value for name, value in structures.items() if name != "final"}}


@pytest.mark.parametrize(
    ("measures", "status", "reason"),
    [
        (met(0.8), "pass", "overlap by 0.70 after the linear transform and 0.80 in the end (mean Dice)"),
        (met(0.6), "check", "less than those of most pairs that are registered well"),
        (met(0.4), "fail", "less than those of most pairs that are registered well"),
        (met(0.75, 0.88), "check", "the deformation takes apart what lay together"),
        (linear(0.6), "pass", "overlap by 0.60 after the linear transform (mean Dice)"),
        (linear(0.5), "check", "less than those of most pairs that are registered well"),
        (linear(0.25), "fail", "less than those of most pairs that are registered well"),
        (met(None, moving=0.33), "fail", "the moving image does not look like a head, and the other one does"),
        (met(None, fixed=0.7), "check", "the fixed image does not look like a head, and the other one does"),
        (met(None, moving=0.33) | {"overlap": 0.3}, "pass", "the moving image does not look like a head"),
        (met(None, fixed=0.5, moving=0.5), "pass", "neither image looks like a head"),
    ],
)
def test_structures_that_do_not_meet_are_said(measures, status, reason):
    verdict = judge(measures)
    assert verdict["status"] == status
    said = [each for each in verdict["reasons"] if reason in each]
    assert len(said) == 1
    assert status == "pass" or verdict["reasons"][0] == said[0]


@pytest.mark.parametrize("measures", [GOOD, LINEAR], ids=["deformable", "linear"])
def test_good_measures_pass(measures):
    assert judge(measures)["status"] == "pass"


@pytest.mark.parametrize(
    ("path", "value", "status", "reason"),
    [
        ("volume_ratio", 0.3, "check", "makes the fixed subject 0.3 times as large"),
        ("volume_ratio", 2.5, "check", "makes the fixed subject 2.5 times as large"),
        ("volume_ratio", 337.0, "fail", "makes the fixed subject 337 times as large"),
        ("volume_ratio", -1.0, "fail", "the linear transform mirrors the subject"),
        ("stretch", 1.4, "check", "stretches one direction 1.40 times as much as another"),
        ("stretch", 1.6, "fail", "stretches one direction 1.60 times as much as another"),
        ("information.affine", 0.08, "check", "share 0.08 of their information after the linear transform"),
        ("information.affine", 0.05, "fail", "share 0.05 of their information after the linear transform"),
        ("information.final", 0.25, "check", "and 0.25 in the end (an image and itself: about 0.73): less"),
        ("information.final", 0.15, "fail", "and 0.15 in the end (an image and itself: about 0.73): too"),
        ("similarity.lncc", 0.405, "check", "raised the local correlation from 0.40 to 0.41"),
        ("similarity.lncc", 0.395, "check", "lowered the local correlation from 0.40 to 0.40"),
        ("similarity.lncc", 0.3, "fail", "lowered the local correlation from 0.40 to 0.30"),
        ("regularity.corner_folds", {"count": 3, "share": 3e-4}, "check", "3 voxels fold"),
        ("regularity.corner_folds", {"count": 30, "share": 3e-3}, "fail", "30 voxels fold"),
        ("regularity.std_log_jacobian", 0.65, "check", "volumes change strongly"),
        ("regularity.std_log_jacobian", None, "check", "volumes change strongly"),
        ("inverse_residual.p95_mm", 0.6, "check", "within 0.6 mm"),
    ],
)
def test_each_limit_names_its_reason_first(path, value, status, reason):
    verdict = judge(with_(path, value))
    assert verdict["status"] == status
    assert reason in verdict["reasons"][0]


@pytest.mark.parametrize(
    ("of_fixed", "of_moving", "status"),
    [
        (0.89, 0.89, "check"),
        (0.49, 0.49, "fail"),
        (0.2, 0.95, "pass"),
        (0.2, 0.6, "check"),
        (0.95, 0.2, "pass"),
    ],
)
def test_the_smaller_subject_must_have_partners(of_fixed, of_moving, status):
    verdict = judge(GOOD | {"overlap": of_fixed, "overlap_of_moving": of_moving})
    assert verdict["status"] == status
    assert any(f"{of_fixed:.0%} of the fixed subject" in each for each in verdict["reasons"])


@pytest.mark.parametrize(
    ("voxel", "residual", "status"), [(4.0, 0.48, "pass"), (4.0, 0.52, "check"), (2, 0.42, "pass")]
)
def test_an_inverse_on_coarse_voxels_need_not_be_more_exact_than_they_are(voxel, residual, status):
    assert judge(with_("inverse_residual.p95_mm", residual) | {"voxel_mm": voxel})["status"] == status


def test_of_different_contrasts_the_information_tells_gain_and_loss_not_the_correlation():
    measures = with_("similarity.lncc", 0.3)
    verdict = judge(measures, multimodal=True)
    assert verdict["status"] == "pass"
    assert "the deformation raised the shared information from 0.30 to 0.40" in verdict["reasons"]
    measures["similarity"]["mutual_information"] = 0.2
    assert judge(measures, multimodal=True)["status"] == "fail"


def test_sentences_of_other_stages_count():
    assert judge(GOOD, ["to be known"])["status"] == "pass"
    verdict = judge(GOOD, ["to be known"], ["to be looked at"])
    assert verdict["status"] == "check"
    assert verdict["reasons"][0] == "to be looked at"
    assert "to be known" in verdict["reasons"]


def test_brains_that_were_alike_before_need_no_gain():
    measures = with_("similarity_affine.lncc", 0.985)
    measures["similarity"]["lncc"] = 0.98
    assert judge(measures)["status"] == "pass"
    measures = with_("similarity_affine.mutual_information", 0.72)  # nearly what an image has with itself
    measures["similarity"]["mutual_information"] = 0.72
    assert judge(measures, multimodal=True)["status"] == "pass"


def test_the_worst_reason_comes_first():
    measures = with_("overlap", 0.8) | {"overlap_of_moving": 0.8}
    measures["regularity"]["corner_folds"] = {"count": 900, "share": 0.09}
    verdict = judge(measures)
    assert verdict["status"] == "fail"
    assert "900 voxels fold" in verdict["reasons"][0]
    assert "80%" in verdict["reasons"][1]


def test_a_mask_narrows_the_subject_down_to_what_is_trusted(brains, registration):
    fixed, moving = scale_intensities(brains.fixed), scale_intensities(brains.moving)
    half = torch.zeros_like(fixed.data)
    half[: half.shape[0] // 2] = 1
    whole, part = (measure(fixed, moving, registration.affine, None, mask) for mask in (None, Image(half, fixed.grid)))
    assert 0.3 * whole["subject_voxels"] < part["subject_voxels"] < 0.7 * whole["subject_voxels"]


def test_of_two_masks_what_either_excludes_is_not_compared(brains):
    """As if one mask excluded both: the images lie on one grid, voxel by voxel."""
    fixed = scale_intensities(brains.fixed)
    moving = Image(fixed.data.roll(1, 1).contiguous(), fixed.grid)
    low, front = torch.ones(2, *fixed.grid.shape)
    low[fixed.grid.shape[0] // 2 :], front[:, : fixed.grid.shape[1] // 2] = 0, 0
    masks = (Image(values, fixed.grid) for values in (low, front, low * front))
    of_fixed, of_moving, both = masks
    compared = ("similarity_affine", "information")
    apart, together = (
        measure(fixed, moving, Affine.identity(3), None, *masks) for masks in ((of_fixed, of_moving), (both, None))
    )
    assert {key: apart[key] for key in compared} == {key: together[key] for key in compared}


def test_what_is_lowered_is_told_by_the_measure_nearest_to_the_loss():
    for similarity, key in (
        ("lncc", "lncc"), ("ncc", "ncc"), ("ssd", "ncc"), ("mi", "mutual_information"), ("mind", "mutual_information")
    ):  # fmt: skip
        assert not lowered(GOOD, similarity)
        assert lowered(with_(f"similarity.{key}", 0.01), similarity)
        assert not lowered(with_(f"similarity.{key}", GOOD["similarity_affine"][key]), similarity)


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_what_a_mask_excludes_is_not_measured(brains, registration, which):
    """Nor what lies on it: the numbers stay the same to the last digit, whatever a masked lesion looks like."""
    scaled = {"fixed": scale_intensities(brains.fixed), "moving": scale_intensities(brains.moving)}
    image = scaled[which]
    lesion = tuple(slice(n // 3, n // 2) for n in image.grid.shape)
    trusted = torch.ones(image.grid.shape)
    trusted[lesion] = 0
    found = []
    for value in (0.1, 1.0):
        data = image.data.clone()
        data[lesion] = value
        images = scaled | {which: Image(data, image.grid)}
        masks = {"fixed_mask": None, "moving_mask": None, f"{which}_mask": Image(trusted, image.grid)}
        found.append(measure(images["fixed"], images["moving"], registration.affine, None, **masks))
    assert found[0] == found[1]
    assert found[0]["similarity_affine"] != measure(
        **scaled, affine=registration.affine, deformation=None, fixed_mask=None
    )
