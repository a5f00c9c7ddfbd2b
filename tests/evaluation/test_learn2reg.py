import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from stepwarp.evaluation.learn2reg import centre_errors, dice, hd95, landmark_errors, spread_and_folds, summary

SHAPE = (20, 18, 16)


def patches(seed, labels=4):
    """Smooth patches, some of which reach the faces."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(labels, *SHAPE)), (0, 3, 3, 3))
    return noise.argmax(0).astype(np.int16)


def box(shape=SHAPE, side=4):
    labels = np.zeros(shape, np.int16)
    labels[2 : 2 + side, 2 : 2 + side, 2 : 2 + side] = 1
    return labels


def test_surfaces_are_weighed_by_their_area():
    """A cube of 4 voxels has 6 x 9 corners of area 1 within its faces, 12 x 3 of 1 / sqrt 2 on its edges and 8 of
    sqrt 3 / 8, those of a voxel alone: three such voxels are 6.0 % of all, two are 4.1 %, although one of them has
    8 corners to the cube's 98."""
    fixed, found = box(), []
    for count in (2, 3):
        warped = box()
        for place in ((17, 3, 3), (17, 3, 8), (17, 8, 3))[:count]:
            warped[place] = 1
        found += hd95(fixed, fixed, warped, [1])
    share = [n * 3**0.5 / (54 + 36 / 2**0.5 + (n + 1) * 3**0.5) for n in (2, 3)]
    assert share[0] < 0.05 < share[1]
    assert found[0] == 0
    assert found[1] > 10


def test_distances_are_in_voxels_between_corners_of_voxels():
    fixed, warped = box(), np.roll(box(), 3, axis=0)
    assert hd95(fixed, fixed, warped, [1]) == [3.0]
    assert hd95(warped, fixed, fixed, [1]) == [3.0]
    assert hd95(fixed, fixed, fixed, [1]) == [0.0]


def test_agrees_with_the_package_that_the_script_uses():
    theirs = pytest.importorskip("surface_distance")
    fixed, warped = patches(0), patches(1)
    found = hd95(fixed, fixed, warped, [0, 1, 2, 3])
    for n, distance in enumerate(found):
        between = theirs.compute_surface_distances(fixed == n, warped == n, np.ones(3))
        assert distance == theirs.compute_robust_hausdorff(between, 95.0)


def test_labels_that_a_map_lacks_have_no_score_and_lost_ones_the_worst():
    fixed, moving = box(), box()
    fixed[10, 10, 10], moving[10, 10, 10], fixed[12, 12, 12], moving[12, 12, 12] = 2, 3, 4, 4
    warped = box()
    overlap, distance = (measure(fixed, moving, warped, [1, 2, 3, 4]) for measure in (dice, hd95))
    np.testing.assert_equal(overlap, [1.0, np.nan, np.nan, 0.0])
    np.testing.assert_equal(distance, [0.0, np.nan, np.nan, np.inf])


def test_the_spread_is_taken_where_the_mask_is_one():
    """Whatever else a mask holds is no 1 to the script. Half of the image stretches, half does not."""
    displacement = np.zeros((3, *SHAPE))
    displacement[0, 10:] = np.arange(10).reshape(-1, 1, 1) / 2
    mask = np.zeros(SHAPE)
    mask[:8], mask[12:] = 1, 2
    assert spread_and_folds(displacement, mask) == (pytest.approx(0, abs=1e-12), 0)
    assert spread_and_folds(displacement)[0] > 0.02
    assert np.isnan(spread_and_folds(displacement, 0 * mask)[0])


def test_nothing_folds():
    mirrored = np.zeros((3, *SHAPE))
    mirrored[0] = -2.0 * np.arange(SHAPE[0]).reshape(-1, 1, 1)
    assert spread_and_folds(mirrored) == (pytest.approx(0), 0)


def test_points_are_displaced_by_splines_and_measured_by_the_moving_spacing():
    displacement = np.zeros((3, *SHAPE))
    displacement[0] = (np.arange(SHAPE[1]) ** 2 / 10).reshape(1, -1, 1)
    at = np.array([[5.0, 8.5, 4.0], [5.0, 25.0, 4.0]])  # between voxels, and beyond the image
    errors = landmark_errors(displacement, at, at, (2.0, 1.0, 1.0))
    np.testing.assert_allclose(errors, [2 * 8.5**2 / 10, 0], atol=1e-3)  # linear would be 2 * 7.25


def test_landmarks_in_maps_are_their_centres():
    fixed = np.zeros(SHAPE, np.int16)
    fixed[2:5, 3, 3], fixed[10, 10, 10], fixed[14, 2, 2] = 1, 2, 7
    warped = np.zeros(SHAPE, np.int16)
    warped[3, 3, 3], warped[10, 13, 14], warped[0, 0, 0] = 1, 2, 9
    np.testing.assert_equal(centre_errors(fixed, warped), [0, 5, np.nan])


def test_both_quantiles_that_the_challenge_calls_30():
    found = summary([1.0, 2.0, 3.0, 4.0])
    assert found == pytest.approx({"mean": 2.5, "std": 1.25**0.5, "30": 1.9, "70": 3.1})
