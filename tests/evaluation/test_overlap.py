import time
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_dice

from stepwarp.errors import InputError
from stepwarp.evaluation.overlap import dice, label_changes, label_ids, mean_dice, millilitres, overlaps
from stepwarp.geometry import Grid, LabelMap


def label_map(values, spacing=1.0):
    values = torch.as_tensor(values)
    return LabelMap(values, Grid.isotropic(values.shape, spacing), "labels.nii.gz")


def random_pair(ids, shape=(12, 14, 10), seed=0):
    random = np.random.default_rng(seed)
    fixed = random.choice(ids, shape)
    return fixed, np.where(random.random(shape) < 0.3, random.choice(ids, shape), fixed)


def test_agrees_with_simpleitk():
    fixed, warped = random_pair([0, 1, 2, 7, 200])
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(*(sitk.GetImageFromArray(a.astype(np.int32)) for a in (fixed, warped)))
    scores = dice(label_map(fixed), label_map(warped))
    assert scores == pytest.approx({n: measures.GetDiceCoefficient(n) for n in (1, 2, 7, 200)})


def test_jaccard_agrees_with_simpleitk_and_volumes_are_millilitres():
    fixed, warped = random_pair([0, 1, 2, 7])
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(*(sitk.GetImageFromArray(a.astype(np.int32)) for a in (fixed, warped)))
    found = overlaps(label_map(fixed, 2.0), label_map(warped, 2.0), ignore=[7])
    assert {n: o.jaccard for n, o in found.items()} == pytest.approx(
        {n: measures.GetJaccardCoefficient(n) for n in (1, 2)}
    )
    grid = Grid(fixed.shape, np.diag([-2.0, 3.0, 0.5, 1.0]))
    assert millilitres(found[1].fixed, grid) == pytest.approx((fixed == 1).sum() * 3.0 / 1000)


def test_the_labels_that_occur():
    assert label_ids(label_map([[0, 4, 4, -1]])) == {4, -1}
    assert label_ids(label_map([[0, 0]])) == frozenset()


def test_agrees_with_monai():
    fixed, warped = random_pair([0, 1, 2, 3])
    one_hot = [torch.stack([torch.from_numpy(a == n) for n in range(4)])[None] for a in (warped, fixed)]
    expected = compute_dice(*one_hot, include_background=False)
    scores = dice(label_map(fixed), label_map(warped))
    assert list(scores.values()) == pytest.approx(expected.squeeze().tolist())


@pytest.mark.parametrize("offset", [100, 614_454_000])
def test_large_ids_score_as_small_ones(offset):
    fixed, warped = random_pair([0, 1, 2, 3])
    large = [np.where(a > 0, a.astype(np.int64) + offset, 0) for a in (fixed, warped)]
    expected = {n + offset: score for n, score in dice(label_map(fixed), label_map(warped)).items()}
    assert dice(*map(label_map, large)) == expected


@given(st.integers(0, 2**32 - 1))
def test_symmetric_and_one_for_itself(seed):
    fixed, warped = map(label_map, random_pair([-3, 0, 1, 5], shape=(4, 3, 5), seed=seed))
    assert dice(fixed, warped) == dice(warped, fixed)
    assert set(dice(fixed, fixed).values()) <= {1.0}
    assert all(0 <= score <= 1 for score in dice(fixed, warped).values())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32])
def test_every_dtype_of_a_label_file(dtype):
    fixed, warped = random_pair([0, 1, 200])
    expected = dice(label_map(fixed), label_map(warped))
    assert dice(label_map(torch.from_numpy(fixed).to(dtype)), label_map(torch.from_numpy(warped).to(dtype))) == expected


def test_a_label_in_one_map_only_scores_zero_and_ignored_ones_are_left_out():
    fixed, warped = label_map([[0, 1, 1, 2]]), label_map([[0, 1, 3, 9]])
    assert dice(fixed, warped) == {1: pytest.approx(2 / 3), 2: 0.0, 3: 0.0, 9: 0.0}
    assert dice(fixed, warped, ignore=[2, 9]) == {1: pytest.approx(2 / 3), 3: 0.0}


def test_mean():
    assert mean_dice({1: 0.5, 9: 1.0}) == 0.75
    with pytest.raises(InputError, match="no label"):
        mean_dice({})


def test_lost_and_created_labels():
    changes = label_changes(label_map([[0, 1, 2, 5]]), label_map([[1, 1], [7, 0]]))
    assert (changes.lost, changes.created) == ((2, 5), (7,))


def test_different_grids_are_refused():
    with pytest.raises(InputError, match="different grids"):
        dice(label_map(torch.zeros(3, 3, dtype=torch.int)), label_map(torch.zeros(3, 3, dtype=torch.int), 2.0))


def test_light_at_full_size():
    fixed, warped = map(label_map, random_pair(np.arange(138), shape=(170, 200, 176)))
    tracemalloc.start()
    start = time.process_time()
    dice(fixed, warped)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 500e6
