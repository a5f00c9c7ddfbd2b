import pytest
import torch

from stepwarp.data.settings import box_grid
from stepwarp.geometry import DisplacementField
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.training.validation import picture_strip, validate

GRID = box_grid((0, 0, 0), (24, 20, 16), 1)


class Shift(torch.nn.Module):
    """Finds a shift along the first axis, in voxels."""

    def __init__(self, voxels):
        super().__init__()
        self.voxels = voxels

    def forward(self, fixed, moving):
        field = torch.zeros(1, 3, *fixed.grid.shape)
        field[:, 0] = self.voxels
        return DisplacementField(field, fixed.grid)


def sample(shift):
    """A cube, and the same cube `shift` voxels further on."""
    labels = torch.zeros(1, *GRID.shape, dtype=torch.int32)
    labels[:, 6:12, 5:15, 4:12] = 7
    moved = labels.roll(shift, 1)
    return {
        "pair": "a_b", "fixed": labels / 7, "moving": moved / 7, "fixed_labels": labels, "moving_labels": moved
    }  # fmt: skip


def test_what_is_found_exactly_scores_best():
    judged = validate(Shift(3), [sample(3)], GRID, SSD())
    expected = {"loss": 0, "mean_dice": 1, "folds_percent": 0, "std_log_jacobian": 0}
    assert judged.measures == pytest.approx(expected, abs=1e-6)
    apart = validate(Shift(0), [sample(3)], GRID, SSD()).measures
    assert apart["mean_dice"] == pytest.approx(0.5)
    assert apart["loss"] > 0.05


def test_measures_are_means_over_the_pairs_and_labels_are_optional():
    found = [validate(Shift(0), [sample(n)], GRID, SSD()).measures["mean_dice"] for n in (0, 3)]
    both = validate(Shift(0), [sample(0), sample(3)], GRID, SSD()).measures
    assert both["mean_dice"] == pytest.approx(sum(found) / 2)
    bare = {name: value for name, value in sample(1).items() if not name.endswith("labels")}
    assert "mean_dice" not in validate(Shift(0), [bare], GRID, SSD()).measures


def test_labels_that_are_ignored_are_not_scored():
    given = sample(0)
    given["moving_labels"] = given["moving_labels"].clone()
    given["moving_labels"][:, 20:, 15:, 12:] = 9
    found = [validate(Shift(0), [given], GRID, SSD(), ignore).measures["mean_dice"] for ignore in ((9,), ())]
    assert found == pytest.approx([1, 0.5])


def test_what_later_pairs_are_compared_with_is_the_range_over_the_pairs():
    """The shift that is found undoes one pair and parts the other, whose images were the same."""
    grey = 0.2 + torch.rand(1, *GRID.shape, generator=torch.Generator().manual_seed(0))
    shifted, same = ({"pair": "a_b", "fixed": grey, "moving": grey.roll(shift, 1)} for shift in (3, 0))
    seen = validate(Shift(3), [shifted, same], GRID, SSD()).seen
    assert seen["displacement_mm"] == pytest.approx((3, 3), abs=1e-3)
    worst, best = seen["lncc_after_affine"]
    assert worst < 0.2 < 0.99 < best
    lost, gained = seen["lncc_gain"]
    assert lost < -0.1 < 0.1 < gained


def test_the_first_pair_is_shown():
    strip = validate(Shift(3), [sample(3), sample(0)], GRID, SSD()).strip
    fixed, _, moved, difference = strip[:16, : 4 * 20].split(20, 1)
    assert torch.allclose(fixed, moved, atol=1e-6)
    assert difference.abs().max() < 1e-6
    assert strip.shape == (16 + 16 + 20, 4 * 24)
    assert not torch.equal(strip[16:32, :24], strip[16:32, 24:48]), "the shift is along the first axis"
    flat = torch.rand(1, 1, 7, 9)
    assert picture_strip(flat, flat, flat).shape == (9, 4 * 7)


def test_nothing_to_validate_on_is_an_error():
    with pytest.raises(ValueError, match="no pair"):
        validate(Shift(0), [], GRID, SSD())
