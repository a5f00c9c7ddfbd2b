"""Which images are of one contrast, and what becomes of the greys of those that are not."""

import pytest
import torch

from stepwarp.geometry import Affine, Image
from stepwarp.registrar.contrast import better_side, contrasts, mapped_pair


def steps(x):
    """One grey for each of three tissues, in no order."""
    return torch.where(x < 0.35, 0.9, torch.where(x < 0.72, 0.3, 0.6))


SAME = {
    "as it is": lambda x: x,
    "brighter": lambda x: x.sqrt(),
    "darker": lambda x: x.square(),
    "noise": lambda x: x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
    "a bias": lambda x: x * torch.linspace(0.6, 1, x.shape[2]),
}
OTHERS = {"inverted": lambda x: 1.05 - x, "folded": lambda x: (x - 0.6).abs() + 0.06, "in steps": steps}


def shown(image: Image, greys) -> Image:
    """The subject in other greys."""
    return Image(torch.where(image.data > 0.05, greys(image.data), 0), image.grid, image.name)


@pytest.mark.parametrize("greys", SAME.values(), ids=SAME)
def test_what_one_kind_of_scan_shows_is_one_contrast(known, greys):
    found = contrasts(known.fixed, shown(known.moving, greys), known.truth)
    assert found.alike
    assert 0 < found.line <= max(found.of_moving, found.of_fixed)


@pytest.mark.parametrize("greys", OTHERS.values(), ids=OTHERS)
def test_others_are_told_apart_either_way_round(known, greys):
    other = shown(known.moving, greys)
    assert not contrasts(known.fixed, other, known.truth).alike
    assert not contrasts(other, known.fixed, known.truth_inverse).alike


def test_what_has_nothing_in_common_is_not_called_another_contrast(known):
    noise = torch.rand(known.fixed.data.shape, generator=torch.Generator().manual_seed(1))
    assert contrasts(known.fixed, Image(noise, known.fixed.grid), Affine.identity(3)).alike
    away = Affine.identity(3).matrix.copy()
    away[:3, 3] = 1e4
    assert contrasts(known.fixed, known.moving, Affine(away)).alike


@pytest.mark.parametrize("greys", OTHERS.values(), ids=OTHERS)
def test_greys_become_those_of_the_other_image(known, greys):
    """Of an image and itself in other greys, which is a function where it is looked up: the way back may be none."""
    other = shown(known.fixed, greys)
    seen = contrasts(known.fixed, other, Affine.identity(3))
    pair = mapped_pair(seen, "fixed", known.fixed, other)
    inside = known.fixed.data > 0.05
    assert float((pair.fixed.data - other.data)[inside].abs().mean()) < 0.03
    assert torch.equal(pair.moving.data, other.data)
    assert not pair.fixed.data[known.fixed.data == 0].any()


@pytest.mark.parametrize(
    ("greys", "side"), [(OTHERS["folded"], "fixed"), (steps, "moving")], ids=["folded", "in steps"]
)
def test_the_side_is_mapped_after_which_more_is_seen(known, greys, side):
    other = shown(known.moving, greys)
    seen = contrasts(known.fixed, other, known.truth)
    assert better_side(seen, known.fixed, other, known.truth) == side
    there = contrasts(other, known.fixed, known.truth_inverse)
    assert better_side(there, other, known.fixed, known.truth_inverse) != side


def test_what_a_mask_excludes_has_no_influence(known):
    mask = torch.ones_like(known.fixed.data)
    mask[: mask.shape[0] // 2] = 0
    spoilt = Image(torch.where(mask > 0, known.fixed.data, 1 - known.fixed.data), known.fixed.grid)
    mask = Image(mask, known.fixed.grid)
    one, other = (contrasts(image, known.moving, known.truth, mask) for image in (known.fixed, spoilt))
    assert one.as_dict() == other.as_dict()
    assert contrasts(spoilt, known.moving, known.truth).line < one.line - 0.1
