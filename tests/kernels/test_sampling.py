"""The reference in one, two and three dimensions against numpy and scipy, and the types it is safe for."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from stepwarp.kernels import backend, sampling

SHAPES = [(11,), (9, 12), (7, 5, 6), (1,), (1, 6), (4, 1, 5)]


def coordinates(shape: tuple[int, ...], count: int = 300) -> torch.Tensor:
    """Positions on all sides of the grid, inside and up to three voxels out: (1, D, count)."""
    share = torch.rand(1, len(shape), count, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return share * (torch.tensor(shape).view(1, -1, 1) + 5) - 3


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("outside", ["zero", "border"])
def test_reading_between_voxels(shape: tuple[int, ...], mode: str, outside: str, noise):
    image, coords = noise((1, 2, *shape)).double() + 1, coordinates(shape)
    where = coords[0].numpy()
    if mode == "nearest":
        where = np.floor(where + 0.5)
    order = 1 if mode == "linear" else 0
    expected = np.stack([map_coordinates(channel, where, order=order, mode="nearest") for channel in image[0].numpy()])
    if outside == "zero":
        beyond = (coords[0].numpy() < -0.5) | (coords[0].numpy() >= np.array(shape)[:, None] - 0.5)
        expected[:, beyond.any(0)] = 0
    values = sampling.sample(image, coords, mode, outside)
    np.testing.assert_allclose(values[0].numpy(), expected, atol=1e-9)


def test_a_line_against_numpy_interp(noise):
    image, coords = noise((1, 1, 20)).double(), coordinates((20,))
    values = sampling.sample(image, coords, outside="border")
    np.testing.assert_allclose(values[0, 0], np.interp(coords[0, 0], np.arange(20), image[0, 0]), atol=1e-12)


@pytest.mark.parametrize(("position", "value"), [(-0.5, 5), (-0.51, 0), (1.5, 7), (2.49, 7), (2.5, 0)])
def test_a_grid_ends_half_a_voxel_beyond_its_last_centre(position: float, value: float):
    image, coords = torch.tensor([[[5.0, 6, 7]]]), torch.tensor([[[position]]])
    assert sampling.sample(image, coords, "nearest").item() == value


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_one_image_at_a_batch_of_coordinates_and_the_other_way_round(shape: tuple[int, ...], channels: int, noise):
    images, coords = noise((2, channels, *shape)), 4 * noise((2, len(shape), 4, 4), 1)
    of_one = sampling.sample(images[:1], coords)
    at_one = sampling.sample(images, coords[:1])
    assert of_one.shape == at_one.shape == (2, channels, 4, 4)
    torch.testing.assert_close(of_one[:1], at_one[:1])
    torch.testing.assert_close(of_one[1:], sampling.sample(images[:1], coords[1:]))
    torch.testing.assert_close(at_one[1:], sampling.sample(images[1:], coords[:1]))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_gradients_in_image_and_coordinates(dimensions: int, noise):
    image = noise((1, 2, *(5, 4, 6)[:dimensions])).double().requires_grad_()
    coords = (0.2 + 2.5 * noise((1, dimensions, 7))).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda i, c: sampling.sample(i, c), (image, coords))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_of_half_precision_are_read_with_exact_weights(dtype: torch.dtype, noise):
    """Safe: half-precision images. Their values are rounded, but not the positions at which they are read."""
    image, coords = noise((1, 1, 3000)).to(dtype), coordinates((3000,)).float()
    values = sampling.sample(image, coords)
    assert values.dtype == dtype
    torch.testing.assert_close(values, sampling.sample(image.float(), coords).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_displacements_of_half_precision_lose_only_their_own_digits(dtype: torch.dtype, noise):
    """Safe: half-precision displacements, off by their own rounding of 2^-8 at worst; indices keep counting."""
    image, shift = noise((1, 1, 3000)), (3 * noise((1, 1, 3000), 1)).to(dtype)
    matrix = torch.eye(2)
    torch.testing.assert_close(sampling.warp(image, 0 * shift, matrix), image, rtol=0, atol=1e-3)
    torch.testing.assert_close(sampling.warp(image, shift, matrix), sampling.warp(image, shift.float(), matrix))
    composed = sampling.compose(shift, shift)
    torch.testing.assert_close(composed.float(), sampling.compose(shift.float(), shift.float()), rtol=2e-2, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -3e38])
def test_wild_coordinates_lie_outside(bad: float, noise):
    coords = torch.full((1, 3, 8), bad)
    assert (sampling.sample(noise((1, 1, 5, 6, 7)) + 1, coords) == 0).all()


def test_a_step_is_scaled_and_shortened(noise):
    step = torch.tensor([3.0, 0.4]).view(1, 1, 2)
    still = torch.zeros(1, 1, 2)
    moved = sampling.compose_step(still, step, scale=torch.tensor(0.5), longest=1.0)
    torch.testing.assert_close(moved, torch.tensor([1.0, 0.2]).view(1, 1, 2))


def test_scaled_gradient_leads_downhill_through_the_warp():
    """dE/du of a composed step is dE/dimage times the image's slope: against autograd in the interior."""
    x = torch.linspace(0, 3, 12, dtype=torch.float64)
    image = (torch.sin(x)[:, None] * torch.cos(x)[None])[None, None]
    factor = torch.cos(image)
    step = torch.zeros(1, 2, 12, 12, dtype=torch.float64, requires_grad=True)
    # Interpolation has two slopes at a voxel, one to each side; their mean is the central difference.
    gradients = []
    for nudge in (1e-6, -1e-6):
        moved = sampling.warp(image, step + nudge, torch.eye(3, dtype=torch.float64))
        gradients.append(torch.autograd.grad((factor * moved).sum(), step)[0])
    inner = (..., slice(1, -1), slice(1, -1))
    ours = sampling.scaled_gradient(factor, image)
    torch.testing.assert_close(ours[inner], ((gradients[0] + gradients[1]) / 2)[inner], rtol=1e-4, atol=1e-5)


def test_only_what_is_asked_for_is_differentiated(noise):
    image, u = noise((1, 4, 5, 6, 7)), noise((1, 3, 4, 5, 6)).requires_grad_()
    sampling.warp(image, u, torch.eye(4)).sum().backward()
    assert u.grad is not None
    assert image.grad is None
    with torch.no_grad():
        assert not sampling.warp(image, u, torch.eye(4)).requires_grad


def test_a_long_way_back_through_many_readings(noise):
    """Repeated composition, as in scaling and squaring: every gradient passes through a scatter."""
    found = []
    for by_hand, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        velocity = (0.1 * noise((1, 3, 9, 12, 7)) - 0.05).to(dtype).requires_grad_()
        squared = velocity
        with backend.use(by_hand):
            for _ in range(4):
                squared = sampling.compose(squared, squared)
            weight = noise(squared.shape, 1).to(dtype)
            found.append(torch.autograd.grad((weight * squared).sum(), velocity)[0].double())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4 * float(found[1].abs().max()))
