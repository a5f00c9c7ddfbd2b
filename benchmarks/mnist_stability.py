"""Why does training the nine steps at a constant rate break down? Three ways of scaling Adam's updates, three seeds.

    python benchmarks/mnist_stability.py [--data FOLDER] [--seeds 3] [--iterations 2500]

Adam divides by what it remembers of squared gradients. Where these are suddenly larger than that memory (surprise, see
stepwarp.mnist.training), the update is too long by as much. If that is the cause, breakdowns end where the memory is
short, and where the updates are shortened by the surprise, whatever else stays as it is; if it is not, they do not.
Writes results/mnist/stability.json, each run as it ends; those that are there are kept."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import stepwarp  # noqa: F401  # before torch: it sets how idle threads wait

# isort: split
import torch

from stepwarp.files import write_text
from stepwarp.mnist.config import read_settings
from stepwarp.mnist.data import GRID, Digits, load_digits, partners
from stepwarp.mnist.models import MODELS, TIED
from stepwarp.mnist.training import loss, surprise
from stepwarp.registrar.steps import Images
from stepwarp.training.config import OptimiserSettings
from stepwarp.workflow.benchmark.environment import machine
from stepwarp.workflow.device import use_threads

RESULT = Path(__file__).parent / "results" / "mnist" / "stability.json"
RATE, BATCH, EVERY = 1e-3, 128, 20
#: How the updates are scaled: the decay of the second moment, and the surprise above which they are shortened.
WAYS: dict[str, tuple[float, float]] = {
    "Adam, second moment 0.999": (0.999, math.inf),
    "second moment 0.95": (0.95, math.inf),
    "second moment 0.999, surprising updates shortened": (0.999, 1.5),
}
#: A training has broken down when the mean loss of EVERY iterations is this many times the lowest before.
BROKEN = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=2500)
    given = parser.parse_args()
    threads = use_threads(1)
    digits = load_digits(given.data)
    runs = json.loads(RESULT.read_text())["runs"] if RESULT.exists() else []
    done = {(run["way"], run["seed"], run["iterations"]) for run in runs}
    for seed in range(given.seeds):
        for way, (memory, limit) in WAYS.items():
            if (way, seed, given.iterations) not in done:
                found = train(digits.train.of(5), memory, limit, seed, given.iterations)
                runs.append({"way": way, "seed": seed, "iterations": given.iterations} | found)
                content = {"rate": RATE, "batch": BATCH, "digits": digits.source, "broken": BROKEN, "runs": runs}
                write_text(RESULT, json.dumps(content | {"machine": machine(threads)}, indent=1) + "\n", overwrite=True)
                print(way, seed, {key: value for key, value in found.items() if key != "curve"}, flush=True)


def train(fives: Digits, memory: float, limit: float, seed: int, iterations: int) -> dict[str, Any]:
    """The course of one training, its mean loss and largest surprise every few iterations, until it breaks down."""
    settings = read_settings()
    step = MODELS[TIED].untrained(settings, seed)
    optimiser = OptimiserSettings(lr=RATE, second_moment=memory).build(step.parameters())
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    surprises: list[float] = []
    curve: list[tuple[float, float]] = []
    broke_down_at = None
    while len(losses) < iterations and broke_down_at is None:
        fixed = torch.randint(len(fives), (BATCH,), generator=generator)
        moving = partners(fives.labels, fixed, generator)
        images = Images(fives.images[fixed], GRID), Images(fives.images[moving], GRID)
        value = sum(loss(step, *images, settings.diffusion))
        optimiser.zero_grad()
        value.backward()
        surprises.append(update(optimiser, limit))
        losses.append(float(value.detach()))
        if len(losses) % EVERY == 0:
            mean = sum(losses[-EVERY:]) / EVERY
            if curve and not mean < BROKEN * min(before for before, _ in curve):
                broke_down_at = len(losses)
            curve.append((round(mean, 6), round(max(surprises[-EVERY:]), 3)))
    return {
        "broke_down_at": broke_down_at,
        "lowest_loss": min(mean for mean, _ in curve),
        "usual_surprise": round(sorted(surprises)[len(surprises) // 2], 3),
        "largest_surprise_in_the_last_40": round(max(surprises[-40:]), 3),
        "curve": curve,
    }


def update(optimiser: torch.optim.Adam, limit: float) -> float:
    """One update, shortened where its surprise is beyond the limit; the surprise."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    optimiser.step()
    found = surprise(optimiser)
    if found > limit:
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(torch.lerp(old, p, limit / found))
    return found


if __name__ == "__main__":
    main()
