"""Whether what `brain-any` knows of anatomy helps the search: a descent that is shown its structures, before it.

    python benchmarks/structures_as_guide.py [--data FOLDER]

The six validation pairs as scanned and with other greys of the moving image (contrasts.py), registered without and with
steps that descend on the local correlation and on the squared difference of the structures' codes, untrained, from the
affine on: eight each on the grids of a quarter and a half of 2 mm, four on the full one, as those of the shipped
weights. Their weights against each other is varied. Cases that are done stay, so it can be interrupted; remove
cases.jsonl to begin afresh. Writes results/structures_as_guide/{cases.jsonl, results.json, table.md}; half an hour on
two cores."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import stepwarp
from stepwarp.data.manifest import Pair, data_root, pairs, read_manifest
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_image, read_labels
from stepwarp.machine import machine
from stepwarp.registrar.steps.config import build
from stepwarp.registrar.steps.segmented import Segmented
from stepwarp.registrar.steps.types.downsampled import DownsampledConfig
from stepwarp.registrar.steps.types.guided import GuidedConfig
from stepwarp.registrar.steps.types.repeat import RepeatConfig
from stepwarp.registrar.steps.types.two_step import TwoStepConfig
from stepwarp.registrar.weights import Card, Recipe, Registrar
from stepwarp.registrar.weights.recipe import Spacing, Tissue
from stepwarp.segment import load_segmenter

from contrasts import KINDS, shown  # isort: skip

OUT = Path(__file__).parent / "results" / "structures_as_guide"
#: Of the structures' difference beside the correlation; None for a search without them.
WEIGHTS = (None, 3, 10)
THREADS = 2


class Setting(NamedTuple):
    """Greys of the moving image, preset, and voxels that are averaged along each axis."""

    kind: str
    preset: str
    factor: int


SETTINGS = (
    Setting("as scanned", "default", 1),
    Setting("as scanned", "fast", 2),
    Setting("abs(x - .6)", "fast", 2),
    Setting("inverted", "fast", 2),
)


def guide(weight: float) -> Registrar:
    """Untrained steps that are shown the structures: the networks in them say nothing."""
    step = GuidedConfig(smooth_step=1.8)
    levels = [
        DownsampledConfig(factor=4, inner=RepeatConfig(n=8, inner=step)),
        DownsampledConfig(factor=2, inner=RepeatConfig(n=8, inner=step)),
        RepeatConfig(n=4, inner=step),
    ]
    segmented = Segmented(load_segmenter().network, build(TwoStepConfig(steps=levels), 3), weight=weight)
    recipe = Recipe(intensities=Tissue(), grid=Spacing(mm=2.0, margin_mm=12.0))
    return Registrar(segmented.eval(), recipe, Card(name="brain-any", data="painted label maps", licence="Apache-2.0"))


def registered(pair: Pair, setting: Setting, weight: float | None) -> dict[str, Any]:
    fixed, moving = (read_image(scan.image).coarser(setting.factor) for scan in (pair.fixed, pair.moving))
    moving = shown(moving, KINDS[setting.kind])
    given: dict[str, Any] = {} if weight is None else {"weights": guide(weight)}
    cpu = time.process_time()
    found = stepwarp.register(fixed, moving, preset=setting.preset, escalate=False, threads=THREADS, **given)
    cpu = time.process_time() - cpu
    assert pair.fixed.labels is not None
    assert pair.moving.labels is not None
    a, b = read_labels(pair.fixed.labels), read_labels(pair.moving.labels)
    value = mean_dice(dice(a, b.warp(found.transform, a.grid), pair.ignore_labels))
    return {"dice": round(value, 5), "cpu_seconds": round(cpu, 2)}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| the moving image | preset, voxels | weight of structures | Dice | change: mean (least to most) | CPU s |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for setting, weight in itertools.product(SETTINGS, WEIGHTS):
        own, without = (
            [row for row in rows if row["setting"] == list(setting) and row["weight"] == each]
            for each in (weight, None)
        )
        change = np.array([a["dice"] - b["dice"] for a, b in zip(own, without, strict=True)])
        said = "" if weight is None else f"{change.mean():+.4f} ({change.min():+.4f} to {change.max():+.4f})"
        means = [np.mean([row[key] for row in own]) for key in ("dice", "cpu_seconds")]
        where = f"`{setting.preset}`, {setting.factor} mm"
        lines.append(f"| {setting.kind} | {where} | {weight or 'none'} | {means[0]:.4f} | {said} | {means[1]:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the data root; $STEPWARP_DATA by default")
    chosen = pairs(read_manifest("oasis"), data_root(parser.parse_args().data, "oasis"), "validation", verify=False)
    kept = OUT / "cases.jsonl"
    OUT.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = [(row["setting"], row["pair"], row["weight"]) for row in rows]
    for setting, pair, weight in itertools.product(SETTINGS, chosen, WEIGHTS):
        if (list(setting), pair.id, weight) not in done:
            rows.append({"setting": setting, "pair": pair.id, "weight": weight, **registered(pair, setting, weight)})
            with kept.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], flush=True)
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    (OUT / "results.json").write_text(json.dumps({"machine": machine(THREADS)}, indent=1) + "\n")
    (OUT / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
