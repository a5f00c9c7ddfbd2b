"""The windowed correlation against its definition, MONAI's and that of ANTs."""

import ants
import numpy as np
import pytest
import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from scipy.ndimage import gaussian_filter, uniform_filter

from stepwarp.losses.similarities.lncc import LNCC


def plain(fixed: np.ndarray, moved: np.ndarray, weight: np.ndarray, radius: int, epsilon: float) -> float:
    """Window by window, as the definition reads."""
    total = 0.0
    for index in np.ndindex(fixed.shape):
        window = tuple(slice(max(i - radius, 0), i + radius + 1) for i in index)
        w, f, m = weight[window], fixed[window], moved[window]
        if weight[index] == 0:
            continue
        f, m = f - np.average(f, weights=w), m - np.average(m, weights=w)
        ff, mm, fm = (w * f * f).sum(), (w * m * m).sum(), (w * f * m).sum()
        total += weight[index] * fm**2 / ((ff + epsilon * w.sum()) * (mm + epsilon * w.sum()))
    return 1 - total / weight.sum()


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_against_the_definition(radius: int, weighted: bool, image, mask):
    shape = (9, 8, 7)
    fixed, moved = image(shape), image(shape, 1)
    weight = mask(shape) if weighted else None
    arrays = [t.double().numpy()[0, 0] for t in (fixed, moved, mask(shape) if weighted else torch.ones_like(fixed))]
    expected = plain(*arrays, radius, 1e-3)
    measure = LNCC(radius, 1e-3)
    assert float(measure(fixed, moved, weight)) == pytest.approx(expected, abs=1e-5)
    assert float(measure.value_and_gradients(fixed, moved, weight)[0]) == pytest.approx(expected, abs=1e-5)


def test_weights_of_any_type(image, mask):
    fixed, moved = image((9, 8, 7)), image((9, 8, 7), 1)
    weight = (mask((9, 8, 7)) > 0.5).float()
    expected = LNCC().value_and_gradients(fixed, moved, weight)
    for dtype in (torch.bool, torch.uint8, torch.float64):
        value, _, gradient = LNCC().value_and_gradients(fixed, moved, weight.to(dtype))
        assert float(value) == pytest.approx(float(expected[0]))
        torch.testing.assert_close(gradient, expected[2])


def test_against_monai(shape: tuple[int, ...], image):
    """1 + MONAI's, for images that fade out before the border, beyond which MONAI counts zeros as data."""
    pad = [6] * (2 * len(shape))
    fixed, moved = (torch.nn.functional.pad(image(shape, n), pad).double() for n in (0, 1))
    theirs = LocalNormalizedCrossCorrelationLoss(len(shape), kernel_size=5, smooth_nr=0, smooth_dr=1e-8)
    ours = LNCC(radius=2, epsilon=1e-12)
    assert float(ours(fixed, moved)) == pytest.approx(1 + float(theirs(moved, fixed)), abs=1e-5)


def test_windows_at_the_border_are_cut_off_as_by_ants_and_not_filled_with_zeros_as_by_monai():
    """Both as they define it, in numpy; the images do not fade out."""
    fixed, moved = (gaussian_filter(np.random.default_rng(n).random((20, 22, 18)), 1.0) + 0.3 for n in (0, 1))
    moved = fixed + 0.5 * moved

    def correlation(size):
        f, m, ff, mm, fm = (
            uniform_filter(v, 5, mode="constant") * 125
            for v in (fixed, moved, fixed * fixed, moved * moved, fixed * moved)
        )
        return ((fm - f * m / size) ** 2 / ((ff - f * f / size) * (mm - m * m / size))).mean()

    cut_off = correlation(uniform_filter(np.ones(fixed.shape), 5, mode="constant") * 125)
    filled = correlation(125)
    f, m = (torch.from_numpy(v)[None, None] for v in (fixed, moved))
    assert 1 - float(LNCC(radius=2, epsilon=1e-12)(f, m)) == pytest.approx(cut_off, abs=1e-4)
    theirs = LocalNormalizedCrossCorrelationLoss(3, kernel_size=5, smooth_nr=0, smooth_dr=1e-8)
    assert -float(theirs(m, f)) == pytest.approx(filled, abs=1e-4)
    images = ants.from_numpy(fixed), ants.from_numpy(moved)
    by_ants = -ants.image_similarity(*images, metric_type="ANTSNeighborhoodCorrelation")
    assert by_ants == pytest.approx(cut_off, abs=1e-3)
    assert filled > cut_off + 0.05


@pytest.mark.parametrize(("scale", "offset"), [(1, 0.3), (0.4, 0.5), (-0.8, 0.9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blind_to_linear_contrast_up_to_the_border(scale: float, offset: float, dtype, shape, image):
    fixed, moved = image(shape).to(dtype), image(shape, 1).to(dtype)
    measure = LNCC(epsilon=1e-9)
    value, to_fixed, _ = measure.value_and_gradients(fixed, moved)
    other, to_fixed_other, _ = measure.value_and_gradients(fixed, scale * moved + offset)
    assert float(other) == pytest.approx(float(value), abs=1e-3)
    torch.testing.assert_close(to_fixed_other, to_fixed, rtol=0, atol=0.02 * float(to_fixed.abs().max()))


def test_epsilon_decides_how_faint_a_structure_counts(image):
    structure, other = image((16, 16, 16)), image((16, 16, 16), 1)
    faint = 0.5 + 1e-3 * (structure - structure.mean())
    unlike = [float(LNCC(epsilon=epsilon)(faint, structure)) for epsilon in (1e-9, 1e-6, 1e-3)]
    assert unlike[0] < 0.1 < unlike[1] < unlike[2]
    assert float(LNCC(epsilon=1e-9)(faint, other)) > unlike[0] + 0.5
