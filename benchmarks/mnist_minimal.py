"""The MNIST experiment on a page: nine steps of one small network, trained on pairs of 5s, and a picture of the result.

    python benchmarks/mnist_minimal.py [FOLDER OF MNIST'S FILES]

About a minute. `stepwarp mnist` is the whole study, with the same steps and losses."""

from __future__ import annotations

import sys
from pathlib import Path

import stepwarp  # noqa: F401  # before torch: it sets how idle threads wait

# isort: split
import torch
from PIL import Image

from stepwarp.losses.regularity import diffusion
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.mnist.data import GRID, load_digits, pairs
from stepwarp.networks.mlp import FCNet
from stepwarp.registrar.steps import Images, Repeat, VectorField

ITERATIONS, BATCH, RATE = 840, 128, 1e-3
#: For half of icon_registration's loss, 2 SSD + 0.05 * diffusion, whose u is in units of the image's width: see
#: `stepwarp.mnist.training.icon_weight`.
WEIGHT = 0.05 / 2 * (28 / 27) ** 2 / 2


def main(folder: Path | None) -> None:
    torch.manual_seed(0)
    digits = load_digits(folder)
    fives = digits.train.of(5).images
    step = Repeat(VectorField(FCNet(28), unit="extent"), 9, outside="border")
    optimiser = torch.optim.Adam(step.parameters(), RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, ITERATIONS)
    for iteration in range(ITERATIONS):
        fixed, moving = (Images(fives[torch.randint(len(fives), (BATCH,))], GRID) for _ in range(2))
        found = step(fixed, moving)
        moved = moving.warp(found, "border")
        loss = SSD()(fixed.data, moved.data) + WEIGHT * diffusion(found.on(GRID).displacement)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        falling.step()
        if iteration % 100 == 0:
            print(f"{iteration:5} loss {loss.item():.4f}")

    fixed, moving = pairs(digits.test.of(5), 500)
    with torch.no_grad():
        maps = list(step.trace(fixed, moving))
    seen = [moving.data, *(moving.warp(each, "border").data for each in maps), fixed.data]
    before, after = (SSD()(fixed.data, images).item() for images in (seen[0], seen[-2]))
    print(f"{digits.source}: SSD of held-out 5s {before:.4f} -> {after:.4f}, {100 * (1 - after / before):.1f} % less")
    strip = torch.cat([torch.cat([images[row, 0] for images in seen], 1) for row in range(6)])
    Image.fromarray((strip * 255).byte().numpy()).resize((11 * 28 * 3, 6 * 28 * 3), 0).save("mnist_minimal.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
