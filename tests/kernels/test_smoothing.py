import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d, gaussian_filter
from scipy.stats import norm

from stepwarp.kernels import smoothing

SHAPES = [(30,), (14, 21), (14, 17, 11), (3, 1, 9)]
SIGMAS = [0.4, 1.0, 1.73, 3.0]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_kernel_is_a_normal_distribution_over_voxels(sigma: float):
    kernel = smoothing.gaussian_kernel(sigma).double()
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(kernel, kernel.flip(0))
    radius = len(kernel) // 2
    edges = norm.cdf((np.arange(-radius, radius + 2) - 0.5) / sigma)
    assert edges[-1] - edges[0] > 0.99
    np.testing.assert_allclose(kernel, np.diff(edges) / (edges[-1] - edges[0]), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_along_every_axis_with_the_border_repeated(shape: tuple[int, ...], sigma: float, dtype: torch.dtype, noise):
    field = noise((1, 2, *shape)).to(dtype)
    expected = field.double().numpy()
    for axis in range(2, field.ndim):
        expected = correlate1d(expected, smoothing.gaussian_kernel(sigma).double().numpy(), axis, mode="nearest")
    np.testing.assert_allclose(smoothing.gaussian(field, sigma), expected, atol=1e-5)


@pytest.mark.parametrize("sigma", [1.0, 1.73, 3.0])
def test_close_to_scipys_gaussian(sigma: float, noise):
    """Which has the density at the voxels' centres for weights, and longer tails."""
    field = noise((1, 1, 20, 24, 18))
    expected = gaussian_filter(field[0, 0].numpy(), sigma, mode="nearest")
    smoothed = smoothing.gaussian(field, sigma)[0, 0].numpy()
    assert np.abs(smoothed - expected).max() < 0.1 * (field[0, 0].numpy() - expected).std()
    assert np.corrcoef(smoothed.ravel(), expected.ravel())[0, 1] > 0.995


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_constant_stays(shape: tuple[int, ...]):
    constant = torch.full((1, 3, *shape), 3.7)
    torch.testing.assert_close(smoothing.gaussian(constant, 2.0), constant)


def test_nothing_is_smoothed_by_nothing(noise):
    field = noise((1, 1, 4, 4, 4))
    assert smoothing.gaussian(field, 0) is field


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_is_safe_to_smooth(dtype: torch.dtype, digits: float, noise):
    field = noise((1, 2, 9, 8, 7))
    smoothed = smoothing.gaussian(field.to(dtype), 1.5)
    assert smoothed.dtype == dtype
    torch.testing.assert_close(smoothed.float(), smoothing.gaussian(field, 1.5), rtol=0, atol=digits)


def test_an_empty_batch_stays_empty():
    assert smoothing.gaussian(torch.empty(0, 3, 4, 5, 6), 1.0).shape == (0, 3, 4, 5, 6)
