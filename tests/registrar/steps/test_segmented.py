"""Steps that are shown a segmentation: what they see, what it costs, and that it leads them."""

import pytest
import torch
from torch import Tensor, nn

from stepwarp.geometry import Grid
from stepwarp.networks import Segmenter, UNet
from stepwarp.registrar.steps import Guided, Images, Repeat, Segmented, TwoStep

GRID = Grid.isotropic((24, 26), 2.0)


class Bands(nn.Module):
    """Finds three structures in bands of brightness, and is sure of them."""

    classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(1e4))
        self.calls = 0

    def expected(self, image: Tensor, values: Tensor) -> Tensor:
        self.calls += 1
        middles = torch.tensor([0.0, 0.25, 0.5, 0.75]).view(1, -1, *[1] * (image.ndim - 2))
        shares = (-self.sure * (image - middles).square()).softmax(1)
        return torch.einsum("bk...,kc->bc...", shares, values)


class Seen(nn.Module):
    """A network that remembers what it was given, and says: stay."""

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        self.given = fixed, moving
        return torch.zeros(len(fixed), fixed.ndim - 2, *fixed.shape[2:])


def bands(shift: int = 0) -> Images:
    data = torch.zeros(1, 1, *GRID.shape)
    for value, start in ((0.25, 4), (0.5, 10), (0.75, 15)):
        data[..., start + shift : start + shift + 5, 4:22] = value
    return Images(data, GRID)


def guided() -> Guided:
    return Guided(UNet(2, (4, 4), in_channels=6))


def test_the_image_comes_with_a_direction_for_each_structure():
    step = Segmented(Bands(), guided(), codes=16, weight=2.0)
    seen = step.informed(bands())
    assert seen.data.shape == (1, 17, *GRID.shape)
    assert torch.equal(seen.data[:, :1], bands().data)
    codes = {value: seen.data[0, 1:][:, bands().data[0, 0] == value] for value in (0, 0.25, 0.5, 0.75)}
    assert codes[0].abs().max() == 0
    for value in (0.25, 0.5, 0.75):
        assert (codes[value] - codes[value][:, :1]).abs().max() < 1e-6
        assert float(codes[value][:, 0].square().sum()) == pytest.approx(2), "the weight"
    apart = [float((codes[a][:, 0] - codes[b][:, 0]).square().sum()) for a, b in ((0.25, 0.5), (0.5, 0.75))]
    assert all(distance == pytest.approx(4, rel=0.6) for distance in apart), "about at right angles"


def test_where_the_segmenter_doubts_the_codes_are_in_between():
    doubting, sure = Bands(), Bands()
    nn.init.zeros_(doubting.sure)
    both = [Segmented(each, guided()) for each in (doubting, sure)]
    inside = bands().data[0, 0] > 0
    doubted = both[0].informed(bands()).data[0, 1:][:, inside]
    torch.testing.assert_close(doubted, both[1].codes.mean(0)[:, None].expand_as(doubted))


def test_codes_are_drawn_alike_every_time():
    first, second = (Segmented(Bands(), guided()) for _ in range(2))
    assert torch.equal(first.codes, second.codes)


def test_each_image_is_segmented_once_whatever_follows():
    segmenter = Bands()
    step = Segmented(segmenter, TwoStep(Repeat(guided(), 3), Repeat(guided(), 4)))
    step(bands(), bands(1))
    assert segmenter.calls == 2
    assert len(list(step.trace(bands(), bands(1)))) == 7
    assert segmenter.calls == 4


def test_the_last_of_a_trace_is_what_is_found():
    step = Segmented(Bands(), Repeat(guided(), 3))
    *_, last = step.trace(bands(), bands(2))
    torch.testing.assert_close(last.on(GRID).displacement, step(bands(), bands(2)).on(GRID).displacement)


def test_the_network_within_sees_images_and_forces_alone():
    net = Seen()
    Segmented(Bands(), Guided(net))(bands(), bands(2))
    assert [tuple(given.shape[:2]) for given in net.given] == [(1, 3), (1, 3)]
    assert torch.equal(net.given[0][:, :1], bands().data)


def test_structures_lead_where_brightness_does_not():
    """In noise as strong as the structures are bright the segmenter, told of the structures by a picture without noise,
    leads the steps; what the noise looks like cannot."""

    class Knows(Bands):
        def expected(self, image: Tensor, values: Tensor) -> Tensor:
            return super().expected(bands(0 if torch.equal(image, noisy[0].data) else 3).data, values)

    random = torch.Generator().manual_seed(0)
    noisy = [
        Images(0.1 + torch.rand(1, 1, *GRID.shape, generator=random) * (bands(shift).data > 0), GRID)
        for shift in (0, 3)
    ]

    @torch.no_grad()
    def matched(step: nn.Module) -> float:
        moved = bands(3).warp(step(*noisy)).data
        return float((moved - bands().data).square().mean())

    alone, led = (
        matched(Repeat(guided(), 12)),
        matched(Segmented(Knows(), Repeat(guided(), 12), weight=8.0)),
    )
    assert led < 0.5 * alone


def test_no_gradient_reaches_the_segmenter_through_the_steps():
    step = Segmented(Segmenter(2, 3, (8,)), guided())
    found = step(bands(), bands(2))
    found.on(GRID).displacement.square().sum().backward()
    assert all(weights.grad is None for weights in step.segmenter.parameters())
    assert step.step.gain.grad is not None


def test_other_steps_can_be_shown_the_same():
    step = Segmented(Bands(), TwoStep(guided(), guided()), codes=4, weight=3.0).eval()
    other = step.around(step.step.first)
    assert other.step is step.step.first
    assert other.segmenter is step.segmenter
    assert not other.training
    assert torch.equal(other.informed(bands()).data, step.informed(bands()).data)


def test_a_summary_counts_the_structures_and_all_weights():
    step = Segmented(Segmenter(2, 3, (8,)), guided())
    first, second = str(step).splitlines()
    total = sum(weights.numel() for weights in step.parameters())
    assert first == f"Segmented into 2 structures: {total:,} parameters"
    assert second.startswith("└─ Guided UNet")
