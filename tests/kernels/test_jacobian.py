import numpy as np
import pytest
import torch

from stepwarp.geometry import Grid
from stepwarp.kernels import jacobian, smoothing

INNER = slice(1, -1)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wave_along_each_axis(dimensions: int, dtype: torch.dtype):
    """u = a sin(w x) has the central difference a sin(w) cos(w x), and the axes do not mix."""
    amplitude, frequency = 0.8, 0.6
    index = Grid.isotropic((12, 15, 13)[:dimensions]).indices(dtype=dtype)
    slopes = 1 + amplitude * np.sin(frequency) * torch.cos(frequency * index[0])
    inner = (0, *[INNER] * dimensions)
    expected = slopes.prod(0)[inner[1:]]
    assert expected.min() < 0.7
    assert expected.max() > 1.3
    determinant = jacobian.determinant(amplitude * torch.sin(frequency * index))
    torch.testing.assert_close(determinant[inner], expected, rtol=1e-4, atol=1e-5)


def test_the_volumes_add_up():
    """A map that keeps the border in place only moves volume about; sliding along its planes changes none."""
    x = torch.linspace(0, torch.pi, 40, dtype=torch.float64)
    bump = torch.sin(x)[:, None] * torch.sin(x)[None]
    moved = torch.stack([3 * bump, -2 * bump * x[:, None] / 3])[None]
    assert jacobian.determinant(moved).std() > 0.1
    assert jacobian.determinant(moved).mean().item() == pytest.approx(1, abs=2e-3)
    slide = torch.stack([torch.zeros_like(bump), (5 * torch.sin(x))[:, None].expand_as(bump)])[None]
    torch.testing.assert_close(jacobian.determinant(slide), torch.ones(1, 40, 40, dtype=torch.float64))


def test_central_differences_average_the_corners():
    """The determinant is linear in each derivative, so the smallest corner is never above it."""
    displacement = torch.randn(1, 3, 8, 9, 7, generator=torch.Generator().manual_seed(1))
    smallest, central = jacobian.smallest_corner_determinant(displacement), jacobian.determinant(displacement)
    inner = (0, INNER, INNER, INNER)
    assert (smallest[inner] <= central[inner] + 1e-4).all()
    assert (smallest[inner] < central[inner] - 1).any()


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("axis", [0, -1])
def test_corners_see_the_fold_that_central_differences_miss(dimensions: int, axis: int):
    shape = (10, 9, 8)[:dimensions]
    displacement = torch.zeros(1, dimensions, *shape)
    # One plane of voxels jumps beyond its neighbour: its two neighbours' central differences still cancel out.
    dim = axis % dimensions + 1
    displacement[:, axis].select(dim, 4).fill_(-1.5)
    assert (jacobian.determinant(displacement).select(dim, 4) == 1).all()
    smallest = jacobian.smallest_corner_determinant(displacement)
    for plane, expected in ((3, -0.5), (4, -0.5), (6, 1.0)):
        torch.testing.assert_close(smallest.select(dim, plane), torch.full_like(smallest.select(dim, plane), expected))


def smooth() -> torch.Tensor:
    """A contraction: waves of about a voxel."""
    noise = torch.randn(1, 3, 13, 16, 11, generator=torch.Generator().manual_seed(3))
    return smoothing.gaussian(4 * noise, 2.5)


def cost_of_volume_changes(displacement: torch.Tensor) -> torch.Tensor:
    volumes = jacobian.determinant(displacement)
    return ((volumes + 1 / volumes) / 2 - 1).sum()


def test_the_gradient_of_volume_changes_is_that_of_their_cost():
    displacement, way = (
        smooth().double(),
        torch.randn(1, 3, 13, 16, 11, generator=torch.Generator().manual_seed(4)).double(),
    )
    assert 0.3 < jacobian.determinant(displacement).min() < 0.8
    ahead, behind = (cost_of_volume_changes(displacement + far * way) for far in (1e-6, -1e-6))
    found = (jacobian.volume_change_gradient(displacement) * way).sum()
    torch.testing.assert_close(found, (ahead - behind) / 2e-6, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_what_keeps_volume_is_left_alone(dimensions: int):
    """Turned by half a radian, and sheared along one axis."""
    linear = torch.eye(dimensions)
    linear[:2, :2] = torch.tensor([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    linear[:, -1] += 0.4 * linear[:, 0]
    index = Grid.isotropic((9, 8, 7)[:dimensions]).indices()
    displacement = torch.einsum("ij,bj...->bi...", linear, index) - index
    assert displacement.abs().max() > 2
    assert jacobian.volume_change_gradient(displacement).abs().max() < 1e-5


def test_down_its_gradient_folds_open():
    displacement = torch.zeros(1, 3, 10, 9, 8)
    displacement[:, 0, 4] = -1.3
    displacement[:, 0, 5] = -2.6
    assert jacobian.determinant(displacement).min() < 0
    for _ in range(20):
        displacement -= 0.05 * jacobian.volume_change_gradient(displacement)
    assert jacobian.determinant(displacement).min() > 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_guess_shortens_the_way_to_the_inverse(dtype: torch.dtype):
    displacement = smooth().to(dtype)
    inverse = jacobian.invert(displacement, iterations=100)
    assert inverse.abs().max() > 0.2
    torch.testing.assert_close(jacobian.invert(displacement, start=inverse, iterations=1), inverse, rtol=0, atol=2e-3)


def test_the_guess_is_left_as_it_was():
    displacement = smooth()
    before = displacement.clone()
    start = torch.zeros_like(displacement)
    jacobian.invert(displacement, start=start)
    torch.testing.assert_close(displacement, before, rtol=0, atol=0)
    assert (start == 0).all()


@pytest.mark.parametrize("shape", [(7,), (5, 6), (4, 1, 5)], ids=str)
def test_determinants_at_some_voxels(shape: tuple[int, ...]):
    u = torch.randn(2, len(shape), *shape, dtype=torch.float64)
    voxels = torch.stack([torch.randint(0, n, (9,)) for n in (2, *shape)], 1)
    expected = jacobian.determinant(u)[tuple(voxels.unbind(1))]
    torch.testing.assert_close(jacobian.determinant_at(u, voxels), expected)
