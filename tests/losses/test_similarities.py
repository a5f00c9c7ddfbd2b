"""What every dissimilarity promises, and the values of the simple ones."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor

from stepwarp.catalogue import names
from stepwarp.config import SIMILARITIES
from stepwarp.losses.similarities.mi import MutualInformation
from stepwarp.losses.similarities.mind import MIND
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.losses.similarity import find_similarity

each_measure = pytest.mark.parametrize("name", names(SIMILARITIES))


def shifted(image: Tensor, by: int, margin: int = 4) -> Tensor:
    """The image's interior, moved along the first axis: no values have to be made up at the border."""
    inner = [slice(margin, n - margin) for n in image.shape[3:]]
    return image[(..., slice(margin + by, image.shape[2] - margin + by), *inner)]


@each_measure
def test_smallest_where_images_are_aligned_and_larger_the_further_apart(name: str, shape: tuple[int, ...], image):
    whole, measure = image(shape), find_similarity(name)()
    here = shifted(whole, 0)
    values = {by: float(measure(here, shifted(whole, by))) for by in range(-3, 4)}
    assert values[0] < min(values[1], values[-1]) < min(values[2], values[-2])
    assert min(values, key=lambda by: values[by]) == 0
    if name != "mi":  # whose histogram is blurred by its windows
        assert values[0] == pytest.approx(0, abs=2e-2)


@each_measure
def test_what_an_image_has_with_itself_is_as_the_documentation_says(name: str):
    values = torch.rand(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    values[..., :12] = 0.5  # windows in which there is nothing to compare
    least, most = {"lncc": (0.3, 0.5), "mi": (0.2, 0.4)}.get(name, (-1e-6, 1e-4))
    assert least < float(find_similarity(name)()(values, values)) < most


@each_measure
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_against_finite_differences(name: str, weighted: bool, shape: tuple[int, ...], image, mask):
    """In float64, in a random direction and along one voxel."""
    fixed, moved = image(shape).double(), image(shape, 1).double()
    weight, measure = mask(shape).double() if weighted else None, find_similarity(name)()
    value, *gradients = measure.value_and_gradients(fixed, moved, weight)
    assert float(value) == pytest.approx(float(measure(fixed, moved, weight)), abs=1e-12)
    direction = torch.randn(fixed.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    one_voxel = torch.zeros_like(direction)
    one_voxel[(..., *[n // 2 for n in shape])] = 1
    for n, gradient in enumerate(gradients):
        for d in (direction, one_voxel):
            step = 1e-7 * d
            # MIND and MI hold some of their terms fixed, or have kinks, that a step this small does not meet.
            ahead = measure(*((fixed + step, moved) if n == 0 else (fixed, moved + step)), weight)
            behind = measure(*((fixed - step, moved) if n == 0 else (fixed, moved - step)), weight)
            slope = float(ahead - behind) / 2e-7
            assert float((gradient * d).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-8)


@each_measure
def test_a_voxel_of_weight_zero_has_no_influence(name: str, shape: tuple[int, ...], image, mask):
    fixed, moved, weight, measure = image(shape), image(shape, 1), mask(shape), find_similarity(name)()
    value, *gradients = measure.value_and_gradients(fixed, moved, weight)
    wild = torch.where(weight > 0, 0, 300 * torch.randn(fixed.shape, generator=torch.Generator().manual_seed(4)))
    again, *after = measure.value_and_gradients(fixed + wild, moved - 2 * wild, weight)
    assert float(again) == pytest.approx(float(value), rel=1e-4)
    for gradient, other in zip(gradients, after, strict=True):
        assert (other[weight == 0] == 0).all()
        torch.testing.assert_close(other, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))
    unmasked, *_ = measure.value_and_gradients(fixed + wild, moved - 2 * wild)
    assert float(unmasked) != pytest.approx(float(value), rel=1e-2)


@each_measure
def test_full_weights_are_no_weights(name: str, shape: tuple[int, ...], image):
    fixed, moved, measure = image(shape), image(shape, 1), find_similarity(name)()
    plain, weighted = (measure.value_and_gradients(fixed, moved, w) for w in (None, torch.ones_like(fixed)))
    assert float(weighted[0]) == pytest.approx(float(plain[0]), rel=1e-4)
    torch.testing.assert_close(weighted[2], plain[2], rtol=1e-3, atol=1e-3 * float(plain[2].abs().max()))


@each_measure
def test_without_any_weight_there_is_no_value(name: str, shape: tuple[int, ...], image):
    """NaN rather than an error: a start of a search that moves one image out of the other's view is one of many."""
    nowhere = torch.zeros(1, 1, *shape)
    value, *_ = find_similarity(name)().value_and_gradients(image(shape), image(shape, 1), nowhere)
    assert np.isnan(value)


@each_measure
def test_images_themselves_are_left_alone(name: str, image):
    fixed, moved = image((12, 13, 11)), image((12, 13, 11), 1)
    before = fixed.clone(), moved.clone()
    find_similarity(name)().value_and_gradients(fixed, moved)
    assert not fixed.requires_grad
    assert torch.equal(fixed, before[0])
    assert torch.equal(moved, before[1])


def test_ssd_and_ncc_against_numpy(shape: tuple[int, ...], image, mask):
    fixed, moved, weight = image(shape), image(shape, 1), mask(shape)
    f, m, w = (t.double().numpy().ravel() for t in (fixed, moved, weight))
    assert float(SSD()(fixed, moved)) == pytest.approx(np.mean((f - m) ** 2))
    assert float(SSD()(fixed, moved, weight)) == pytest.approx(np.average((f - m) ** 2, weights=w))
    assert float(NCC()(fixed, moved)) == pytest.approx(1 - np.corrcoef(f, m)[0, 1])
    covariance = np.cov(f, m, aweights=w)
    correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert float(NCC()(fixed, moved, weight)) == pytest.approx(1 - correlation)


@pytest.mark.parametrize("change", [lambda x: 1 - x, lambda x: 0.5 * x + 0.3])
def test_ncc_knows_linear_contrast(change, shape: tuple[int, ...], image):
    fixed, moved = image(shape), image(shape, 1)
    sign = 1 if float(change(torch.tensor(1.0)) - change(torch.tensor(0.0))) > 0 else -1
    assert float(NCC()(fixed, change(moved))) - 1 == pytest.approx(sign * (float(NCC()(fixed, moved)) - 1), abs=1e-5)


def test_information_of_whole_bins(shape: tuple[int, ...]):
    """Where every intensity is the centre of a bin, the windows are the bins and scikit-learn agrees."""
    bins = 8
    random = torch.Generator().manual_seed(0)
    fixed = torch.randint(0, bins, (1, 1, *shape), generator=random)
    moved = torch.where(torch.rand(fixed.shape, generator=random) < 0.6, 7 - fixed, fixed * fixed % bins)
    f, m = fixed.flatten().numpy(), moved.flatten().numpy()
    expected = 1 - mutual_info_score(f, m) / min(mutual_info_score(f, f), mutual_info_score(m, m))
    value = MutualInformation(bins)(fixed / (bins - 1), moved / (bins - 1))
    assert float(value) == pytest.approx(expected, abs=1e-6)
    assert float(MutualInformation(bins)(fixed / (bins - 1), fixed / (bins - 1))) == pytest.approx(0, abs=1e-6)


def test_information_is_blind_to_contrast(shape: tuple[int, ...], image):
    fixed, moved = image(shape), image(shape, 1)
    measure = MutualInformation()
    plain = float(measure(fixed, moved))
    assert float(measure(fixed, 1 - moved)) == pytest.approx(plain, abs=1e-5)
    # A curve moves intensities across bins: the same but for the width of the bins.
    assert float(measure(fixed, fixed.square())) == pytest.approx(float(measure(fixed, fixed)), abs=0.15)
    assert float(measure(fixed, fixed.square())) < 0.5 * plain


def test_information_counts_what_lies_beyond_in_the_last_bins(shape: tuple[int, ...], image):
    fixed, moved = 1.5 * image(shape) - 0.2, image(shape, 1)
    measure = MutualInformation()
    assert float(measure(fixed, moved)) == pytest.approx(float(measure(fixed.clamp(0, 1), moved)))
    _, gradient, _ = measure.value_and_gradients(fixed, moved)
    assert (gradient[(fixed < 0) | (fixed > 1)] == 0).all()


def test_self_similarity_is_blind_to_inverted_contrast(shape: tuple[int, ...], image):
    fixed, moved, measure = image(shape), image(shape, 1), MIND()
    assert float(measure(fixed, 1 - fixed)) == pytest.approx(0, abs=1e-6)
    assert float(measure(fixed, 0.4 * fixed + 0.3)) == pytest.approx(0, abs=1e-4)
    assert float(measure(fixed, moved)) > 0.05


@pytest.mark.parametrize("name", ["lncc", "ncc", "mind", "mi"])
def test_flat_images_leave_no_wild_gradient(name: str, shape: tuple[int, ...], image):
    """Nothing to see in one image, or in both: as in the air around a head."""
    flat, measure = torch.full((1, 1, *shape), 0.25), find_similarity(name)()
    for pair in ((flat, flat), (flat, image(shape)), (image(shape), flat)):
        value, *gradients = measure.value_and_gradients(*pair)
        assert np.isfinite(value)
        assert all(g.abs().sum() < 1e5 for g in gradients)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_measure
@pytest.mark.parametrize("weighted", [False, True])
def test_cuda_agrees_with_the_cpu(name: str, weighted: bool, shape: tuple[int, ...], image, mask):
    given = [image(shape), image(shape, 1), mask(shape) if weighted else None]
    value, *gradients = find_similarity(name)().value_and_gradients(*given)
    on_cuda, *others = find_similarity(name)().value_and_gradients(*[t if t is None else t.cuda() for t in given])
    assert float(on_cuda) == pytest.approx(float(value), rel=1e-4)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other.cpu(), gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))
