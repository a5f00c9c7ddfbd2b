"""The linear stage on a real brain whose right answer is known."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from stepwarp.config import AffineSettings
from stepwarp.errors import RegistrationError
from stepwarp.geometry import Affine, Grid, Image
from stepwarp.losses.similarities.mi import MutualInformation
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.registrar import affine
from stepwarp.registrar.affine import register_linear
from stepwarp.registrar.subject import ImagedSubject

#: For brains, of about 150 mm: voxels of 12 mm, then of 6.
SETTINGS = AffineSettings(across=12.5, refine_across=(25,), candidates=4)
AXIS = np.array([0.6, -0.5, 0.62]) / np.linalg.norm([0.6, -0.5, 0.62])
#: What each kind may find, on top of a turn and a shift.
STRETCH = {"rigid": np.eye(3), "similarity": 1.12 * np.eye(3), "affine": np.diag([1.1, 0.92, 1.05])}


def turned(degrees, stretch=STRETCH["affine"], shift=(0.0, 0.0, 0.0)):
    """A turn about an odd axis and a stretch about the world's origin, then a shift (mm)."""
    turn = Rotation.from_rotvec(np.radians(degrees) * AXIS).as_matrix()
    return Affine(np.column_stack([turn @ stretch, shift]))


def run(fixed, moving, kind="affine", similarity=None, settings=SETTINGS, **kwargs):
    return register_linear(fixed, moving, kind, similarity or NCC(), similarity or NCC(), settings, **kwargs)


def clock_of(monkeypatch, evaluations):
    """A clock that shows how often it was looked at, and the deadline after that many looks."""
    looks = itertools.count(1)
    monkeypatch.setattr("stepwarp.progress.time.monotonic", lambda: next(looks))
    return evaluations


def cropped(image, axis, first, last):
    """The image without what lies before voxel `first` and from voxel `last` on, along one axis."""
    part = [slice(None)] * 3
    part[axis] = slice(first, last)
    corner = np.eye(4)
    corner[axis, 3] = first
    data = image.data[tuple(part)].contiguous()
    return Image(data, Grid(tuple(data.shape), image.grid.affine @ corner), image.name)


def between(first, second, points):
    """The mean distance in mm between where two transforms send points."""
    return float(np.linalg.norm(first(points) - second(points), axis=1).mean())


@pytest.mark.parametrize("kind", STRETCH)
def test_a_large_turn_is_recovered_from_headers_300_mm_apart(moved_by, kind):
    case = moved_by(turned(40, STRETCH[kind], shift=(240.0, -150.0, 110.0)))
    assert case.error(run(case.fixed, case.moving, kind).transform) < 0.3


def test_a_deadline_ends_the_search_with_the_best_found_so_far(known, monkeypatch):
    whole = run(known.fixed, known.moving)
    fits, steps = [], []
    for looks in (0, 7, 40):
        fits.append(run(known.fixed, known.moving, deadline=clock_of(monkeypatch, looks), progress=steps.append))
        assert steps[-1].done == steps[-1].total
    assert [fit.stopped for fit in fits[:2]] == ["while 4 of 4 starts were optimised"] * 2
    assert fits[2].stopped.startswith("while it was refined at")
    assert [len(fit.starts) for fit in fits] == [4, 4, 4]
    assert whole.stopped is None
    assert fits[0].loss > fits[1].loss
    assert known.error(fits[0].transform) > known.error(fits[1].transform) > known.error(fits[2].transform)


def test_starts_for_which_there_is_no_room_or_no_time_are_not_begun(known, monkeypatch):
    whole = run(known.fixed, known.moving)
    monkeypatch.setattr(affine, "_AT_ONCE", 1)
    one_by_one = run(known.fixed, known.moving)
    np.testing.assert_allclose(one_by_one.transform.matrix, whole.transform.matrix, atol=1e-4)
    for looks, stopped in ((0, "while 1 of 1 starts were optimised"), (310, "while 1 of 4 starts were optimised")):
        fit = run(known.fixed, known.moving, deadline=clock_of(monkeypatch, looks))
        assert fit.stopped == stopped
        assert len(fit.starts) == 1


@pytest.mark.parametrize("degrees", [90, 180])
def test_a_brain_lying_any_way_is_found(moved_by, degrees):
    case = moved_by(turned(degrees))
    assert case.error(run(case.fixed, case.moving).transform) < 0.3


@pytest.mark.parametrize("kind", ["rigid", "similarity"])
def test_a_restricted_kind_stays_restricted_where_the_images_ask_for_more(known, kind):
    linear = run(known.fixed, known.moving, kind).transform.matrix[:3, :3]
    scale = np.cbrt(np.linalg.det(linear))
    np.testing.assert_allclose(linear.T @ linear, scale**2 * np.eye(3), atol=1e-5)
    if kind == "rigid":
        assert scale == pytest.approx(1, abs=1e-5)
    else:
        assert abs(scale - 1) > 1e-3


def test_more_freedom_fits_a_brain_of_another_shape_better(known):
    errors = [known.error(run(known.fixed, known.moving, kind).transform) for kind in STRETCH]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * known.error(Affine.identity(3))


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("which", ["moving", "fixed", "both"])
def test_another_field_of_view_is_no_obstacle(moved_by, which, axis):
    case = moved_by(turned(8, shift=(30.0, 0.0, -20.0)))
    fixed, moving = case.fixed, case.moving
    if which != "moving":
        n = fixed.grid.shape[axis]
        fixed = cropped(fixed, axis, 0, n - n // 3)
    if which != "fixed":
        moving = cropped(moving, axis, moving.grid.shape[axis] // 3, None)
    assert case.error(run(fixed, moving).transform) < 1


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", ["low", "high"])
def test_a_subject_that_goes_on_beyond_any_one_face_is_cut(template, axis, end):
    """By how much of its own largest slice shows on the face."""
    brain = template.brain
    slices = (brain.data > 0.1 * brain.data.max()).movedim(axis, 0).flatten(1).sum(1)
    assert not ImagedSubject(brain).cut.any()
    for share, cut in ((0.1, False), (0.4, True), (0.9, True)):
        reached = (slices > share * slices.max()).nonzero()[:, 0]
        first, last = (int(reached[0]), None) if end == "low" else (0, int(reached[-1]) + 1)
        part = cropped(brain, axis, first, last)
        found = ImagedSubject(part).cut
        assert found[axis, ("low", "high").index(end)] == cut
        assert found.sum() == cut


def overlapping(share):
    """Profiles of 60 voxels that run on at both ends. Where their headers put them, `share` of the one lies on the
    other, with the same values; where their centres meet, all of it does, and is alike but not the same."""
    common = round(60 * share)
    fixed, noise = (gaussian_filter(np.random.default_rng(seed).random(60), 1.5) for seed in (0, 1))
    moving = fixed + 0.7 * (noise - noise.mean())
    moving[:common] = fixed[-common:]
    places = (np.eye(2), np.array([[1.0, 60 - common], [0, 1]]))
    return [
        Image(torch.from_numpy(1 + 9 * (values - fixed.min())).float(), Grid((60,), place))
        for values, place in zip((fixed, moving), places, strict=True)
    ]


@pytest.mark.parametrize(("share", "counts"), [(0.4, True), (0.25, False)])
def test_a_match_of_a_small_part_is_no_match_however_good(share, counts):
    fixed, moving = overlapping(share)
    settings = AffineSettings(across=60, refine_across=(60,), candidates=4)
    matched = abs(float(run(fixed, moving, "rigid", settings=settings).transform.matrix[0, 1])) < 1
    assert matched == counts


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_voxels_outside_the_mask_have_no_influence(moved_by, which):
    case = moved_by(turned(15, shift=(20.0, 0.0, 0.0)))
    image = getattr(case, which)
    region = tuple(slice(n // 5, n // 2) for n in image.grid.shape)
    mask = torch.ones(image.grid.shape)
    mask[region] = 0
    data = image.data.clone()
    data[region] = torch.linspace(0, 1.2, data[region].shape[0])[:, None, None]
    wild = {"fixed": case.fixed, "moving": case.moving, which: Image(data, image.grid)}
    masks = {f"{which}_mask": Image(mask, image.grid)}
    calm = run(case.fixed, case.moving, **masks).transform
    assert between(run(**wild, **masks).transform, calm, case.points()) == 0
    assert case.error(run(**wild).transform) > 3 * case.error(run(**wild, **masks).transform)


def test_of_two_masks_only_what_both_trust_counts(quarters):
    settings = AffineSettings(across=10, refine_across=(20,), candidates=4)
    fit = run(quarters.fixed, quarters.moving, "rigid", settings=settings, **quarters.masks)
    np.testing.assert_allclose(fit.transform.matrix[:2, 2], quarters.truth["low left"], atol=0.3)
    np.testing.assert_allclose(fit.transform.matrix[:2, :2], np.eye(2), atol=0.02)


def test_masks_that_do_not_meet_at_a_start_are_no_obstacle(moved_by):
    case = moved_by(turned(10, shift=(15.0, 0.0, 0.0)))
    left = torch.zeros(case.fixed.grid.shape)
    left[: left.shape[0] // 2] = 1
    mask = Image(left, case.fixed.grid)
    sent = Image((mask.warp(case.truth.inverse(), case.moving.grid).data > 0.5).float(), case.moving.grid)
    fit = run(case.fixed, case.moving, fixed_mask=mask, moving_mask=sent)
    assert np.isfinite([start.scored for start in fit.starts]).all()
    assert case.error(fit.transform) < 1


def test_mutual_information_aligns_an_inverted_contrast(moved_by):
    case = moved_by(turned(20, shift=(15.0, 0.0, 5.0)))
    inverted = Image(torch.where(case.moving.data > 0.05, 1.1 - case.moving.data, 0), case.moving.grid)
    # On coarser grids, voxels that hold two tissues bias the information that is shared.
    fine = AffineSettings(across=17, refine_across=(50,))
    assert case.error(run(case.fixed, inverted, similarity=MutualInformation(), settings=fine).transform) < 0.6


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_an_image_in_two_dimensions(template, kind):
    middle = template.brain.data.shape[2] // 2
    grid = Grid.isotropic(template.brain.grid.shape[:2], 3)
    fixed = Image(template.brain.data[:, :, middle].contiguous(), grid)
    angle = np.radians(50)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    truth = Affine(np.column_stack([turn, grid.centre - turn @ grid.centre + (20, -10)]))
    large = np.diag([3.0, 3.0, 1.0])
    large[:2, 2] = -60
    moving = fixed.warp(truth.inverse(), Grid((110, 110), large))
    points = (fixed.data > 0.1).nonzero().numpy() * 3.0
    assert between(run(fixed, moving, kind).transform, truth, points) < 0.5


def test_a_line(template):
    """One dimension: a profile through the brain, shifted."""
    _, j, k = (n // 2 for n in template.brain.grid.shape)
    fixed = Image(template.brain.data[:, j, k].contiguous(), Grid.isotropic(template.brain.grid.shape[:1], 3))
    moving = Image(fixed.data, Grid(fixed.grid.shape, np.array([[3.0, 40.0], [0.0, 1.0]])))
    points = np.linspace(20, 150, 30)[:, None]
    assert between(run(fixed, moving, "rigid").transform, lambda x: x + 40, points) < 0.1


def test_the_same_twice_is_the_same_to_the_last_bit(known):
    first, second = (run(known.fixed, known.moving) for _ in range(2))
    assert first.transform.matrix.tobytes() == second.transform.matrix.tobytes()
    assert first.loss == second.loss


def test_it_says_which_starts_were_tried_best_first(known):
    fit = run(known.fixed, known.moving)
    losses = [start.optimised for start in fit.starts]
    assert len(losses) == SETTINGS.candidates
    assert losses == sorted(losses)
    assert "voxel axes" in {start.name for start in fit.starts}


def test_progress_ends_at_the_total(known):
    steps = []
    run(known.fixed, known.moving, progress=steps.append)
    assert [step.done for step in steps] == list(range(1, steps[-1].total + 1))
    assert {step.stage for step in steps} == {"affine"}


@pytest.mark.parametrize("empty", ["fixed", "moving"])
def test_an_image_without_anything_in_it_is_refused_by_name(known, empty):
    nothing = Image(torch.zeros(10, 10, 10), Grid.isotropic((10, 10, 10)), "nothing.nii")
    images = {"fixed": known.fixed, "moving": known.moving, empty: nothing}
    with pytest.raises(RegistrationError, match=r"nothing\.nii: there is nothing above the background"):
        run(**images)


def test_unrelated_noise_still_ends_in_a_usable_transform():
    grid = Grid.isotropic((20, 22, 24), 6)
    noise = [gaussian_filter(np.random.default_rng(seed).random(grid.shape), 1.5) for seed in (0, 1)]
    fit = run(*(Image(torch.from_numpy(values).float(), grid) for values in noise))
    assert np.isfinite(fit.transform.matrix).all()
    assert fit.loss > 0.2


def test_it_never_mirrors():
    """Noise, which a mirrored image matches as well as any: with these seeds it did."""
    grid = Grid.isotropic((16,), 6)
    settings = AffineSettings(across=16, refine_across=(16,), candidates=1)
    for seed in (38, 40, 42):
        noise = [np.random.default_rng(each).random(grid.shape) for each in (seed, seed + 1)]
        fit = run(*(Image(torch.from_numpy(values).float(), grid) for values in noise), settings=settings)
        assert fit.transform.matrix[0, 0] > 0
