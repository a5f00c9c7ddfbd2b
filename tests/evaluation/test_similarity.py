import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stepwarp.evaluation.similarity import similarities
from stepwarp.geometry import Grid, Image


def image(seed, shape=(20, 22, 18)):
    values = gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
    values = (values - values.min()) / (values.max() - values.min())
    return Image(torch.from_numpy(values).float(), Grid.isotropic(shape))


def test_the_same_image_is_most_alike_and_shares_about_seven_tenths_of_its_information():
    a, b = image(0), image(1)
    inside = torch.ones(a.grid.shape, dtype=torch.bool)
    same, other = similarities(a, a, inside), similarities(a, b, inside)
    assert same["ncc"] == pytest.approx(1, abs=1e-4)
    assert same["lncc"] == pytest.approx(1, abs=1e-2)
    assert 0.65 < same["mutual_information"] < 0.8
    assert all(other[key] < same[key] - 0.3 for key in same)


def test_correlation_is_that_of_numpy_and_only_the_mask_counts():
    a, b = image(0), image(1)
    inside = torch.zeros(a.grid.shape, dtype=torch.bool)
    inside[5:15, 5:15, 5:15] = True
    expected = np.corrcoef(a.data[inside], b.data[inside])[0, 1]
    assert similarities(a, b, inside)["ncc"] == pytest.approx(expected, abs=1e-4)
    spoilt = Image(torch.where(inside, b.data, 0.9), b.grid)
    assert similarities(a, spoilt, inside) == pytest.approx(similarities(a, b, inside), abs=1e-4)
