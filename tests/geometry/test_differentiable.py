"""The derivatives of the compiled kernels against the plain torch reference in float64, which gradcheck vouches for."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stepwarp.geometry import jacobian, sampling, smoothing

MATRIX = torch.tensor(
    [[0.9, 0.1, -0.05, 0.4], [-0.15, 1.1, 0.1, -0.7], [0.05, -0.1, 0.95, 0.6], [0, 0, 0, 1]], dtype=torch.float64
)
SHAPES = [((9, 12, 7), (9, 12, 7)), ((5, 8, 6), (11, 7, 9)), ((6, 1, 5), (4, 6, 3)), ((1, 1, 4), (2, 2, 2))]

#: name -> function of something read, (B, C, *shape), and what moves the positions, (B, 3, *out)
READINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "warp": lambda image, u: sampling.warp(image, u, MATRIX),
    "warp to the border": lambda image, u: sampling.warp(image, u, MATRIX, outside="border"),
    "sample": lambda image, u: sampling.sample(image, 2 * u + 3),
    "sample points": lambda image, u: sampling.sample(image, 2 * u.flatten(2) + 3, outside="border"),
    "compose": lambda image, u: sampling.compose(image[:, :3], u, MATRIX),
    "resize": lambda image, u: sampling.resize_displacement(image[:, :3], u.shape[2:], MATRIX) + u,
}
each_reading = pytest.mark.parametrize("name", READINGS)


def tensors(shapes: tuple[tuple[int, ...], tuple[int, ...]], batches: tuple[int, int] = (1, 1)) -> list[Tensor]:
    """An image of four channels and a displacement of about two voxels: many positions lie beyond the grid."""
    generator = torch.Generator().manual_seed(11)
    image = torch.randn(batches[0], 4, *shapes[0], generator=generator)
    return [image, 2 * torch.randn(batches[1], 3, *shapes[1], generator=generator)]


def with_gradients(function: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    given = [t.clone().requires_grad_() for t in given]
    result = function(*given)
    weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
    return [result.detach(), *torch.autograd.grad((weight * result).sum(), given)]


def agree(function: Callable[..., Tensor], given: list[Tensor]) -> None:
    assert sampling.on_kernels(*given, differentiable=True)
    expected = with_gradients(function, [t.double() for t in given])
    for ours, theirs in zip(with_gradients(function, given), expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@each_reading
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("batches", [(1, 1), (3, 3)], ids=str)
def test_reading(name: str, shapes, batches: tuple[int, int]):
    agree(READINGS[name], tensors(shapes, batches))


@each_reading
@pytest.mark.parametrize("batches", [(1, 2), (2, 1)], ids=str)
def test_a_batch_of_one_serves_all(name: str, batches: tuple[int, int]):
    agree(READINGS[name], tensors(SHAPES[1], batches))


@pytest.mark.parametrize("shape", [(9, 12, 7), (3, 1, 2), (1, 1, 4)], ids=str)
@pytest.mark.parametrize("sigma", [0.5, 1.3])
def test_smoothing(shape: tuple[int, ...], sigma: float):
    agree(lambda field: smoothing.gaussian(field, sigma), [torch.randn(2, 3, *shape)])


@each_reading
def test_the_reference_against_finite_differences(name: str):
    given = [t.double().requires_grad_() for t in tensors(((3, 4, 3), (2, 3, 2)))]
    torch.autograd.gradcheck(READINGS[name], given)


def test_only_what_is_asked_for_is_differentiated():
    image, u = tensors(SHAPES[0])
    u.requires_grad_()
    sampling.warp(image, u, MATRIX).sum().backward()
    assert u.grad is not None
    assert image.grad is None
    with torch.no_grad():
        assert not sampling.warp(image, u, MATRIX).requires_grad


def test_a_long_way_back_through_many_readings():
    """Repeated composition, as in scaling and squaring: every gradient passes through a scatter."""

    def squared(velocity: Tensor) -> Tensor:
        for _ in range(4):
            velocity = sampling.compose(velocity, velocity)
        return velocity

    agree(squared, [0.02 * tensors(((9, 12, 7), (9, 12, 7)))[1]])


def test_thread_counts_do_not_matter():
    numba = pytest.importorskip("numba")
    given, before = tensors(SHAPES[0]), numba.get_num_threads()
    results = []
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            results.append(with_gradients(READINGS["warp"], given))
    finally:
        numba.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(7,), (5, 6), (4, 1, 5)], ids=str)
def test_determinants_at_some_voxels(shape: tuple[int, ...]):
    u = torch.randn(2, len(shape), *shape, dtype=torch.float64)
    voxels = torch.stack([torch.randint(0, n, (9,)) for n in (2, *shape)], 1)
    expected = jacobian.determinant(u)[tuple(voxels.unbind(1))]
    torch.testing.assert_close(jacobian.determinant_at(u, voxels), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
@each_reading
def test_a_wild_displacement_writes_no_wild_memory(name: str, bad: float):
    image, u = tensors(SHAPES[0])
    u[0, 1] = bad
    to_image = with_gradients(READINGS[name], [image, u])[1]
    assert to_image.isfinite().all()
