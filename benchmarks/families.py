"""What each family of registrars comes to with the same little training, and whether it works at all.

    python benchmarks/families.py [NAMES ...] [--data FOLDER] [--minutes 30]

Every recipe in configs/ that registers brains is trained in a world of 4 mm, on one thread, for the same processor
time: its curriculum as it stands, shortened to what fits by the time that an iteration of each stage takes here. All
see the training scans of OASIS but five, by which the best weights are chosen; those that paint their images see label
maps of SynthSeg, and the teachers of Quicksilver are transforms of the preset `best`. One learning rate for all but
those named in RATES, since the recipes' own are for days; it was chosen on the five. Then the six validation pairs, at
2 mm: the network alone, and `fast` after it, beside the affine and direct search on the network's grid and on its own.

Trainings that are done stay in benchmarks/work/families, those interrupted go on. Writes results/families/{NAME.json,
table.md}, each as it is finished."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import stepwarp
from stepwarp.data.manifest import Pair, data_root, pairs, read_manifest
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_image, read_labels, write_composite, write_text
from stepwarp.machine import machine
from stepwarp.registrar.steps import parameters
from stepwarp.registrar.weights import load_weights
from stepwarp.training.config import TrainingConfig, check_config, read_config
from stepwarp.training.loop import WEIGHTS, train
from stepwarp.training.plan import make_plan
from stepwarp.workflow.device import use_threads

HERE = Path(__file__).parent
OUT, WORK = HERE / "results" / "families", HERE / "work" / "families"
FAMILIES = ("voxelmorph", "lapirn", "avsm", "gradicon", "quicksilver", "brain_synth", "brain_t1", "tiny")
#: Of the world in which they are trained, and of the images that are registered.
TRAINED_MM, JUDGED_MM = 4.0, 2
#: GradICON's steps count in extents of the world, so that theirs are some fifty times as long.
RATE, RATES = 1e-3, {"gradicon": 2e-4}
#: A family works if its Dice is so far above that of the affine it begins with.
LEAST_GAIN = 0.03
TEACHER, TAUGHT_PAIRS = "best", 40


def recipe(name: str, minutes: float, root: Path) -> TrainingConfig:
    """That of a family, in the world of this comparison and as long as it may take."""
    values = read_config(name).model_dump(mode="json")
    wider = TRAINED_MM / values["data"]["spacing_mm"]
    stages = values["curriculum"]
    for grids in (values["loss"]["grids"], *(stage["grids"] or () for stage in stages)):
        for grid in grids:
            grid["mm"] *= wider
    for stage in stages:
        stage["spacing_mm"] = stage["spacing_mm"] and stage["spacing_mm"] * wider
    values["data"] |= {"spacing_mm": TRAINED_MM, "workers": 1, "cache": str(WORK / "cache")}
    if values["data"]["synthesis"] is None:
        brains = read_config("voxelmorph").data
        values["data"] |= {
            "manifest": brains.manifest,
            "split": brains.split,
            "held_out": brains.held_out,
            "labels": True,
        }
        values["validation"]["keep_best_by"] = "mean_dice"
    if values["data"]["teacher"] is not None:
        path = taught(root)
        root = path.parent
        values["data"] |= {"manifest": str(path), "teacher": TEACHER}
    values["optimiser"] |= {"lr": RATES.get(name, RATE), "warm_up": 20, "final": 0.05}
    config = check_config(values, name)
    assert isinstance(config, TrainingConfig)
    return shortened(config, minutes, root)


def shortened(config: TrainingConfig, minutes: float, root: Path) -> TrainingConfig:
    """With so many iterations of each stage, in the proportions of the recipe, as take this time on one thread."""
    planned = make_plan(config, root).seconds
    share = 60 * minutes / planned
    stages = [
        stage.model_copy(update={"iterations": max(1, round(share * stage.iterations))}) for stage in config.curriculum
    ]
    iterations = sum(stage.iterations for stage in stages)
    validation = config.validation.model_copy(update={"every": max(1, math.ceil(iterations / 8))})
    return config.model_copy(update={"curriculum": tuple(stages), "validation": validation})


def taught(root: Path) -> Path:
    """A manifest of training pairs with the transforms that `best` finds on voxels of the network's size, in a data
    root of its own that holds copies of the scans."""
    manifest, folder = read_manifest("oasis"), WORK / "taught"
    folder.mkdir(parents=True, exist_ok=True)
    held_out = read_config("voxelmorph").data.held_out
    every = manifest.scans(root, "training", False)
    for path in (path for scan in every for path in (scan.image, scan.labels) if path is not None):
        copy = folder / path.relative_to(root.resolve())
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    scans = [scan for scan in every if scan.id not in held_out]
    ordered = [(a, b) for gap in range(1, len(scans)) for a, b in zip(scans, scans[gap:] + scans[:gap], strict=True)]
    listed = []
    for fixed, moving in ordered[:TAUGHT_PAIRS]:
        out = folder / f"{fixed.id}_{moving.id}.h5"
        if not out.exists():
            images = (read_image(scan.image).coarser(int(TRAINED_MM)) for scan in (fixed, moving))
            found = stepwarp.register(*images, preset=TEACHER, threads=1, escalate=False)
            write_composite(out, found.transform)
        listed.append({"id": out.stem, "fixed": fixed.id, "moving": moving.id, "transforms": {TEACHER: out.name}})
    values = json.loads((HERE.parent / "data_manifests" / "oasis.json").read_text())
    write_text(folder / "oasis.json", json.dumps(values | {"pairs": listed}), overwrite=True)
    return folder / "oasis.json"


def trained(name: str, minutes: float, root: Path) -> tuple[Path, dict[str, Any]]:
    """Weights, and how they came about. A training is planned once, and goes on as it was planned."""
    out, plan = WORK / name, WORK / f"{name}.json"
    WORK.mkdir(parents=True, exist_ok=True)
    if not plan.exists():
        plan.write_text(recipe(name, minutes, root).model_dump_json())
    config = check_config(json.loads(plan.read_text()), name)
    resume = (out / "checkpoint.pt").exists()
    if not resume:
        shutil.rmtree(out, ignore_errors=True)
    began = time.process_time()
    taught_by = (
        Path(config.data.manifest).parent if isinstance(config, TrainingConfig) and config.data.teacher else root
    )
    train(config, out, root=taught_by, resume=resume)
    about = {
        "parameters": parameters(load_weights(out / WEIGHTS).step),
        "iterations": [stage.iterations for stage in config.curriculum],
        "learning_rate": config.optimiser.lr,
        "cpu_minutes_of_last_run": round((time.process_time() - began) / 60, 1),
    }
    return out / WEIGHTS, about


def judged(pair: Pair, mm: int = JUDGED_MM, **how: Any) -> dict[str, Any]:
    """A pair of images of `mm` registered so, by the labels on the scans' own grids."""
    fixed, moving = (read_image(scan.image).coarser(mm) for scan in (pair.fixed, pair.moving))
    began = time.process_time()
    found = stepwarp.register(fixed, moving, preset="fast", threads=1, escalate=False, **how)
    seconds = time.process_time() - began
    assert pair.fixed.labels is not None
    assert pair.moving.labels is not None
    network = found.record["network"]
    used = network is None or network["used"]
    # What the network found may be set aside, and direct search takes its place: then the network has found nothing.
    ending = found.transform if used or how.get("refine", True) else found.affine
    a, b = read_labels(pair.fixed.labels), read_labels(pair.moving.labels)
    regularity = found.record["measures"].get("regularity")
    return {
        "pair": pair.id,
        "affine": round(mean_dice(dice(a, b.warp(found.affine, a.grid), pair.ignore_labels)), 5),
        "dice": round(mean_dice(dice(a, b.warp(ending, a.grid), pair.ignore_labels)), 5),
        "used": used,
        "folds": 0 if regularity is None else regularity["corner_folds"]["share"],
        "std_log_jacobian": 0 if regularity is None else round(regularity["std_log_jacobian"], 4),
        "cpu_seconds": round(seconds, 2),
    }


def family(name: str, minutes: float, root: Path, chosen: list[Pair]) -> dict[str, Any]:
    weights, about = trained(name, minutes, root)
    return about | {
        "minutes": minutes,
        "alone": [judged(pair, weights=weights, refine=False) for pair in chosen],
        "before fast": [judged(pair, weights=weights) for pair in chosen],
    }


def direct(chosen: list[Pair]) -> dict[str, Any]:
    return {
        f"`fast`, {TRAINED_MM:g} mm": [judged(pair, int(TRAINED_MM)) for pair in chosen],
        f"`fast`, {JUDGED_MM} mm": [judged(pair) for pair in chosen],
    }


def kept(name: str, make: Callable[[], dict[str, Any]]) -> None:
    """Made unless there is a result already."""
    path = OUT / f"{name}.json"
    if not path.exists():
        result = make() | {"machine": machine(1)}
        OUT.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(table(), flush=True)


def table() -> str:
    lines = [
        "| family | parameters | iterations | Dice of the affine | alone | above it | before `fast` | folds, % of"
        " voxels | std log J | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in FAMILIES if (OUT / f"{name}.json").exists()):
        found = json.loads((OUT / f"{name}.json").read_text())
        alone, after = found["alone"], found["before fast"]
        gain = _mean(alone, "dice") - _mean(alone, "affine")
        lines.append(
            f"| {name} | {found['parameters']:,} | {sum(found['iterations'])} | {_mean(alone, 'affine'):.3f}"
            f" | {_mean(alone, 'dice'):.3f} | {gain:+.3f}{'' if gain >= LEAST_GAIN else ' (does not work)'}"
            f" | {_mean(after, 'dice'):.3f} | {100 * _mean(alone, 'folds'):.3f}"
            f" | {_mean(alone, 'std_log_jacobian'):.3f} | {_mean(alone, 'cpu_seconds'):.1f} |"
        )
    for name, rows in json.loads((OUT / "direct.json").read_text()).items() if (OUT / "direct.json").exists() else ():
        if name != "machine":
            values = f"{_mean(rows, 'affine'):.3f} | {_mean(rows, 'dice'):.3f}"
            gain = _mean(rows, "dice") - _mean(rows, "affine")
            folds, rough, seconds = (_mean(rows, key) for key in ("folds", "std_log_jacobian", "cpu_seconds"))
            lines.append(f"| {name} | | | {values} | {gain:+.3f} | | {100 * folds:.3f} | {rough:.3f} | {seconds:.1f} |")
    return "\n".join(lines) + "\n"


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=FAMILIES, metavar="NAME", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--data", type=Path, help="the data root; $STEPWARP_DATA by default")
    parser.add_argument("--minutes", type=float, default=30, help="of training, of one processor")
    arguments = parser.parse_args()
    root = data_root(arguments.data, "oasis")
    chosen = pairs(read_manifest("oasis"), root, "validation", verify=False)
    use_threads(1)
    kept("direct", partial(direct, chosen))
    for name in arguments.names:
        kept(name, partial(family, name, arguments.minutes, root, chosen))
    (OUT / "table.md").write_text(table())


if __name__ == "__main__":
    main()
