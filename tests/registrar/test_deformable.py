"""Deformable optimisation on a real brain whose right answer is known, and on the odd grids that users bring."""

import time

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stepwarp.config import DeformableSettings, Level
from stepwarp.errors import RegistrationError
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Image, inverse_residual
from stepwarp.kernels import jacobian
from stepwarp.registrar.deformable import as_deformation, mended, optimise

#: The size of a brain.
MM = 150


def settings(*levels_mm, iterations=30, **changes):
    """Levels of so many mm, for brains."""
    return DeformableSettings(levels=[Level(across=MM / mm, iterations=iterations) for mm in levels_mm], **changes)


#: The two coarser levels of a brain in voxels of 3 mm.
QUICK = settings(12, 6)


@pytest.fixture(scope="module")
def start(known):
    """The affine nearest to the truth inside the brain, as the linear stage might have found it."""
    points = known.points()
    homogeneous = np.column_stack([points, np.ones(len(points))])
    return Affine(np.linalg.lstsq(homogeneous, known.truth(points), rcond=None)[0].T)


@pytest.fixture(scope="module")
def found(known, start):
    """A deformable registration of the known pair."""
    return optimise(known.fixed, known.moving, start, QUICK)


def whole(affine, deformation):
    return Composition.of(affine, deformation.warp)


def inverted(image):
    """Another contrast: dark where it was bright, nothing where there was nothing."""
    return Image((1.1 - image.data) * (image.data / 0.3).clamp(0, 1), image.grid, image.name)


def still(grid):
    return Affine.identity(grid.ndim)


def blobs(shape, seed=0, sigma=2.0):
    """Smooth structure from 0 to 1, and none at the border."""
    values = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), [min(sigma, n / 6) for n in shape])
    for axis, n in enumerate(shape):
        window = np.hanning(n + 2)[1:-1] if n > 2 else np.ones(n)
        values = np.clip((values - values.min()) / (np.ptp(values) or 1), 0, 1) * window.reshape(
            [-1 if a == axis else 1 for a in range(len(shape))]
        )
    return torch.from_numpy(values / (values.max() or 1)).float()


def test_the_error_falls_far_below_the_best_affine(known, start, found):
    assert known.error(whole(start, found)) < 0.6 * known.error(start)


def test_nothing_folds(known, found):
    displacement = found.warp.displacement
    assert float(jacobian.determinant(displacement)[0][known.inside].min()) > 0
    assert float(jacobian.smallest_corner_determinant(displacement)[0].min()) > 0


def test_a_rough_field_is_mended_before_it_folds(known, start):
    """Steps as long and as little smoothed as a recipe may ask for; mended at the end alone it would come out bent."""
    rough = DeformableSettings(
        levels=[Level(across=MM / 12, iterations=60, step=1.0, smooth_update=0.3, smooth_field=0.0)], patience=60
    )
    field = optimise(known.fixed, known.moving, start, rough).warp.displacement
    smallest = jacobian.smallest_corner_determinant(field)
    assert float(smallest.min()) > 0.1
    # Each half keeps its distance; where the two follow each other, a few voxels come nearer. At the end alone: 1e-3.
    assert float((smallest < rough.smallest_jacobian).float().mean()) < 1e-4


def test_the_inverse_undoes_the_warp(known, found):
    residual = inverse_residual(found.warp, found.inverse_warp, known.points())
    assert residual.mean() < 0.05
    assert residual.max() < 1


def test_the_inverse_is_that_of_the_true_map(known, start, found):
    """From points of the moving world back to the fixed one, as good as the way there."""
    points = known.truth(known.points())
    back = Composition.of(found.inverse_warp, start.inverse())
    error = np.linalg.norm(back(points) - known.points(), axis=1).mean()
    assert error < 1.1 * known.error(whole(start, found))


def test_with_the_images_swapped_it_goes_the_way_back(known, start, found):
    swapped = optimise(known.moving, known.fixed, start.inverse(), QUICK)
    there, back = whole(start, found), whole(start.inverse(), swapped)
    longest = np.linalg.norm(found.warp(known.points()) - known.points(), axis=1).mean()
    assert inverse_residual(there, back, known.points()).mean() < 0.5 * longest


def test_an_image_to_itself_stays_where_it_is(known):
    deformation = optimise(known.fixed, known.fixed, still(known.fixed.grid), settings(12, 6, 3))
    # In voxels of 1 mm this is a fortieth of a millimetre.
    assert float(deformation.warp.displacement.norm(dim=1)[0][known.inside].mean()) < 0.025


def test_the_same_twice_is_the_same_to_the_last_bit(known, start, found):
    again = optimise(known.fixed, known.moving, start, QUICK)
    assert torch.equal(again.warp.displacement, found.warp.displacement)
    assert again.trace == found.trace


@pytest.mark.parametrize(
    ("similarity", "contrast", "left"),
    [
        ("lncc", "same", 0.7),
        ("ncc", "same", 0.75),
        ("ssd", "same", 0.75),
        ("mi", "same", 0.75),
        ("mi", "other", 0.75),
        ("mind", "same", 0.75),
        ("mind", "other", 0.95),
    ],
)
def test_every_similarity_brings_the_brains_it_suits_together(known, start, similarity, contrast, left):
    # The fixed brain itself, deformed: the contrasts of two scanners are not for every similarity.
    moving = known.fixed.warp(known.truth_inverse, known.moving.grid)
    moving = moving if contrast == "same" else inverted(moving)
    levels = (6,) if similarity == "mind" else (12, 6)
    deformation = optimise(known.fixed, moving, start, settings(*levels, similarity=similarity))
    assert known.error(whole(start, deformation)) < left * known.error(start)


def test_volumes_that_are_kept_spread_less_at_little_cost(known, start, found):
    levels = [level.model_copy(update={"keep_volume": 0}) for level in QUICK.levels]
    free = optimise(known.fixed, known.moving, start, QUICK.model_copy(update={"levels": levels}))
    spread = [float(jacobian.determinant(d.warp.displacement)[0][known.inside].log().std()) for d in (found, free)]
    assert spread[0] < 0.9 * spread[1]
    assert known.error(whole(start, found)) < 1.06 * known.error(whole(start, free))


def test_a_level_ends_when_it_no_longer_pays(known, start):
    patient = optimise(known.fixed, known.moving, start, settings(12, iterations=60, patience=4, tolerance=0.0))
    hasty = optimise(known.fixed, known.moving, start, settings(12, iterations=60, patience=4, tolerance=0.2))
    assert len(hasty.trace) < len(patient.trace) <= 61
    losses = [row["loss"] for row in hasty.trace[:-1]]
    assert losses[-5] - losses[-1] < 0.2 * losses[-5]
    assert all(before - now >= 0.2 * before for before, now in zip(losses[:-5], losses[4:-1], strict=True))


def test_the_trace_and_the_progress_tell_the_same(known, start):
    steps = []
    deformation = optimise(known.fixed, known.moving, start, QUICK, progress=steps.append)
    for mm in (12, 6):
        mine = [step for step in steps if step.stage == f"deformable {mm} mm"]
        losses = [row["loss"] for row in deformation.trace if row["level_mm"] == mm]
        assert [step.loss for step in mine[: len(losses)]] == losses
        assert [step.done for step in mine] == sorted(step.done for step in mine)
        assert mine[-1].done == mine[-1].total == 30
    assert deformation.stopped == "every level was run"


def test_a_deadline_that_has_passed_gives_the_identity_and_says_so(known, start):
    deformation = optimise(known.fixed, known.moving, start, QUICK, deadline=time.monotonic() - 1)
    assert not deformation.warp.displacement.any()
    assert not deformation.inverse_warp.displacement.any()
    assert deformation.trace == []
    assert deformation.stopped == "the time budget was spent at 12 mm"


def test_with_no_time_left_the_start_is_the_result(known, start, found):
    """Also one that lies on another grid; and what undoes it."""
    coarse = found.warp.on(known.fixed.grid.coarser(2))
    for begin in (found.warp, coarse):
        kept = optimise(known.fixed, known.moving, start, QUICK, start=begin, deadline=time.monotonic() - 1)
        points = known.points()
        longest = np.linalg.norm(begin(points) - points, axis=1).max()
        apart = np.linalg.norm(kept.warp(points) - begin(points), axis=1)
        assert apart.mean() < 0.01 * longest
        assert apart.max() < 0.1 * longest
        assert inverse_residual(begin, kept.inverse_warp, points).mean() < 0.02 * longest
        assert kept.stopped == "the time budget was spent at 12 mm"


def test_both_sides_go_half_the_way_of_a_start(known, start, found):
    """Swapped, the same start the other way round leads to the inverse."""
    past = time.monotonic() - 1
    still = Affine.identity(3)
    there = optimise(known.fixed, known.fixed, still, QUICK, start=found.warp, deadline=past)
    back = optimise(known.fixed, known.fixed, still, QUICK, start=found.inverse_warp, deadline=past)
    assert inverse_residual(there.warp, back.warp, known.points()).mean() < 0.1


def test_from_the_solution_it_stays_there(known, start, found):
    again = optimise(known.fixed, known.moving, start, settings(6), start=found.warp)
    assert known.error(whole(start, again)) < 1.05 * known.error(whole(start, found))
    points = known.points()
    travelled = np.linalg.norm(found.warp(points) - points, axis=1).mean()
    assert np.linalg.norm(again.warp(points) - found.warp(points), axis=1).mean() < 0.35 * travelled


def test_a_start_that_folds_is_smoothed(known, start, found):
    folded = found.warp.displacement.clone()
    middle = tuple(n // 2 for n in known.fixed.grid.shape)
    folded[(0, 0, *middle)] += 3
    begin = DisplacementField(folded, known.fixed.grid)
    assert float(jacobian.smallest_corner_determinant(folded).min()) < 0
    kept = optimise(known.fixed, known.moving, start, QUICK, start=begin, deadline=time.monotonic() - 1)
    as_it_is = as_deformation(begin, known.fixed.grid, QUICK, "here")
    for deformation in (kept, as_it_is):
        assert float(jacobian.smallest_corner_determinant(deformation.warp.displacement).min()) > 0
        assert inverse_residual(deformation.warp, deformation.inverse_warp, known.points()).mean() < 0.05
    assert as_it_is.stopped == "here"


def test_whoever_watches_sees_each_level_on_its_grid(known, start, found):
    seen = []
    optimise(known.fixed, known.moving, start, QUICK, watch=lambda mm, field: seen.append((mm, field)))
    assert [mm for mm, _ in seen] == [12, 6]
    assert [field.grid.spacing.tolist() for _, field in seen] == [[12.0] * 3, [6.0] * 3]
    errors = [known.error(Composition.of(start, field)) for _, field in seen]
    assert known.error(start) > errors[0] > errors[1]
    assert errors[1] == pytest.approx(known.error(whole(start, found)), rel=0.05)


@pytest.mark.parametrize("which", ["fixed", "moving", "both"])
def test_what_a_mask_excludes_has_no_influence_at_all(known, start, which):
    """A lesion is masked out: whatever it looks like, the same field to the last bit."""
    results = []
    for value in (0.0, 1.2):
        images, masks = {"fixed": known.fixed, "moving": known.moving}, {}
        for role in images if which == "both" else [which]:
            image = images[role]
            lesion = tuple(slice(n // 3 + 1, n // 2) for n in image.grid.shape)
            data, mask = image.data.clone(), torch.ones(image.grid.shape)
            data[lesion], mask[lesion] = value, 0
            images[role], masks[f"{role}_mask"] = Image(data, image.grid), Image(mask, image.grid)
        results.append(optimise(*images.values(), start, settings(12, 6, iterations=10), **masks))
        unmasked = optimise(*images.values(), start, settings(12, 6, iterations=10))
    assert torch.equal(results[0].warp.displacement, results[1].warp.displacement)
    assert results[0].trace == results[1].trace
    assert not torch.equal(unmasked.warp.displacement, results[1].warp.displacement)


def test_of_two_masks_only_what_both_trust_moves(quarters):
    deformation = optimise(
        quarters.fixed, quarters.moving, still(quarters.fixed.grid), settings(4, 2, iterations=40), **quarters.masks
    )
    moved = {name: deformation.warp.millimetres()[place].mean(0) for name, place in quarters.places.items()}
    wanted = torch.from_numpy(quarters.truth["low left"]).float()
    assert (moved.pop("low left") - wanted).norm() < 0.5 * wanted.norm()
    assert all(float(length.norm()) < 0.2 * wanted.norm() for length in moved.values())


def test_a_mask_of_ones_changes_next_to_nothing(known, start, found):
    ones = Image(torch.ones(known.fixed.grid.shape), known.fixed.grid)
    masked = optimise(known.fixed, known.moving, start, QUICK, fixed_mask=ones)
    errors = [known.error(whole(start, deformation)) for deformation in (masked, found)]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


def test_a_lesion_behind_a_mask_does_less_harm(known, start):
    image = known.fixed
    lesion = tuple(slice(n // 3, n // 3 + n // 6) for n in image.grid.shape)
    data, mask = image.data.clone(), torch.ones(image.grid.shape)
    data[lesion], mask[lesion] = 1.2, 0
    sick, mask = Image(data, image.grid), Image(mask, image.grid)
    errors = [known.error(whole(start, optimise(sick, known.moving, start, QUICK, fixed_mask=m))) for m in (mask, None)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    "shape",
    [(40, 44), (64,), (30, 32, 1), (5, 6, 7), (3, 40, 40), (1, 1, 1)],
    ids=["2D", "1D", "one slice", "tiny", "thin", "one voxel"],
)
def test_grids_of_any_size_and_dimension(shape):
    grid = Grid.isotropic(shape)
    fixed, other = Image(blobs(shape), grid), Image(blobs(shape).roll(1, 0), grid)
    deformation = optimise(fixed, other, still(grid), settings(4, 2, 1, iterations=10))
    assert deformation.warp.grid == grid
    for field in (deformation.warp, deformation.inverse_warp):
        assert torch.isfinite(field.displacement).all()


def test_two_dimensions_are_aligned_as_three_are(template):
    middle = template.brain.data.shape[2] // 2
    grid = Grid.isotropic(template.brain.grid.shape[:2], 3)
    fixed = Image(template.brain.data[:, :, middle].contiguous(), grid)
    i, j = np.meshgrid(*map(np.arange, grid.shape), indexing="ij")
    vectors = np.stack([4 * np.sin(j / 9), 4 * np.cos(i / 8)], -1)
    truth = DisplacementField.from_millimetres(vectors, grid)
    deformation = optimise(fixed, fixed.warp(truth.inverse()), still(grid), settings(12, 6, 3))
    points = (fixed.data > 0.1).nonzero().numpy() * 3.0
    before = np.linalg.norm(points - truth(points), axis=1).mean()
    after = np.linalg.norm(deformation.warp(points) - truth(points), axis=1).mean()
    assert after < 0.5 * before


def test_thick_slices(known):
    """Voxels of 3 x 3 x 12 mm, as clinical scans have them: a level leaves the thick axis alone."""
    grid = known.fixed.grid.coarser((1, 1, 4))
    fixed, moving = (image.warp(still(grid), grid) for image in (known.fixed, known.fixed))
    field = DisplacementField.from_millimetres(np.full((*grid.shape, 3), (3.0, -2.0, 0.0)), grid)
    moving = fixed.warp(field.inverse())
    deformation = optimise(fixed, moving, still(grid), settings(12, 6, 3))
    points = (fixed.data > 0.2).nonzero().numpy() @ grid.linear.T + grid.affine[:3, 3]
    assert np.linalg.norm(deformation.warp(points) - field(points), axis=1).mean() < 1
    assert float(jacobian.smallest_corner_determinant(deformation.warp.displacement).min()) > 0


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_a_value_that_is_not_a_number_is_an_error_in_words(known, start, which):
    images = {"fixed": known.fixed, "moving": known.moving}
    data = images[which].data.clone()
    data[tuple(n // 2 for n in data.shape)] = float("nan")
    images[which] = Image(data, images[which].grid)
    with pytest.raises(RegistrationError, match="the dissimilarity became nan at 12 mm: check the intensities"):
        optimise(*images.values(), start, QUICK)


def test_a_subject_that_would_be_many_times_the_other_is_refused_with_both_sizes():
    """As where one header says mm and the other cm: the box of both, in the fixed image's voxels, fills any memory."""
    data = torch.zeros(40, 40, 40)
    data[8:32, 8:32, 8:32] = blobs((24, 24, 24)) + 0.1
    fixed, moving = (Image(data, Grid(data.shape, np.diag([mm, mm, mm, 1.0])), f"{mm}.nii") for mm in (1, 10))
    with pytest.raises(RegistrationError, match=r"\d times as long .* 1.nii shows is 24 mm .* 10.nii shows 240 mm"):
        optimise(fixed, moving, Affine.identity(3), QUICK)


@pytest.mark.parametrize("shape", [(24, 26, 28), (40, 44)], ids=["3D", "2D"])
def test_mending_undoes_a_fold_and_leaves_the_rest_as_it_is(shape):
    field = torch.stack([blobs(shape, seed) for seed in range(len(shape))])[None]
    assert mended(field, 0.3) is field
    middle = tuple(n // 2 for n in shape)
    folded = field.clone()
    folded[(0, 0, *middle)] += 1.6
    assert float(jacobian.smallest_corner_determinant(folded).min()) < 0
    repaired = folded
    for _ in range(5):
        repaired = mended(repaired, 0.3)
    assert float(jacobian.smallest_corner_determinant(repaired).min()) > 0
    index = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    far = (index - torch.tensor(middle).view(-1, *[1] * len(shape))).abs().amax(0) > 9
    assert far.any()
    assert torch.equal(repaired[0][:, far], field[0][:, far])
