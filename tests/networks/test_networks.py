"""What all networks promise, and what each does."""

import pytest
import torch

from stepwarp.errors import InputError
from stepwarp.networks import Encoder, FCNet, IconUNet, Segmenter, UNet
from stepwarp.networks.segmenter import depth_to_space, space_to_depth

SHAPES = [(21,), (13, 20), (9, 12, 10)]


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(seed))


def shaken(net: torch.nn.Module, much: float = 0.1) -> torch.nn.Module:
    """The network with its zeros gone."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in net.parameters():
            weights.add_(much * torch.randn(weights.shape, generator=random))
    return net


NETS = {
    "unet": lambda shape: UNet(len(shape), (4, 8, 8)),
    "unet, pooled, two convolutions, instance norm": lambda shape: UNet(
        len(shape), (4, 8), convolutions=2, down="pooled", norm="instance"
    ),
    "unet, group norm": lambda shape: UNet(len(shape), (16, 16), norm="group"),
    "unet of one level": lambda shape: UNet(len(shape), (4,)),
    "icon unet": lambda shape: IconUNet(len(shape), (2, 4, 6), (4, 6)),
    "fcnet": lambda shape: FCNet(shape, (20,)),
    "encoder": lambda shape: Encoder(len(shape), (4, 8)),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_any_size_zeros_before_training_and_weights_that_all_learn(name, shape):
    net = NETS[name](shape)
    fixed, moving = images(*shape), images(*shape, seed=1)
    output = net(fixed, moving)
    d = len(shape)
    assert output.shape == ((2, d, d + 1) if name == "encoder" else (2, d, *shape))
    assert output.abs().max() == 0
    target = torch.rand(output.shape, generator=torch.Generator().manual_seed(2))
    ((shaken(net)(fixed, moving) - target) ** 2).sum().backward()
    for key, weights in net.named_parameters():
        # A bias before a norm is taken away by it.
        before_norm = "instance" in name and key.endswith("0.bias") and not key.startswith("last")
        assert weights.grad is not None
        assert before_norm or weights.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", NETS)
def test_one_of_a_batch_does_not_see_the_others(name):
    net = shaken(NETS[name]((12, 16))).eval()
    fixed, moving = images(12, 16), images(12, 16, seed=1)
    torch.testing.assert_close(net(fixed, moving)[1:], net(fixed[1:], moving[1:]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_in_mixed_precision_positions_come_in_single(name):
    net = shaken(NETS[name]((12, 16)), 0.05).eval()
    fixed, moving = images(12, 16), images(12, 16, seed=1)
    exact = net(fixed, moving)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(fixed, moving)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, atol=0.03 * float(exact.detach().abs().max()), rtol=0)
    assert len(mixed.unique()) > 0.9 * mixed.numel()


@pytest.mark.parametrize("down", ["strided", "pooled"])
def test_what_moves_by_whole_coarse_voxels_is_answered_by_the_same_moved(down):
    """Away from the border, where zeros are the same on all sides."""
    net = shaken(UNet(2, (4, 6, 6), down=down), 0.2).double()
    blob = torch.zeros(1, 1, 80, 80, dtype=torch.float64)
    blob[..., 36:44, 37:44] = images(8, 7)[:1].double()
    here = net(blob, blob.square())
    moved = blob.roll((4, -8), (2, 3))
    there = net(moved, moved.square()).roll((-4, 8), (2, 3))
    middle = (..., slice(28, 52), slice(28, 52))
    assert (here[middle] - here[..., 28:29, 28:29]).abs().max() > 1e-3
    torch.testing.assert_close(here[middle], there[middle], atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", ["none", "instance", "group"])
def test_the_smallest_image_a_unet_takes(norm):
    net = UNet(2, (4, 4, 4, 4), norm=norm)
    n = net.minimum_size
    assert n == (8 if norm == "none" else 9)
    assert net(images(n, n), images(n, n)).shape == (2, 2, n, n)
    with pytest.raises(InputError, match=f"4 levels needs images of {n} voxels along each axis, not {n - 1} x 40"):
        net(images(n - 1, 40), images(n - 1, 40))


def test_the_smallest_image_an_icon_unet_takes():
    net = IconUNet(2, (2, 4, 4, 4), (4, 4, 4)).eval()
    assert net.minimum_size == 5
    assert net(images(5, 5), images(5, 5)).shape == (2, 2, 5, 5)
    with pytest.raises(InputError, match="5 voxels along each axis, not 4 x 9"):
        net(images(4, 9), images(4, 9))


def test_a_network_of_all_pixels_says_what_it_was_made_for():
    net = FCNet(28)
    assert [tuple(weights.shape) for weights in net.parameters()][::2] == [(50, 1568), (50, 50), (1568, 50)]
    with pytest.raises(InputError, match=r"images of 1x28x28 .* not 1x27x28"):
        net(images(27, 28), images(27, 28))


def test_an_encoder_knows_where_things_are():
    """The same square elsewhere, far from any border: a mean of features alone could not tell."""
    net = shaken(Encoder(2, (4, 8)), 0.3)
    here, there = torch.zeros(1, 1, 40, 40), torch.zeros(1, 1, 40, 40)
    here[..., 10:16, 10:16] = 1
    there[..., 22:28, 10:16] = 1
    assert (net(here, here) - net(there, here)).abs().max() > 1e-2
    assert (net(here, here) - net(there, there)).abs().max() > 1e-2


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_of_voxels_as_channels_and_back(shape):
    even = torch.rand(2, 3, *(n + n % 2 for n in shape))
    coarse = space_to_depth(even)
    assert coarse.shape == (2, 3 * 2 ** len(shape), *(n // 2 for n in even.shape[2:]))
    assert torch.equal(depth_to_space(coarse, 3), even)
    block = even[(0, 1, *[slice(0, 2)] * len(shape))].flatten()
    first = coarse[(0, slice(2 ** len(shape), 2 * 2 ** len(shape)), *[0] * len(shape))]
    assert torch.equal(first, block)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_segmenter_answers_for_every_voxel_of_any_size(shape):
    net = Segmenter(len(shape), 5, (16, 16))
    both = net(images(*shape))
    assert both.shape == (2, 5, *shape)
    torch.testing.assert_close(net(images(*shape)[1:]), both[1:], atol=1e-5, rtol=1e-4)
    both.square().sum().backward()
    assert all(weights.grad is not None and weights.grad.abs().max() > 0 for weights in net.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_a_segmenter_expects_is_the_mean_by_its_probabilities(shape):
    net = Segmenter(len(shape), 5, (16, 16))
    values = torch.rand(5, 3)
    wanted = torch.einsum("bk...,kc->bc...", net(images(*shape)).softmax(1), values)
    torch.testing.assert_close(net.expected(images(*shape), values), wanted)


def test_the_smallest_image_a_segmenter_takes():
    net = Segmenter(2, 3, (8, 8, 8))
    n = net.minimum_size
    assert net(images(n, n)).shape == (2, 3, n, n)
    with pytest.raises(InputError, match=f"the segmenter needs images of {n} voxels along each axis, not {n - 1} x 40"):
        net(images(n - 1, 40))


def test_a_segmenter_learns_detail_of_single_voxels():
    """Its blocks of 2 voxels are told apart within: every second voxel is of another class."""
    torch.manual_seed(0)
    net = Segmenter(2, 3, (8, 8))
    image = (torch.rand(1, 1, 12, 14) > 0.5).float()
    wanted = image[:, 0].long() + 1
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(net(image), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (net(image).argmax(1) == wanted).float().mean() > 0.98
