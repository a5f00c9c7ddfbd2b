"""The guided step: descent before training, nothing to do where images match, and batches that do not mix."""

import pytest
import torch

from stepwarp.geometry import DisplacementField, Grid
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.networks import UNet
from stepwarp.registrar.steps import Guided, Images, Repeat


@pytest.fixture
def grid(dims: int) -> Grid:
    return Grid.isotropic({1: (48,), 2: (26, 30), 3: (17, 20, 18)}[dims], 3.0)


@pytest.fixture
def pair(grid: Grid, smooth) -> tuple[Images, Images]:
    """A batch of two textured images, and the same displaced by up to a voxel."""
    random = torch.Generator().manual_seed(3)
    noise = torch.rand(2, 1, *grid.shape, generator=random)
    textured = Images(_blurred(noise), grid)
    return textured, textured.warp(smooth(grid, voxels=1.0))


def _blurred(noise: torch.Tensor) -> torch.Tensor:
    from stepwarp.kernels.smoothing import gaussian

    blurred = gaussian(noise, 1.5)
    return (blurred - blurred.amin()) / (blurred.amax() - blurred.amin())


def _guided(dims: int) -> Guided:
    return Guided(UNet(dims, channels=(4, 4), in_channels=2 * (1 + dims)))


def test_untrained_it_is_an_iteration_of_descent(dims: int, pair: tuple[Images, Images]) -> None:
    fixed, moving = pair
    similarity = LNCC()
    losses = [float(similarity(fixed.data, moving.data))]
    for n in (1, 4):
        found = Repeat(_guided(dims), n)(fixed, moving)
        losses.append(float(similarity(fixed.data, moving.warp(found).data).detach()))
    assert losses[0] > losses[1] > losses[2]


def test_equal_images_stay(dims: int, pair: tuple[Images, Images]) -> None:
    fixed, moving = pair
    still, moved = (_guided(dims)(fixed, other) for other in (fixed, moving))
    assert isinstance(still, DisplacementField)
    assert isinstance(moved, DisplacementField)
    assert still.displacement.abs().mean() < 0.1 * moved.displacement.abs().mean()


def test_a_pair_does_not_depend_on_its_batch(dims: int, pair: tuple[Images, Images]) -> None:
    fixed, moving = pair
    step = _guided(dims)
    together = step(fixed, moving).displacement
    for n in range(2):
        alone = step(*(Images(images.data[n : n + 1], images.grid) for images in pair)).displacement
        torch.testing.assert_close(alone, together[n : n + 1], atol=1e-4, rtol=1e-3)


def test_intensities_need_no_common_scale(dims: int, pair: tuple[Images, Images]) -> None:
    """The correlation is blind to brightness and contrast, and so are the forces in voxels that it makes."""
    fixed, moving = pair
    plain = _guided(dims)(fixed, moving).displacement
    dimmed = _guided(dims)(fixed, Images(0.5 * moving.data + 0.2, moving.grid)).displacement
    cosine = torch.cosine_similarity(plain.flatten(1), dimmed.flatten(1))
    assert (cosine > 0.98).all()


def test_training_reaches_the_network_and_the_gain(dims: int, pair: tuple[Images, Images]) -> None:
    fixed, moving = pair
    step = _guided(dims)
    torch.nn.init.normal_(step.net.last.weight, std=1e-3)
    found = Repeat(step, 2)(fixed, moving)
    LNCC()(fixed.data, moving.warp(found).data).backward()
    assert all(weights.grad is not None and weights.grad.abs().sum() > 0 for weights in step.parameters())
