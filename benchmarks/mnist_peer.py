"""A training step of the MNIST experiment here and in icon_registration: same weights, same batch, same run.

    python benchmarks/mnist_peer.py [--data FOLDER] [--threads N] [--out FILE]

Both compose nine steps of one network and take icon_registration's loss, 2 SSD + 0.05 * diffusion. There a map is a
function that samples all fields before it anew, 36 times for nine steps, besides 9 warps of the image; here it is
collapsed onto the grid after each step, 8 samplings and 9 warps. The two take turns, and every turn is timed; the
weights are those after some iterations of training, because a network that still says "stay" is no test. Writes
results/mnist/peer.json: seconds on the clock and of the processor for each step (medians), their ratios, and both
losses on the same weights, also with our maps composed as exactly as theirs (lazy), which has to agree to 1e-5."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import stepwarp  # noqa: F401  # before torch: it sets how idle threads wait

# isort: split
import icon_registration
import icon_registration.losses
import torch
from torch import Tensor, nn

from stepwarp.machine import load, machine
from stepwarp.mnist.config import read_settings
from stepwarp.mnist.data import SIDE, load_digits, pairs
from stepwarp.mnist.models import MODELS, TIED
from stepwarp.mnist.training import loss, train
from stepwarp.registrar.steps import Images, Repeat, VectorField
from stepwarp.workflow.device import use_threads

RESULT = Path(__file__).parent / "results" / "mnist" / "peer.json"
BATCH, TRAINED, TURNS = 128, 200, 15


class Swapped(nn.Module):
    """There the moving image comes first."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.net(fixed, moving)


def theirs(net: nn.Module, steps: int, weight: float, batch: int) -> nn.Module:
    """icon_registration's own composition and loss around our network."""
    inner = icon_registration.FunctionFromVectorField(Swapped(net))
    whole = inner
    for _ in range(steps - 1):
        whole = icon_registration.TwoStepRegistration(whole, inner)
    made = icon_registration.losses.DiffusionRegularizedNet(whole, icon_registration.losses.SSD(), weight)
    made.assign_identity_map([batch, 1, SIDE, SIDE])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    threads = use_threads(given.threads)
    settings, digits = read_settings(), load_digits(given.data)
    step = MODELS[TIED].untrained(settings, 0)
    short = settings.training.model_copy(update={"iterations": TRAINED})
    train(step, digits.train.of(5), short, settings.diffusion, 0)
    step.requires_grad_(True)
    fixed, moving = pairs(digits.train.of(5), BATCH)
    result = compare(step, fixed, moving, settings.steps, settings.diffusion)
    result |= {"batch": BATCH, "steps": settings.steps, "digits": digits.source, "trained_iterations": TRAINED}
    result |= {"machine": machine(threads), "load": load()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def compare(step: Repeat, fixed: Images, moving: Images, steps: int, weight: float) -> dict[str, object]:
    field = step.step
    assert isinstance(field, VectorField)
    peer = theirs(field.net, steps, weight, len(fixed.data))
    lazy = Repeat(field, steps, lazy=True, outside="border")
    runs: dict[str, Callable[[], Tensor]] = {
        "stepwarp": lambda: 2 * sum(loss(step, fixed, moving, weight)),
        "icon_registration": lambda: peer(moving.data, fixed.data).all_loss,
    }
    losses, clocks, cpus = {}, {name: [] for name in runs}, {name: [] for name in runs}
    for _ in range(TURNS + 1):
        for name, run in runs.items():
            field.zero_grad()
            start, cpu_start = time.perf_counter(), time.process_time()
            value = run()
            value.backward()
            clocks[name].append(time.perf_counter() - start)
            cpus[name].append(time.process_time() - cpu_start)
            losses[name] = float(value.detach())
    # The first turn compiles.
    seconds, cpu_seconds = ({n: statistics.median(v[1:]) for n, v in each.items()} for each in (clocks, cpus))
    with torch.no_grad():
        losses["stepwarp, lazy"] = 2 * float(sum(loss(lazy, fixed, moving, weight)))
    return {
        "seconds_per_step": seconds,
        "cpu_seconds_per_step": cpu_seconds,
        "times_faster": seconds["icon_registration"] / seconds["stepwarp"],
        "times_less_cpu": cpu_seconds["icon_registration"] / cpu_seconds["stepwarp"],
        "loss": losses,
        "relative_difference": losses["stepwarp"] / losses["icon_registration"] - 1,
        "relative_difference_lazy": losses["stepwarp, lazy"] / losses["icon_registration"] - 1,
    }


if __name__ == "__main__":
    main()
