"""Dissimilarities of batches, in a training step."""

import pytest
import torch
from torch import Tensor

from stepwarp.catalogue import names
from stepwarp.config import SIMILARITIES
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.losses.similarity import find_similarity

SHAPE = (11, 13, 12)
each_measure = pytest.mark.parametrize("name", names(SIMILARITIES))


@pytest.fixture
def batch(image, mask) -> tuple[Tensor, Tensor, Tensor]:
    """Three pairs of unlike contrast, and weights that leave each another part."""
    fixed = torch.cat([scale * image(SHAPE, n) for n, scale in enumerate((1.0, 0.5, 0.2))])
    moved = torch.cat([image(SHAPE, n + 3) for n in range(3)])
    weight = torch.cat([mask(SHAPE), mask(SHAPE).flip(2), torch.ones(1, 1, *SHAPE)])
    return fixed, moved, weight


@each_measure
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_is_the_mean_of_its_pairs(name: str, weighted: bool, batch):
    fixed, moved, weight = batch
    measure, w = find_similarity(name)(), weight if weighted else None
    single = [
        measure.value_and_gradients(fixed[n : n + 1], moved[n : n + 1], weight[n : n + 1] if weighted else None)
        for n in range(3)
    ]
    expected = torch.stack([value for value, *_ in single]).float()
    torch.testing.assert_close(measure.values(fixed, moved, w).float(), expected, rtol=1e-4, atol=1e-6)
    value, to_fixed, to_moved = measure.value_and_gradients(fixed, moved, w)
    assert float(value) == pytest.approx(float(expected.mean()), rel=1e-4)
    for n, gradient in ((1, to_fixed), (2, to_moved)):
        others = torch.cat([result[n] for result in single]) / 3
        torch.testing.assert_close(gradient, others, rtol=1e-3, atol=1e-4 * float(others.abs().max()))


@each_measure
def test_one_fixed_image_serves_a_batch(name: str, batch):
    fixed, moved, weight = batch
    measure = find_similarity(name)()
    expected = measure(fixed[:1].expand_as(moved), moved, weight[:1].expand_as(moved))
    torch.testing.assert_close(measure(fixed[:1], moved, weight[:1]), expected)


@each_measure
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_each_pair_by_itself(name: str, weighted: bool, batch):
    fixed, moved, weight = batch
    measure, w = find_similarity(name)(), weight if weighted else None
    values, gradient = measure.values_with_gradient(fixed[:1], moved, w)
    torch.testing.assert_close(values, measure.values(fixed[:1], moved, w))
    for n in range(3):
        alone = measure.value_and_gradients(fixed[:1], moved[n : n + 1], w[n : n + 1] if weighted else None)[2]
        torch.testing.assert_close(gradient[n : n + 1], alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


@each_measure
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [SHAPE, (9, 12)], ids=str)
def test_prepared_for_many_moving_images(name: str, weighted: bool, shape: tuple[int, ...], image, mask):
    fixed, weight, measure = image(shape), mask(shape) if weighted else None, find_similarity(name)()
    prepared = measure.prepare(fixed, weight)
    for moved in (image(shape, 1), torch.cat([image(shape, 2), image(shape, 3)])):
        expected, _, gradient = measure.value_and_gradients(fixed.expand_as(moved), moved, weight)
        moved = moved.clone().requires_grad_()
        value = prepared(moved)
        value.backward()
        assert float(value) == pytest.approx(float(expected), abs=1e-5)
        torch.testing.assert_close(moved.grad, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@each_measure
def test_gradients_scale_with_what_follows(name: str, batch):
    fixed, moved, _ = batch
    measure = find_similarity(name)()
    once, thrice = (moved.clone().requires_grad_() for _ in range(2))
    measure(fixed, once).backward()
    (3 * measure(fixed, thrice)).backward()
    torch.testing.assert_close(thrice.grad, 3 * once.grad)


def test_a_weight_is_constant(batch):
    fixed, moved, weight = batch
    weight.requires_grad_()
    moved.requires_grad_()
    LNCC()(fixed, moved, weight).backward()
    assert weight.grad is None
    assert moved.grad.abs().sum() > 0


def test_channels_count_alike(batch):
    fixed, moved, weight = batch
    fixed, moved = (t.transpose(0, 1).contiguous().requires_grad_() for t in (fixed, moved))
    weight = weight.transpose(0, 1)
    value = LNCC()(fixed, moved, weight)
    expected = torch.stack([LNCC()(fixed[:, [c]], moved[:, [c]], weight[:, [c]]) for c in range(3)]).mean()
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(v, (fixed, moved)) for v in (value, expected))
    torch.testing.assert_close(ours, theirs)
