"""Why does training the nine steps at a constant rate break down? The same moment before it, continued in several ways.

    python benchmarks/mnist_stability.py [--data FOLDER] [--seeds 3]

Each seed is trained with Adam at a constant 1e-3 until it breaks down, and then taken up again BACK iterations before,
with the same weights and the same memory in Adam, but with one thing changed. What prevents the breakdown from there
has to do with its cause: a smaller rate does if the updates are too long for the curvature, a larger batch if the
noise of the gradient is to blame, a short second moment or updates shortened by their surprise (see
stepwarp.mnist.training) if Adam's memory is out of date, a single step if composing nine of them is what is fragile,
a stronger penalty if it is how far the fields go. Writes results/mnist/stability.json, a seed at a time,
and stability.md."""

from __future__ import annotations

import argparse
import copy
import json
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stepwarp  # noqa: F401  # before torch: it sets how idle threads wait

# isort: split
import torch

from stepwarp.files import write_text
from stepwarp.files.json import write_json
from stepwarp.machine import machine
from stepwarp.mnist.config import read_settings
from stepwarp.mnist.data import GRID, Digits, load_digits, partners
from stepwarp.mnist.models import MODELS, TIED
from stepwarp.mnist.training import loss, surprise
from stepwarp.registrar.steps import Images, Repeat
from stepwarp.training.settings import OptimiserSettings
from stepwarp.workflow.device import use_threads

RESULT = Path(__file__).parent / "results" / "mnist" / "stability.json"
RATE, BATCH, BLOCK, LONGEST = 1e-3, 128, 20, 4000
#: A training has broken down when the mean loss of a block is this many times the lowest before.
BROKEN = 1.5
#: Taken up this many iterations before, and followed for so many.
BACK, AFTER = 100, 300


@dataclass(frozen=True)
class Way:
    """How a training goes on. limit: the surprise beyond which an update is shortened."""

    rate: float = RATE
    batch: int = BATCH
    memory: float = 0.999
    limit: float = float("inf")
    penalty: float = 1.0
    steps: int | None = None


WAYS = {
    "as it was": Way(),
    "rate 5e-4": Way(rate=5e-4),
    "rate 2.5e-4": Way(rate=2.5e-4),
    "batch 512": Way(batch=512),
    "second moment 0.95": Way(memory=0.95),
    "surprising updates shortened": Way(limit=1.5),
    "twice the penalty": Way(penalty=2.0),
    "five steps": Way(steps=5),
    "one step": Way(steps=1),
}


@dataclass(eq=False)
class Run:
    """A training that can be copied and gone on with. losses, surprises: of every iteration."""

    step: Repeat
    optimiser: torch.optim.Adam
    generator: torch.Generator
    losses: list[float] = field(default_factory=list)
    surprises: list[float] = field(default_factory=list)

    @classmethod
    def begun(cls, seed: int) -> Run:
        step = MODELS[TIED].untrained(read_settings(), seed)
        assert isinstance(step, Repeat)
        return cls(step, OptimiserSettings(lr=RATE).build(step.parameters()), torch.Generator().manual_seed(seed))

    def copied(self) -> Run:
        step, optimiser = copy.deepcopy((self.step, self.optimiser))  # together: one holds the other's weights
        return Run(step, optimiser, self.generator.clone_state(), self.losses[:], self.surprises[:])

    def turn(self, way: Way) -> None:
        """Go on in a way."""
        for group in self.optimiser.param_groups:
            group["lr"], group["betas"] = way.rate, (group["betas"][0], way.memory)
        self.step.n = way.steps or self.step.n

    def iterate(self, fives: Digits, way: Way) -> None:
        fixed = torch.randint(len(fives), (way.batch,), generator=self.generator)
        moving = partners(fives.labels, fixed, self.generator)
        pairs = Images(fives.images[fixed], GRID), Images(fives.images[moving], GRID)
        value = sum(loss(self.step, *pairs, way.penalty * read_settings().diffusion))
        self.optimiser.zero_grad()
        value.backward()
        before = [p.detach().clone() for p in self.step.parameters()]
        self.optimiser.step()
        self.losses.append(float(value.detach()))
        self.surprises.append(surprise(self.optimiser))
        if self.surprises[-1] > way.limit:
            with torch.no_grad():
                for p, old in zip(self.step.parameters(), before, strict=True):
                    p.copy_(torch.lerp(old, p, way.limit / self.surprises[-1]))

    def blocks(self, start: int = 0) -> list[float]:
        ends = range(start + BLOCK, len(self.losses) + 1, BLOCK)
        return [sum(self.losses[end - BLOCK : end]) / BLOCK for end in ends]

    def is_broken(self, start: int = 0) -> bool:
        """Whether the last block from `start` on is. What is not a number is."""
        means = self.blocks(start)
        return len(means) > 1 and not means[-1] < BROKEN * min(means[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    threads = use_threads(1)
    digits = load_digits(given.data)
    content = json.loads(RESULT.read_text()) if RESULT.exists() else {"seeds": {}}
    content |= {"digits": digits.source, "broken": BROKEN, "back": BACK, "after": AFTER, "machine": machine(threads)}
    for seed in range(given.seeds):
        if str(seed) not in content["seeds"]:
            content["seeds"][str(seed)] = study(digits.train.of(5), seed)
            write_json(RESULT, content, overwrite=True)
    write_text(RESULT.with_suffix(".md"), table(content["seeds"]), overwrite=True)


def table(seeds: dict[str, Any]) -> str:
    """After how many iterations each way broke down, by seed."""
    first = [f"seed {seed}, from {found['taken_up_at']}" for seed, found in seeds.items()]
    lines = [f"| gone on with | {' | '.join(first)} |", "|---" * (len(first) + 1) + "|"]
    for name in WAYS:
        ends = [found["ways"][name] for found in seeds.values()]
        cells = [
            f"after {end['broken_after']}" if end["broken_after"] else f"no, {end['last_loss']:.4f}" for end in ends
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    note = (
        f"Broken down: the mean loss of {BLOCK} iterations is {BROKEN} times the lowest since then. Else the last loss."
    )
    return "\n".join([*lines, "", f"{note} {AFTER} iterations at the most.", ""])


def study(fives: Digits, seed: int) -> dict[str, Any]:
    """When a training broke down, and what became of it from before that on."""
    run, kept = Run.begun(seed), deque(maxlen=1 + BACK // BLOCK)
    while len(run.losses) < LONGEST and not (len(run.losses) % BLOCK == 0 and run.is_broken()):
        if len(run.losses) % BLOCK == 0:
            kept.append(run.copied())
        run.iterate(fives, WAYS["as it was"])
    found = {"broke_down_at": len(run.losses), "lowest_loss": min(run.blocks()), "taken_up_at": len(kept[0].losses)}
    found["surprise"] = {"median": sorted(run.surprises)[len(run.losses) // 2], "last_40": max(run.surprises[-40:])}
    found["ways"] = {}
    for name, way in WAYS.items():
        found["ways"][name] = followed(kept[0], way, fives)
        print(seed, name, found["ways"][name], flush=True)
    return found


def followed(run: Run, way: Way, fives: Digits) -> dict[str, Any]:
    """Whether it breaks down within AFTER iterations, judged by the blocks since it was taken up."""
    run = run.copied()
    run.turn(way)
    start, broken_after = len(run.losses), None
    while len(run.losses) < start + AFTER and broken_after is None:
        run.iterate(fives, way)
        if len(run.losses) % BLOCK == 0 and run.is_broken(start):
            broken_after = len(run.losses) - start
    means = run.blocks(start)
    return {"broken_after": broken_after, "first_loss": means[0], "last_loss": means[-1], "highest_loss": max(means)}


if __name__ == "__main__":
    main()
