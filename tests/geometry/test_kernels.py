"""The compiled CPU kernels against the plain torch reference, which float64 tensors are handed to, and CUDA to both."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stepwarp.geometry import jacobian, sampling, smoothing

SHAPES = [(9, 12, 7), (1, 8, 7), (6, 1, 5), (5, 6, 1), (1, 1, 4), (2, 2, 2)]
MATRIX = torch.tensor(
    [[0.9, 0.1, -0.05, 0.4], [-0.15, 1.1, 0.1, -0.7], [0.05, -0.1, 0.95, 0.6], [0, 0, 0, 1]], dtype=torch.float64
)

#: name -> (function of tensors, the channels of each tensor). Displacements have three, images one or two.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "warp": (lambda image, u: sampling.warp(image, u, MATRIX), (2, 3)),
    "compose": (sampling.compose, (3, 3)),
    "compose_step": (lambda u, step: sampling.compose_step(u, step, 0.7, 0.9), (3, 3)),
    "resize_displacement": (lambda u: sampling.resize_displacement(u, (5, 8, 6), MATRIX), (3,)),
    "smooth": (lambda field: smoothing.gaussian(field, 1.3), (2,)),
    "scaled_gradient": (sampling.scaled_gradient, (1, 1)),
    "determinant": (jacobian.determinant, (3,)),
    "smallest_corner_determinant": (jacobian.smallest_corner_determinant, (3,)),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)


def tensors(channels: tuple[int, ...], shape: tuple[int, ...], batch: int = 1) -> list[Tensor]:
    """Displacements of about two voxels, so that many positions lie beyond the grid."""
    generator = torch.Generator().manual_seed(3)
    scale = {3: 2.0}
    return [scale.get(c, 1.0) * torch.randn(batch, c, *shape, generator=generator) for c in channels]


@each_function
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_agrees_with_reference(name: str, shape: tuple[int, ...]):
    function, channels = FUNCTIONS[name]
    given = tensors(channels, shape)
    assert sampling.on_kernels(*given)
    expected = function(*[t.double() for t in given])
    torch.testing.assert_close(function(*given).double(), expected, rtol=1e-4, atol=1e-4)


@each_function
def test_tensors_that_want_a_gradient_get_one(name: str):
    function, channels = FUNCTIONS[name]
    given = [t.requires_grad_() for t in tensors(channels, (5, 6, 4))]
    result = function(*given)
    gradients = torch.autograd.grad(result.square().sum(), given)
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)
    with torch.no_grad():
        torch.testing.assert_close(function(*given), result.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"warp", "resize_displacement"}))
def test_a_batch_is_its_samples_one_by_one(name: str):
    function, channels = FUNCTIONS[name]
    batch = tensors(channels, (6, 5, 7), batch=2)
    single = [function(*[t[n : n + 1] for t in batch]) for n in range(2)]
    torch.testing.assert_close(function(*batch), torch.cat(single), rtol=1e-4, atol=1e-4)


@each_function
def test_memory_layout_does_not_matter(name: str):
    function, channels = FUNCTIONS[name]
    given = tensors(channels, (6, 5, 7))
    strided = [t.permute(0, 4, 2, 3, 1).contiguous().permute(0, 4, 2, 3, 1) for t in given]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(function(*strided), function(*given), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize(
    ("name", "place"), [("warp", 1), ("compose", 1), ("compose_step", 1), ("determinant", 0), ("invert", 0)]
)
def test_a_wild_displacement_reads_no_wild_memory(name: str, place: int, bad: float):
    function, channels = FUNCTIONS.get(name, (jacobian.invert, (3,)))
    given = tensors(channels, (6, 5, 7))
    given[place][0, 1] = bad
    result = function(*given)
    if name == "warp":
        assert (result == 0).all(), "nowhere is outside the image"
    elif name != "invert" and bad != bad:
        assert result.isnan().any(), "the damage stays visible"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smallest_corner_determinant_keeps_what_is_not_a_number(dtype: torch.dtype):
    displacement = torch.zeros(1, 3, 5, 5, 5, dtype=dtype)
    displacement[0, 1, 2, 2, 2] = float("nan")
    spoiled = jacobian.smallest_corner_determinant(displacement)[0].isnan()
    # The voxel itself and its six neighbours use the value.
    assert spoiled.sum() == 7
    assert spoiled[2, 2, 1:4].all()


def test_inverses_agree():
    """Newton's method in the kernel, the fixed point in the reference: both end at the same displacement."""
    displacement = smoothing.gaussian(tensors((3,), (12, 11, 10))[0], 2)
    ours, reference = jacobian.invert(displacement), jacobian.invert(displacement.double(), iterations=200)
    torch.testing.assert_close(ours.double(), reference, rtol=0, atol=5e-3)


@pytest.mark.gpu
@each_function
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_cuda_agrees_with_the_cpu(name: str, shape: tuple[int, ...], cuda: torch.device):
    function, channels = FUNCTIONS[name]
    given = tensors(channels, shape)
    result = function(*[t.to(cuda) for t in given])
    assert result.device.type == "cuda"
    torch.testing.assert_close(result.cpu(), function(*given), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_cuda_inverse_agrees_with_the_cpu(cuda: torch.device):
    displacement = smoothing.gaussian(tensors((3,), (12, 11, 10))[0], 2)
    torch.testing.assert_close(
        jacobian.invert(displacement.to(cuda)).cpu(), jacobian.invert(displacement), rtol=0, atol=5e-3
    )
