"""The loss of a segmentation against MONAI's, and what counts in it."""

import pytest
import torch
from monai.losses import DiceCELoss

from stepwarp.losses.segmentation import segmentation_loss


def sample(batch: int = 1, classes: int = 4, shape: tuple[int, ...] = (6, 7, 5)):
    random = torch.Generator().manual_seed(batch)
    logits = 2 * torch.randn(batch, classes, *shape, generator=random)
    wanted = torch.randint(0, classes, (batch, 1, *shape), generator=random)
    return logits, wanted, torch.rand(batch, 1, *shape, generator=random) < 0.6


@pytest.mark.parametrize("shape", [(40,), (9, 8), (6, 7, 5)], ids=str)
def test_where_every_voxel_counts_it_is_what_monai_computes(shape):
    logits, wanted, _ = sample(shape=shape)
    theirs = DiceCELoss(to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=0)(logits, wanted)
    ours = segmentation_loss(logits, wanted, torch.ones_like(wanted, dtype=torch.bool))
    torch.testing.assert_close(ours, theirs)


def test_what_lies_outside_counts_nothing():
    logits, wanted, inside = sample()
    other = torch.where(inside, logits, 9 * torch.randn(logits.shape))
    assert segmentation_loss(logits, wanted, inside) == segmentation_loss(other, wanted, inside)


def test_a_class_that_does_not_occur_is_not_missed():
    logits, wanted, inside = sample()
    more = torch.cat([logits, torch.full_like(logits[:, :1], -1e4)], 1).requires_grad_()
    loss = segmentation_loss(more, wanted, inside)
    torch.testing.assert_close(loss, segmentation_loss(logits, wanted, inside))
    loss.backward()
    assert more.grad.isfinite().all()


def test_a_batch_is_the_mean_of_its_samples_and_nothing_at_all_is_no_error():
    logits, wanted, inside = sample(3)
    each = [segmentation_loss(logits[n : n + 1], wanted[n : n + 1], inside[n : n + 1]) for n in range(3)]
    torch.testing.assert_close(segmentation_loss(logits, wanted, inside), torch.stack(each).mean())
    assert segmentation_loss(logits, wanted, torch.zeros_like(inside)) == 0


def test_what_is_right_costs_nothing():
    _, wanted, inside = sample()
    right = 1e3 * torch.nn.functional.one_hot(wanted[:, 0], 4).movedim(-1, 1).float()
    assert segmentation_loss(right, wanted, inside) == pytest.approx(0, abs=1e-5)
