"""On the same weights, the maps of icon_registration 1.1.9. There coordinates are [0, 1] along each axis, between the
outermost voxels' centres, and a network takes the moving image first."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepwarp.geometry import Grid
from stepwarp.losses.consistency import gradicon, inverse_consistency
from stepwarp.networks import IconUNet
from stepwarp.registrar.steps import Downsampled, Images, Step, TwoStep, VectorField, Velocity

icon = pytest.importorskip("icon_registration")
networks = pytest.importorskip("icon_registration.networks")
wrappers = pytest.importorskip("icon_registration.network_wrappers")

#: Odd and even sizes; the quarter of each is still enough for the small U-Net.
SHAPES = {2: (25, 30), 3: (14, 13, 18)}
CLOSE = 1e-5


@pytest.fixture(params=SHAPES, ids=lambda dims: f"{dims}D")
def dims(request: pytest.FixtureRequest) -> int:
    return request.param


def theirs(dims: int) -> nn.Module:
    """Their U-Net with fewer channels, its weights and statistics anything but zero."""
    net = networks.UNet2(2, [[2, 4, 6], [4, 6]], dims)
    for weights in net.parameters():
        nn.init.normal_(weights, std=0.2)
    for norm in net.batchNorms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return net


def ours(net: nn.Module, dims: int) -> IconUNet:
    restated = IconUNet(dims, (2, 4, 6), (4, 6))
    restated.load_state_dict(net.state_dict())
    return restated


def field_pair(dims: int) -> tuple[nn.Module, Step]:
    net = theirs(dims)
    return icon.FunctionFromVectorField(net), VectorField(ours(net, dims), unit="extent")


def downsampled_pair(dims: int) -> tuple[nn.Module, Step]:
    their_inner, our_inner = field_pair(dims)
    return icon.DownsampleRegistration(their_inner, dims), Downsampled(our_inner, corner_aligned=True)


def after(first: tuple[nn.Module, Step], second: tuple[nn.Module, Step]) -> tuple[nn.Module, Step]:
    return icon.TwoStepRegistration(first[0], second[0]), TwoStep(first[1], second[1], lazy=True, outside="border")


def velocity_pair(dims: int) -> tuple[nn.Module, Step]:
    net = theirs(dims)
    return wrappers.SquaringVelocityField(net), Velocity(ours(net, dims), 8, unit="extent")


def gradicon_pair(dims: int) -> tuple[nn.Module, Step]:
    """Quarter, half, full and full resolution: the tree of GradICON and uniGradICON."""
    pair = field_pair(dims)
    for _ in range(2):
        their_step, our_step = pair
        coarse = icon.DownsampleRegistration(their_step, dims), Downsampled(our_step, corner_aligned=True)
        pair = after(coarse, field_pair(dims))
    return after(pair, field_pair(dims))


PAIRS: dict[str, Callable[[int], tuple[nn.Module, Step]]] = {
    "field": field_pair,
    "velocity": velocity_pair,
    "downsampled": downsampled_pair,
    "two steps": lambda dims: after(field_pair(dims), field_pair(dims)),
    "gradicon": gradicon_pair,
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, dims: int) -> tuple[nn.Module, Step]:
    torch.manual_seed(0)
    their_step, our_step = PAIRS[request.param](dims)
    their_step.assign_identity_map([1, 1, *SHAPES[dims]])
    return their_step.eval(), our_step.eval()


def two_images(dims: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    fixed, moving = (torch.rand(batch, 1, *SHAPES[dims], generator=random) for _ in range(2))
    return fixed, moving


def a_grid(dims: int) -> Grid:
    affine = np.diag([*(1.5, 0.8, 2.2)[:dims], 1.0])
    affine[:-1, -1] = 30
    return Grid(SHAPES[dims], affine)


@torch.no_grad()
def test_the_same_maps_at_the_voxels_and_between_them(pair, dims):
    their_step, our_step = pair
    fixed, moving = two_images(dims)
    grid = a_grid(dims)
    their_map = their_step(moving, fixed)
    our_map = our_step(Images(fixed, grid), Images(moving, grid))
    extent = (torch.tensor(grid.shape) - 1).view(1, -1, *[1] * dims)
    expected = their_map(their_step.identity_map) - their_step.identity_map
    assert expected.abs().max() > 0.02
    torch.testing.assert_close(our_map.on(grid).displacement / extent, expected, atol=CLOSE, rtol=0)

    points = torch.rand(2, dims, *[7] * dims, generator=torch.Generator().manual_seed(2)) * 1.2 - 0.1
    world = torch.from_numpy(grid.world((points * extent).movedim(1, -1).numpy()))
    moved = torch.from_numpy(grid.index(our_map(world).numpy())).movedim(-1, 1).float() / extent
    torch.testing.assert_close(moved, their_map(points), atol=2 * CLOSE, rtol=0)


def test_the_same_gradients(dims):
    torch.manual_seed(0)
    their_step, our_step = gradicon_pair(dims)
    their_step.assign_identity_map([1, 1, *SHAPES[dims]])
    fixed, moving = two_images(dims)
    grid = a_grid(dims)
    extent = (torch.tensor(grid.shape) - 1).view(1, -1, *[1] * dims)
    their_step(moving, fixed)(their_step.identity_map).square().mean().backward()
    found = our_step(Images(fixed, grid), Images(moving, grid))
    ((found.on(grid).displacement + grid.indices()) / extent).square().mean().backward()
    theirs_by_size = sorted(their_step.parameters(), key=lambda weights: float(weights.detach().sum()))
    ours_by_size = sorted(our_step.parameters(), key=lambda weights: float(weights.detach().sum()))
    for their_weights, our_weights in zip(theirs_by_size, ours_by_size, strict=True):
        largest = float(their_weights.grad.abs().max())
        torch.testing.assert_close(our_weights.grad, their_weights.grad, atol=1e-3 * largest + 1e-7, rtol=0)


@torch.no_grad()
def test_the_full_network_of_the_published_weights(dims):
    torch.manual_seed(0)
    net = networks.tallUNet2(dimension=dims).eval()
    nn.init.normal_(net.lastConv.weight, std=0.1)
    restated = IconUNet(dims)
    restated.load_state_dict(net.state_dict())
    size = restated.minimum_size
    assert size == 17
    shape = (size, size + 1, size + 3)[:dims]
    fixed, moving = torch.rand(2, 1, 1, *shape)
    torch.testing.assert_close(restated.eval()(fixed, moving), net(moving, fixed), atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_same_losses_of_the_two_directions(dims):
    """Inverse consistency and GradICON at the same random points; on a grid that is 1 mm long,
    corner to corner, mm are their units. They take the mean of a vector's squared components, we their sum. In double
    precision: GradICON divides differences by 0.001."""
    torch.manual_seed(0)
    n = 12
    shape = (n,) * dims
    grid = Grid.isotropic(shape, 1 / (n - 1))
    their_step, our_step = (step.double().eval() for step in field_pair(dims))
    their_loss = icon.GradientICON(their_step, icon.LNCC(sigma=2), 1.0)
    their_icon = icon.InverseConsistentNet(their_step, lambda a, b: 0 * a.mean(), 1.0)
    for loss in (their_loss, their_icon):
        loss.assign_identity_map([2, 1, *shape])
        loss.double()
    a, b = torch.rand(2, 2, 1, *shape, dtype=torch.float64)
    one, other = Images(a, grid), Images(b, grid)
    forward, backward = our_step(other, one).on(grid).displacement, our_step(one, other).on(grid).displacement

    torch.manual_seed(7)
    noise = torch.randn(their_loss.identity_map.shape)
    points = (their_loss.identity_map + noise / n) * (n - 1)
    torch.manual_seed(7)
    expected = their_loss.compute_gradient_icon_loss(their_step(a, b), their_step(b, a))
    found = gradicon(forward, backward, grid, points, delta=0.001 * (n - 1)) / dims
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)

    torch.manual_seed(7)
    expected = their_icon(a, b).inverse_consistency_loss
    both = ((forward, backward), (backward, forward))
    found = sum(inverse_consistency(*order, grid, points) for order in both) / dims
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
