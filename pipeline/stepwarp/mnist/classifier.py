"""Two instruments that say how much a warped image looks like a 5, and how well the first one can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwarp.kernels import smoothing
from stepwarp.mnist.data import GRID, Digits
from stepwarp.mnist.networks import Classifier
from stepwarp.mnist.training import OUTSIDE, Report
from stepwarp.probes.fixed_point import random_start
from stepwarp.probes.objective import Candidate, of_moved
from stepwarp.registrar.steps import Images

#: The warps that the classifier is trained with, and judged with: root mean square length and smoothness in pixels. The
#: networks' own maps of pairs of 5s have a length of about 3.
WARPS = ((0.0, 1.0), (1.0, 2.0), (1.5, 3.0), (2.5, 4.0))
BLURS = (0.0, 0.5, 1.0)
_BATCH = 64
_RATE = 1e-3
#: Blur of the images before distances are taken: without, a stroke's thickness decides which neighbour is near.
_NEAR = 1.0


@dataclass(frozen=True, eq=False)
class Instruments:
    """classifier: ten log-probabilities. fives: (N, 1, 28, 28), the training set's 5s."""

    classifier: Classifier
    fives: Tensor

    @torch.no_grad()
    def probability(self, images: Tensor, digit: int) -> Tensor:
        """P(digit) of each image, (B,)."""
        return self.classifier(images)[:, digit].exp()

    @torch.no_grad()
    def distance(self, images: Tensor) -> Tensor:
        """Root mean square distance of each image to the nearest 5, both blurred by a pixel, (B,)."""
        a, b = (smoothing.gaussian(x, _NEAR).flatten(1) for x in (images, self.fives))
        return torch.cdist(a, b).amin(1) / a.shape[1] ** 0.5

    def candidates(self) -> dict[str, Candidate]:
        """The gradients that probe c has beside those of the registration: towards what looks like a 5."""

        def unlikely(fixed: Tensor, moved: Tensor) -> Tensor:
            return -self.classifier(moved)[:, 5]

        def far(fixed: Tensor, moved: Tensor) -> Tensor:
            with torch.no_grad():
                nearest = torch.cdist(moved.flatten(1), self.fives.flatten(1)).argmin(1)
            return (moved - self.fives[nearest]).square().flatten(1).mean(1)

        return {"-log P(5)": of_moved(unlikely), "nearest 5": of_moved(far)}


def train_classifier(digits: Digits, examples: int, seed: int, report: Report | None = None) -> Classifier:
    """A classifier of digits that were warped and blurred at random, so that a warped digit is nothing new to it."""
    torch.manual_seed(seed)
    net = Classifier()
    batches = max(1, examples // _BATCH)
    optimiser = torch.optim.Adam(net.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, batches)
    generator = torch.Generator().manual_seed(seed)
    for number in range(batches):
        chosen = torch.randint(len(digits), (_BATCH,), generator=generator)
        warp, blur = (int(torch.randint(len(each), (), generator=generator)) for each in (WARPS, BLURS))
        images = disturbed(digits.images[chosen], *WARPS[warp], BLURS[blur], seed + number)
        error = F.nll_loss(net(images), digits.labels[chosen])
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        schedule.step()
        if report is not None:
            report(number + 1, batches, float(error.detach()))
    return net.eval().requires_grad_(False)


def disturbed(images: Tensor, size: float, width: float, blur: float, seed: int) -> Tensor:
    """Images (B, 1, 28, 28) warped by a smooth random map of that length and smoothness in pixels, then blurred."""
    if size > 0:
        batch = Images(images, GRID)
        images = batch.warp(random_start(batch, size, width, seed), OUTSIDE).data
    return smoothing.gaussian(images, blur)


@torch.no_grad()
def accuracy(classifier: Classifier, digits: Digits, seed: int = 1) -> list[dict[str, Any]]:
    """The share of digits recognised under each warp and blur, of all digits and of 5s; and of all digits that are no
    5, the share that is taken for one."""
    rows = []
    for size, width in WARPS:
        for blur in BLURS:
            images = disturbed(digits.images, size, width, blur, seed)
            said = torch.cat([classifier(part).argmax(1) for part in images.split(1000)])
            five = digits.labels == 5
            rows.append(
                {
                    "warp": size,
                    "smooth": width,
                    "blur": blur,
                    "accuracy": float((said == digits.labels).float().mean()),
                    "of_fives": float((said[five] == 5).float().mean()),
                    "false_fives": float((said[~five] == 5).float().mean()),
                }
            )
    return rows
