"""How many steps, one set of weights for all of them or one for each, and how large a network: Dice against cost.

    python benchmarks/step_ablation.py [--data FOLDER]

Guided steps at 8 mm are trained alike (OASIS training scans, images only, the same iterations and seed), and judged on
the five held-out training pairs, never on those that are reported elsewhere. Tied and untied registrars of n steps do
the same computations. Trainings that are done are kept. Writes results/step_ablation/{results.json, table.md}."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from stepwarp.data.manifest import data_root
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.machine import machine
from stepwarp.registrar.steps import Images, parameters
from stepwarp.registrar.steps.structure import repeats
from stepwarp.registrar.weights import Registrar, load_weights
from stepwarp.training.config import TrainingConfig, check_config, read_config
from stepwarp.training.dataset import Dataset, open_dataset
from stepwarp.training.loop import WEIGHTS, train
from stepwarp.training.validation import validate

HERE = Path(__file__).parent
OUT, WORK = HERE / "results" / "step_ablation", HERE / "work" / "step_ablation"
COUNTS = (1, 2, 4, 8)
#: Channels of the levels of the U-Net.
SIZES = {"small": (8, 16, 16), "middle": (16, 32, 32), "large": (32, 64, 64)}
_ITERATIONS = 100
_REPEATS = 5


def variants() -> dict[str, dict[str, Any]]:
    """Name -> the steps of its registrar."""
    tied = {f"{n} tied": _tied(n, SIZES["middle"]) for n in COUNTS}
    untied = {f"{n} untied": _untied(n, SIZES["middle"]) for n in COUNTS if n > 1}
    sizes = {f"4 tied, {name}": _tied(4, SIZES[name]) for name in ("small", "large")}
    return tied | untied | sizes


def _guided(channels: tuple[int, ...]) -> dict[str, Any]:
    return {"step": "guided", "smooth_step": 1.5, "net": {"kind": "unet", "channels": list(channels)}}


def _tied(n: int, channels: tuple[int, ...]) -> dict[str, Any]:
    return {"step": "downsampled", "factor": 4, "inner": {"step": "repeat", "n": n, "inner": _guided(channels)}}


def _untied(n: int, channels: tuple[int, ...]) -> dict[str, Any]:
    return {
        "step": "downsampled",
        "factor": 4,
        "inner": {"step": "two_step", "steps": [_guided(channels) for _ in range(n)]},
    }


def recipe(name: str, steps: dict[str, Any]) -> TrainingConfig:
    values = read_config("brain_t1").model_dump(mode="json")
    values |= {"name": name.replace(", ", "-").replace(" ", "-"), "steps": steps}
    values["curriculum"] = [{"iterations": _ITERATIONS, "grids": [{"mm": 4}]}]
    values["data"]["cache"] = str(WORK / "cache")
    values["validation"]["every"] = _ITERATIONS
    return check_config(values, name)


def judge(registrar: Registrar, data: Dataset) -> dict[str, float]:
    """On the held-out pairs, with the seconds of one pass on the threads there are."""
    grid = data.training.scans.grid
    measures = validate(registrar.step, data.validation, grid, LNCC(), data.manifest.ignore_labels).measures
    sides = [Images(data.validation[0][side][None], grid) for side in ("fixed", "moving")]
    with torch.no_grad():
        began = time.process_time()
        for _ in range(_REPEATS):
            registrar.step(*sides)
    return {**measures, "cpu_seconds": (time.process_time() - began) / _REPEATS}


def measured(name: str, steps: dict[str, Any], root: Path | None) -> list[dict[str, Any]]:
    config = recipe(name, steps)
    out = WORK / config.name
    if not (out / WEIGHTS).exists():
        train(config, out, root=root, resume=(out / "checkpoint.pt").exists())
    data = open_dataset(config, root, WORK / "cache")
    registrar = load_weights(out / WEIGHTS)
    about = {"trained_as": name, "parameters": parameters(registrar.step)}
    rows = [{**about, "run": name, **judge(registrar, data)}]
    if "tied" in name and repeats(registrar.step) and "," not in name:
        (repeat,) = repeats(registrar.step)
        trained = repeat.n
        repeat.n = 2 * trained
        rows.append({**about, "run": f"{name}, run {2 * trained} times", **judge(registrar, data)})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| steps at 8 mm | parameters | Dice | LNCC loss | std log J | CPU seconds |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['run']} | {row['parameters']:,} | {row['mean_dice']:.4f} | {row['loss']:.4f} |"
        f" {row['std_log_jacobian']:.3f} | {row['cpu_seconds']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="where the manifest's paths begin; $STEPWARP_DATA by default")
    root = data_root(parser.parse_args().data, "oasis")
    rows: list[dict[str, Any]] = []
    for name, steps in variants().items():
        rows += measured(name, steps, root)
        print(json.dumps(rows[-1]), flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(torch.get_num_threads()), "iterations": _ITERATIONS, "rows": rows}
    (OUT / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    (OUT / "table.md").write_text(table(rows))


if __name__ == "__main__":
    main()
