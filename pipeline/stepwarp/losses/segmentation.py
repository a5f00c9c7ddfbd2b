"""How badly a segmentation fits, for training networks that segment."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def segmentation_loss(logits: Tensor, classes: Tensor, inside: Tensor) -> Tensor:
    """Cross-entropy plus 1 - the mean soft Dice of the classes that occur, the background among them
    (after nnU-Net, Isensee et al. 2021, which leaves the background out of the Dice).

    logits: (B, K, *grid). classes: (B, 1, *grid) int64 from 0 to K - 1. inside: (B, 1, *grid) bool, the voxels that
    count. Mean over the batch; 0 of a sample of which none counts."""
    each = [_of_one(*sample) for sample in zip(logits, classes[:, 0], inside[:, 0], strict=True)]
    return torch.stack(each).mean()


def _of_one(logits: Tensor, classes: Tensor, inside: Tensor) -> Tensor:
    """logits: (K, *grid). classes, inside: (*grid)."""
    scores, wanted = logits.movedim(0, -1)[inside].float(), classes[inside]
    if not len(wanted):
        return 0 * logits.sum()
    shares = scores.softmax(1)
    matching = shares.gather(1, wanted[:, None])[:, 0]
    volumes = torch.bincount(wanted, minlength=scores.shape[1])
    overlap = torch.zeros_like(shares[0]).index_add(0, wanted, matching)
    present = volumes > 0
    dice = 2 * overlap[present] / (shares.sum(0) + volumes)[present]
    return F.cross_entropy(scores, wanted) + 1 - dice.mean()
