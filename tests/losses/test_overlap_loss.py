"""Soft Dice of label maps against one warped image per label."""

import pytest
import torch
from torch import Tensor

from stepwarp.kernels import sampling
from stepwarp.losses.overlap import soft_dice

SHAPES = [(9,), (8, 7), (6, 1, 5), (7, 6, 5)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def labels(batch: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    values = torch.tensor([0, 0, 3, 17, 1005, 2035])
    return values[torch.randint(0, 6, (batch, 1, *shape), generator=torch.Generator().manual_seed(seed))]


def displacement(batch: int, shape: tuple[int, ...]) -> Tensor:
    return 1.2 * torch.randn(batch, len(shape), *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def matrix(d: int) -> Tensor:
    result = torch.eye(d + 1, dtype=torch.float64) + 0.05 * torch.randn(d + 1, d + 1, dtype=torch.float64)
    result[-1] = torch.eye(d + 1)[-1]
    return result


def one_by_one(fixed: Tensor, moving: Tensor, u: Tensor, m: Tensor, ignore: tuple[int, ...]) -> Tensor:
    """As the definition reads."""
    means = []
    for n in range(len(u)):
        f, mv = fixed[n % len(fixed)], moving[n % len(moving)]
        dice = []
        for label in set(f.unique().tolist()) | set(mv.unique().tolist()):
            if label not in ignore:
                ours, read = (f == label).double(), sampling.warp((mv == label).double()[None], u[n : n + 1], m)[0]
                dice.append(2 * (ours * read).sum() / (ours.sum() + read.sum()))
        means.append(torch.stack(dice).mean())
    return 1 - torch.stack(means).mean()


@each_shape
@pytest.mark.parametrize("ignore", [(0,), (0, 17)])
@pytest.mark.parametrize("batches", [(1, 1, 1), (2, 2, 2), (1, 2, 2)], ids=str)
def test_against_one_image_per_label(shape: tuple[int, ...], ignore, batches: tuple[int, int, int]):
    moving_shape = tuple(n + 1 if n > 1 else n for n in shape)
    fixed, moving = labels(batches[0], shape), labels(batches[1], moving_shape, 1)
    u, m = displacement(batches[2], shape).requires_grad_(), matrix(len(shape))
    ours, expected = soft_dice(fixed, moving, u, m, ignore), one_by_one(fixed, moving, u, m, ignore)
    assert float(ours) == pytest.approx(float(expected))
    torch.testing.assert_close(torch.autograd.grad(ours, u), torch.autograd.grad(expected, u))


def test_perfect_and_absent():
    shape = (6, 5, 7)
    fixed, still, same = labels(1, shape), torch.zeros(1, 3, *shape), torch.eye(4)
    assert float(soft_dice(fixed, fixed, still, same)) == pytest.approx(0, abs=1e-6)
    assert float(soft_dice(fixed, torch.zeros_like(fixed), still, same)) == pytest.approx(1)
    assert float(soft_dice(fixed, fixed, still + 100, same)) == pytest.approx(1)
    assert soft_dice(0 * fixed, 0 * fixed, still, same).isnan()


def test_pulls_towards_overlap():
    """Two balls, one shifted: the way downhill is the way to the other."""
    x = torch.stack(torch.meshgrid(*[torch.arange(15)] * 3, indexing="ij"))
    balls = [
        ((x - torch.tensor([7 + by, 7, 7]).view(3, 1, 1, 1)).square().sum(0) < 16).long()[None, None] for by in (0, 2)
    ]
    shift = torch.zeros(1, 3, 1, 1, 1, requires_grad=True)
    with torch.no_grad():
        shift += 0.3
    soft_dice(*balls, shift.expand(1, 3, 15, 15, 15), torch.eye(4)).backward()
    downhill = -shift.grad.flatten()
    assert downhill[0] > 2 * downhill[1:].abs().max()


def test_memory_layout_and_type_of_labels():
    shape = (6, 5, 7)
    fixed, moving, u = labels(1, shape), labels(1, shape, 1), displacement(1, shape).float()
    expected = soft_dice(fixed, moving, u, torch.eye(4))
    assert float(soft_dice(fixed.short(), moving.int(), u, torch.eye(4))) == pytest.approx(float(expected))
