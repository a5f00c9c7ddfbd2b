"""Many linear maps at once: as each alone, with the derivatives that finite differences have."""

import copy

import pytest
import torch

from stepwarp.geometry import Image
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.losses.similarities.mi import MutualInformation
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.registrar import affine
from stepwarp.registrar.linear_levels import BothWays, LinearLevel, LinearPair, Together
from stepwarp.registrar.linear_maps import LinearMaps
from stepwarp.registrar.subject import ImagedSubject

KINDS = ("rigid", "similarity", "affine")


def inner(image):
    """A mask without an image's outermost fifth."""
    mask = torch.zeros(image.grid.shape)
    mask[tuple(slice(n // 5, n - n // 5) for n in image.grid.shape)] = 1
    return Image(mask, image.grid)


@pytest.fixture
def pair(known):
    """Without masks: with one of them the weights move, which the derivatives leave out."""
    return LinearPair(ImagedSubject(known.fixed), ImagedSubject(known.moving), "cpu")


def several(pair, across, similarity):
    """A level of two pairs of images, of which the second counts twice as much and is of another contrast."""
    other = copy.copy(pair)
    other.fixed, other.moving = (
        ImagedSubject(Image(each.image.data * (1 - each.image.data), each.grid)) for each in (pair.fixed, pair.moving)
    )
    return Together([BothWays(each, across, similarity) for each in (pair, other)], [1 / 3, 2 / 3])


def maps_around(kind, d=3):
    """Maps of a kind around three starts, and parameters a little off those."""
    random = torch.Generator().manual_seed(0)
    matrices = torch.eye(d, dtype=torch.float64) + 0.1 * torch.randn(3, d, d, generator=random, dtype=torch.float64)
    maps = LinearMaps(kind, matrices, torch.zeros(3, d, dtype=torch.float64))
    return maps, maps.start + 0.05 * torch.randn(maps.start.shape, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_maps_of_a_kind(kind, d):
    maps, parameters = maps_around(kind, d)
    which = torch.tensor([2, 0])
    matrices, translations, _ = maps.at(parameters[which], which)
    assert torch.equal(translations, parameters[which, :d])
    torch.testing.assert_close(maps.at(maps.start, torch.arange(3))[0], maps.matrices)
    change = torch.linalg.solve(maps.matrices[which], matrices)
    scale = torch.linalg.det(change) ** (1 / d)
    stretch = change.mT @ change / scale[:, None, None] ** 2
    if kind != "affine":
        torch.testing.assert_close(stretch, torch.eye(d, dtype=torch.float64).expand_as(stretch))
    assert torch.allclose(scale, torch.ones_like(scale)) == (kind == "rigid")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_way_back_to_the_parameters(kind, d):
    maps, parameters = maps_around(kind, d)
    weights = torch.randn(3, d, d + 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def worth(given):
        matrices, translations, _ = maps.at(given, torch.arange(3))
        return (weights[..., :d] * matrices).sum((1, 2)) + (weights[..., d] * translations).sum(1)

    expected = torch.autograd.functional.jacobian(lambda given: worth(given).sum(), parameters)
    found = maps.at(parameters, torch.arange(3))[2](weights[..., :d], weights[..., d])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("similarity", [NCC(), LNCC(), MutualInformation()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("kind", [LinearLevel, BothWays, several])
def test_derivatives_are_those_of_finite_differences(pair, similarity, kind):
    level = kind(pair, 25, similarity)
    random = torch.Generator().manual_seed(2)
    matrices, shifts = (0.1 * torch.randn(2, *s, generator=random, dtype=torch.float64) for s in ((3, 3), (3,)))
    matrices = matrices + torch.eye(3, dtype=torch.float64)
    _, to_matrices, to_shifts = level.losses_with_gradients(matrices, shifts)
    turn, push = (torch.randn(2, *s, generator=random, dtype=torch.float64) for s in ((3, 3), (3,)))
    slopes = (to_matrices * turn).sum((1, 2)) + (to_shifts * push).sum(1)
    step = 1e-4
    ahead, behind = (level.losses_with_gradients(matrices + h * turn, shifts + h * push)[0] for h in (step, -step))
    torch.testing.assert_close(slopes, (ahead - behind) / (2 * step), rtol=0.05, atol=1.5e-2)


def test_scores_of_many_are_those_of_each(pair):
    level = LinearLevel(pair, 6, NCC())
    starts = affine._starts(pair)[::7]
    together = affine._scored(starts, pair, level)
    alone = [affine._scored([start], pair, level)[0] for start in starts]
    assert [fit.loss for fit in together] == pytest.approx([fit.loss for fit in alone], abs=1e-5)
    assert min(fit.loss for fit in together) < max(fit.loss for fit in together) < 2


@pytest.mark.parametrize("wrong", ["mirrored", "away"])
def test_a_mirror_image_and_one_out_of_sight_are_no_match(known, wrong):
    masked = [ImagedSubject(image, inner(image)) for image in (known.fixed, known.moving)]
    level = BothWays(LinearPair(*masked, "cpu"), 12.5, NCC())
    matrices, shifts = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1), torch.zeros(2, 3, dtype=torch.float64)
    if wrong == "mirrored":
        matrices[1, 0, 0] = -1
    else:
        shifts[1] = 50
    losses, to_matrices, to_shifts = level.losses_with_gradients(matrices, shifts)
    assert losses[1] == 2
    assert losses[0] < 1
    assert (to_matrices[1] == 0).all()
    assert (to_shifts[1] == 0).all()
    assert (to_matrices[0] != 0).any()


def test_what_is_compared_at_a_time_is_bounded(pair):
    starts = affine._starts(pair)
    level = LinearLevel(pair, 25, NCC())
    parts = list(affine._parts(starts, level))
    assert max(map(len, parts)) * level.voxels <= affine._AT_ONCE
    assert [start for part in parts for start in part] == starts
    assert len(next(affine._parts(starts, LinearLevel(pair, 500, NCC())))) >= 1


def test_a_level_of_several_pairs_is_their_mean_by_shares(pair):
    together = several(pair, 12.5, NCC())
    matrices, shifts = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1), torch.zeros(2, 3, dtype=torch.float64)
    shifts[1] = 0.1
    alone = zip(*(level.losses_with_gradients(matrices, shifts) for level in together.levels), strict=True)
    for found, (one, other) in zip(together.losses_with_gradients(matrices, shifts), alone, strict=True):
        assert not torch.allclose(one, other)
        torch.testing.assert_close(found, one / 3 + 2 * other / 3)


@pytest.mark.gpu
def test_the_same_on_a_gpu(pair, known):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    on_gpu = LinearPair(pair.fixed, pair.moving, "cuda")
    matrices, shifts = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1), torch.zeros(2, 3, dtype=torch.float64)
    shifts[1] = 0.1
    expected = BothWays(pair, 25, LNCC()).losses_with_gradients(matrices, shifts)
    found = BothWays(on_gpu, 25, LNCC()).losses_with_gradients(matrices.cuda(), shifts.cuda())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4)
    fits = [
        affine.register_linear(known.fixed, known.moving, "affine", NCC(), LNCC(), affine.AffineSettings(), device=on)
        for on in ("cpu", "cuda")
    ]
    apart = fits[0].transform(known.points()) - fits[1].transform(known.points())
    assert abs(apart).max() < 0.05
