"""Training on digits in memory.

The steps, the losses, the learning rate and the running mean of the weights are those of `training`; its loop is not,
because it reads scans that a manifest lists, a pair at a time, and keeps what it needs to go on after days."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stepwarp.errors import RegistrationError
from stepwarp.geometry import Grid
from stepwarp.kernels.sampling import Outside
from stepwarp.losses.regularity import diffusion
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.mnist.config import Training
from stepwarp.mnist.data import GRID, Digits, partners
from stepwarp.probes.objective import PairObjective
from stepwarp.registrar.steps import Images, Step
from stepwarp.training.ema import RunningMean

#: What is seen beyond the moving image: its border repeated, as in icon_registration.
OUTSIDE: Outside = "border"
#: Iterations between two points of the curves, each the mean over them.
_EVERY = 10
#: A gradient whose square is smaller is none.
_TINY = 1e-30
#: (done, total, loss)
Report = Callable[[int, int, float], None]


@dataclass(frozen=True, eq=False)
class TrainedDigits:
    """step: with the running mean of its weights. curve: {"iteration", "loss", "ssd", "diffusion", "gradient", "rate"},
    each a list of means over ten iterations; and "surprise", the largest of the ten, see the function. seconds: on the
    clock; cpu_seconds: of all threads."""

    step: Step
    curve: dict[str, list[float]]
    seconds: float
    cpu_seconds: float


def icon_weight(weight: float, grid: Grid) -> float:
    """The weight of `losses.diffusion` beside one SSD that stands for icon_registration's DiffusionRegularized with
    `weight` as its lambda.

    Theirs is 2 SSD + lambda n^2 (sum over the axes of the mean, over components too, of (du)^2), with u in units of the
    image's width of n - 1 pixels. Ours is half of it, SSD + w * diffusion; diffusion sums over the components and has u
    in pixels, so w = lambda / 2 (n / (n - 1))^2 / 2 in two dimensions. Theirs takes n of the first axis for all, which
    weights grids that are not square wrongly; so these are refused."""
    n = grid.shape[0]
    if set(grid.shape) != {n}:
        raise ValueError(f"icon_registration's diffusion has no meaning on a grid that is not square, {grid}")
    return weight / 2 * (n / (n - 1)) ** 2 / grid.ndim


def objective(weight: float) -> PairObjective:
    """The loss that is trained with, per pair, for the probes: half of icon_registration's."""
    return PairObjective(SSD(), "diffusion", icon_weight(weight, GRID), OUTSIDE)


def loss(step: Step, fixed: Images, moving: Images, weight: float) -> tuple[Tensor, Tensor]:
    """(SSD, weighted diffusion), means over the batch; twice their sum is icon_registration's loss."""
    found = step(fixed, moving)
    moved = moving.warp(found, OUTSIDE)
    energy = diffusion(found.on(fixed.grid).displacement)
    return SSD()(fixed.data, moved.data), icon_weight(weight, fixed.grid) * energy


def train(
    step: Step, digits: Digits, settings: Training, weight: float, seed: int, report: Report | None = None
) -> TrainedDigits:
    """Train a step on random pairs of different digits of one class each. The same seed gives the same weights.

    RegistrationError where the loss stops being a number."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = settings.optimiser.build(step.parameters())
    mean = RunningMean(step, settings.optimiser.ema)
    curve = _Curve()
    began, cpu_began = time.perf_counter(), time.process_time()
    for iteration in range(settings.iterations):
        rate = settings.optimiser.rate(iteration, settings.iterations, iteration)
        for group in optimiser.param_groups:
            group["lr"] = rate
        ssd, energy = loss(step, *_batch(digits, settings.batch, generator), weight)
        optimiser.zero_grad()
        (ssd + energy).backward()
        gradient = torch.nn.utils.clip_grad_norm_(step.parameters(), settings.optimiser.clip)
        if not torch.isfinite(ssd + energy + gradient):
            raise RegistrationError(f"iteration {iteration + 1}: the loss is not a number; lower optimiser.lr")
        optimiser.step()
        mean.update(step)
        values = {"ssd": ssd, "diffusion": energy, "loss": ssd + energy, "gradient": gradient}
        numbers = {name: float(value.detach()) for name, value in values.items()}
        curve.add(numbers | {"rate": rate, "surprise": surprise(optimiser)})
        if report is not None:
            report(iteration + 1, settings.iterations, float((ssd + energy).detach()))
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    step.load_state_dict(mean.module.state_dict())
    return TrainedDigits(step.eval().requires_grad_(False), curve.means(), seconds, cpu_seconds)


def _batch(digits: Digits, size: int, generator: torch.Generator) -> tuple[Images, Images]:
    fixed = torch.randint(len(digits), (size,), generator=generator)
    moving = partners(digits.labels, fixed, generator)
    return Images(digits.images[fixed], GRID), Images(digits.images[moving], GRID)


@torch.no_grad()
def surprise(optimiser: torch.optim.Adam) -> float:
    """How much larger the gradient just used is than what Adam remembers of those before: the root mean square of their
    ratio, of the layer where it is largest. About 1 as a rule, at most 1 / sqrt(1 - second_moment).

    Updates are scaled by the memory, so a layer whose gradients were small for long and then are not takes a step that
    is that much too long (RMS_t of Wortsman et al. 2023, who find it before the breakdowns of large models)."""
    memory = optimiser.param_groups[0]["betas"][1]
    ratios = [
        (p.grad.square() * (1 - memory ** float(state["step"])) / state["exp_avg_sq"].clamp_min(_TINY)).mean().sqrt()
        for p, state in optimiser.state.items()
        if p.grad is not None
    ]
    return float(torch.stack(ratios).max())


class _Curve:
    """The course of a training, thinned."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def means(self) -> dict[str, list[float]]:
        blocks = [self.rows[start : start + _EVERY] for start in range(0, len(self.rows), _EVERY)]
        found = {"iteration": [float(min((n + 1) * _EVERY, len(self.rows))) for n in range(len(blocks))]}
        for name in self.rows[0]:
            pick = max if name == "surprise" else statistics.fmean
            found[name] = [float(f"{pick([row[name] for row in block]):.6g}") for block in blocks]
        return found
