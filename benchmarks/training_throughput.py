"""How fast a training makes its images, and how much of an iteration that is, on one processor or one GPU.

    python benchmarks/training_throughput.py [--device cuda] [--recipes brain_any brain_t1] [--threads 2]

The scans are made up, of the sizes that the recipes have: what they show costs nothing. They lie on the device, as in
`stepwarp train`. Each number is the mean over as many calls as fit into some seconds, one at least, after one that is
not counted. Of a recipe with several stages the last is timed. Seconds are those of the clock; the processor's, of all
threads, tell what a machine that is busy with other work would take alone.

Writes results/training_throughput/MACHINE.{json, md}."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepwarp.data.manifest import label_names, read_manifest
from stepwarp.data.pairs import PairLoader, PairTable
from stepwarp.data.scans import About, BoxScan, HeldScans
from stepwarp.data.structures import structures
from stepwarp.data.synthesis import FREESURFER_BRAIN, FREESURFER_PARTNERS
from stepwarp.geometry import Grid
from stepwarp.kernels.smoothing import gaussian
from stepwarp.machine import device_name, load, machine
from stepwarp.training.config import AnyTraining, read_config
from stepwarp.training.dataset import varied_pairs
from stepwarp.training.trainees import trainee_of
from stepwarp.workflow.device import chosen_device, use_threads

OUT = Path(__file__).parent / "results" / "training_throughput"
RECIPES = ("brain_any", "brain_t1_labels", "brain_t1")
#: A call is repeated for so long.
SECONDS = 10.0
#: As many labels as the label maps of whole heads have.
LABELS = (0, *FREESURFER_BRAIN, 24, *range(501, 531))


def scans_on(grid: Grid) -> HeldScans:
    """Two scans of blobs, each a grey and a label, on a grid."""
    made = {}
    for number, name in enumerate("ab"):
        noise = torch.randn(1, 1, *(-(-n // 8) for n in grid.shape), generator=torch.Generator().manual_seed(number))
        smooth = torch.nn.functional.interpolate(gaussian(noise, 1.0), grid.shape, mode="trilinear")[0, 0]
        index = _ranked(smooth).to(torch.uint8)
        image, ids = (255 * index.float() / len(LABELS)).to(torch.uint8), torch.tensor(LABELS, dtype=torch.int32)
        made[name] = BoxScan(image, 1 / 255, torch.eye(4, dtype=torch.float64), index, ids)
    return HeldScans(grid, {name: About(name, "training") for name in made}, made)


def _ranked(values: torch.Tensor) -> torch.Tensor:
    """As many voxels of each label."""
    order = values.flatten().argsort()
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return (ranks * len(LABELS) // len(order)).reshape(values.shape)


def seconds(call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """The mean by both clocks, of calls after the first."""
    call()
    _wait(device)
    began, cpu_began, count = time.perf_counter(), time.process_time(), 0
    while not count or time.perf_counter() - began < SECONDS:
        call()
        _wait(device)
        count += 1
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began}
    return {clock: round(each / count, 4) for clock, each in spent.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(name: str, device: torch.device) -> dict[str, Any]:
    config = read_config(name, ["start=null", "data.workers=0"])
    table = PairTable(("a", "b"), np.array([0, 1]), np.array([1, 0]))
    scans = scans_on(config.data.scan_grid()).to(device)
    pairs = varied_pairs(config, scans, table, FREESURFER_PARTNERS, labels=config.trains_with_labels)
    batches = iter(PairLoader(pairs, config.data.batch))
    making = seconds(lambda: next(batches), device)
    learning = seconds(_iteration(config, next(batches), device), device)
    return {
        "recipe": name,
        "images": 2 * config.data.batch,
        "grid": list(config.data.grid().shape),
        "detail": config.data.detail,
        "making": making,
        "learning": learning,
        "load": load(),
    }


def _iteration(config: AnyTraining, batch: dict[str, Any], device: torch.device) -> Callable[[], None]:
    """An update of the weights on a batch that is there."""
    manifest = read_manifest(config.data.manifest)
    known = structures(label_names(manifest, Path()), manifest.ignore_labels)
    trainee = trainee_of(config, structures=known)
    last = len(config.curriculum) - 1
    trainee.objective.to(device).train()
    trainee.enter(last)
    optimiser = config.optimiser.build(trainee.module.parameters())
    tensors = {name: value for name, value in batch.items() if name != "pair"}

    def update() -> None:
        loss = trainee.objective(tensors, last, 0)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return update


def table_of(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| recipe | images of an iteration | voxels | making them, s (processor's s) | learning, s | images made per s "
        "| trained on per s | load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        size = " x ".join(map(str, row["grid"]))
        finer = f", of {row['detail']} x finer ones" if row["detail"] > 1 else ""
        clocks = [f"{row[part]['seconds']:.3g} ({row[part]['cpu_seconds']:.3g})" for part in ("making", "learning")]
        making, learning = (row[part]["seconds"] for part in ("making", "learning"))
        rates = [f"{row['images'] / spent:.3g}" for spent in (making, making + learning)]
        lines.append(
            f"| {' | '.join([row['recipe'], str(row['images']), size + finer, *clocks, *rates, str(row['load'])])} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    device = chosen_device(arguments.device)
    threads = use_threads(arguments.threads)
    torch.backends.cudnn.benchmark = device.type == "cuda"  # as a training does
    about = machine(threads, device_name(device) if device.type == "cuda" else "cpu")
    name = re.sub(r"[^a-z0-9]+", "-", (about["device"] if device.type == "cuda" else about["cpu"]).lower()).strip("-")
    OUT.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for recipe in arguments.recipes:
        rows.append(measured(recipe, device))
        print(json.dumps(rows[-1]), flush=True)
        (OUT / f"{name}.json").write_text(json.dumps({"machine": about, "recipes": rows}, indent=1) + "\n")
        (OUT / f"{name}.md").write_text(table_of(rows))


if __name__ == "__main__":
    main()
