"""Which model of the deformation to search with: a greedy field, a symmetric pair of fields, a stationary velocity.

    python benchmarks/deformable_models.py [--data FOLDER]

The three share everything else: the affine, the pyramid, the correlation and its gradient, the smoothing, the step
length and the number of iterations. On training pairs only; writes results/deformable_models/{results.json, table.md}.
stepwarp uses the symmetric pair; the two others are kept here as what it was compared with."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepwarp.config import AffineSettings, DeformableSettings, Level
from stepwarp.data.manifest import data_root, pairs, read_manifest
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.evaluation.regularity import inverse_consistency, regularity
from stepwarp.files import read_image, read_labels
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Image
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.geometry.orientation import canonical
from stepwarp.kernels import jacobian, sampling, smoothing
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.machine import load, machine
from stepwarp.registrar.affine import register_linear
from stepwarp.registrar.deformable import optimise

OUT = Path(__file__).parent / "results" / "deformable_models"
SCHEDULES = {"to 2 mm": ((8, 30), (4, 30), (2, 30)), "to 1 mm": ((8, 30), (4, 30), (2, 30), (1, 15))}
#: Squarings of a velocity: 2^-6 of it is far below a voxel.
_SQUARINGS = 6

Model = Callable[[Image, Image, Affine, DeformableSettings], tuple[Tensor, Tensor]]


def symmetric(fixed: Image, moving: Image, affine: Affine, settings: DeformableSettings) -> tuple[Tensor, Tensor]:
    found = optimise(fixed, moving, affine, settings)
    return found.warp.displacement, found.inverse_warp.displacement


def greedy(fixed: Image, moving: Image, affine: Affine, settings: DeformableSettings) -> tuple[Tensor, Tensor]:
    field = _descend(fixed, moving, affine, settings, lambda u: u, _composed)
    return field, jacobian.invert(field)


def velocity(fixed: Image, moving: Image, affine: Affine, settings: DeformableSettings) -> tuple[Tensor, Tensor]:
    field = _descend(fixed, moving, affine, settings, _exponential, _added)
    return _exponential(field), _exponential(-field)


def _descend(
    fixed: Image,
    moving: Image,
    affine: Affine,
    settings: DeformableSettings,
    to_displacement: Callable[[Tensor], Tensor],
    update: Callable[[Tensor, Tensor, float, float], Tensor],
) -> Tensor:
    """Gradient descent on one field, coarse to fine; the field on the fixed grid."""
    similarity = LNCC(settings.radius, settings.epsilon)
    field = DisplacementField(torch.zeros(1, 3, *fixed.grid.shape), fixed.grid)
    for level in settings.levels:
        f, m = _of_voxels(fixed, level.mm), _of_voxels(moving, level.mm)
        field = field.on(f.grid)
        matrix = torch.from_numpy(f.grid.index_map_to(m.grid, affine.matrix))
        for _ in range(level.iterations):
            moved = sampling.warp(m.data[None, None], to_displacement(field.displacement), matrix)
            _, _, gradient = similarity.value_and_gradients(f.data[None, None], moved)
            step = smoothing.gaussian(sampling.scaled_gradient(gradient, moved), level.smooth_update)
            lengths = step[..., ::3, ::3, ::3].square().sum(1).sqrt()
            scale = -level.step / float(torch.quantile(lengths, 0.98))
            changed = update(field.displacement, step, scale, level.step)
            field = DisplacementField(smoothing.gaussian(changed, level.smooth_field), f.grid)
    return field.on(fixed.grid).displacement


def _composed(field: Tensor, step: Tensor, scale: float, longest: float) -> Tensor:
    return sampling.compose_step(field, step, scale, longest)


def _added(field: Tensor, step: Tensor, scale: float, longest: float) -> Tensor:
    return field + sampling.compose_step(torch.zeros_like(step), step, scale, longest)


def _exponential(field: Tensor) -> Tensor:
    """exp(v) by scaling and squaring (Arsigny et al. 2006)."""
    field = field / 2**_SQUARINGS
    for _ in range(_SQUARINGS):
        field = sampling.compose(field, field)
    return field


def _of_voxels(image: Image, mm: float) -> Image:
    return image.coarser([max(1, round(mm / spacing)) for spacing in image.grid.spacing])


MODELS: dict[str, Model] = {"greedy": greedy, "symmetric": symmetric, "velocity": velocity}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the data root; $STEPWARP_DATA by default")
    root = data_root(parser.parse_args().data, "oasis")
    OUT.mkdir(parents=True, exist_ok=True)
    rows = []
    for pair in pairs(read_manifest("oasis"), root, "training")[:3]:
        images = [canonical(read_image(scan.image)) for scan in (pair.fixed, pair.moving)]
        labels = [canonical(read_labels(scan.labels)) for scan in (pair.fixed, pair.moving) if scan.labels]
        fixed, moving = (scale_intensities(image) for image in images)
        affine = register_linear(fixed, moving, "affine", NCC(), LNCC(), AffineSettings()).transform
        for schedule, levels in SCHEDULES.items():
            settings = DeformableSettings(
                levels=tuple(Level(mm=mm, iterations=n) for mm, n in levels), tolerance=0, smallest_jacobian=0.2
            )
            for name, model in MODELS.items():
                started = time.perf_counter()
                forward, backward = model(fixed, moving, affine, settings)
                row = {"pair": pair.id, "schedule": schedule, "model": name}
                row["seconds"] = round(time.perf_counter() - started, 2)
                rows.append(row | _judged(fixed.grid, affine, forward, backward, labels, fixed, pair.ignore_labels))
                print(rows[-1], flush=True)
    taken_on = machine(torch.get_num_threads()) | {"load_at_the_end": load()}
    (OUT / "results.json").write_text(json.dumps({"machine": taken_on, "cases": rows}, indent=1))
    (OUT / "table.md").write_text(_table(rows))


def _judged(
    grid: Grid, affine: Affine, forward: Tensor, backward: Tensor, labels: list, fixed: Image, ignore: tuple[int, ...]
) -> dict[str, float]:
    warp, back = DisplacementField(forward, grid), DisplacementField(backward, grid)
    inside = fixed.data > 0
    smooth = regularity(warp, inside)
    scores = dice(labels[0], labels[1].warp(Composition.of(affine, warp), labels[0].grid), ignore=ignore)
    return {
        "dice": round(mean_dice(scores), 4),
        "folds": smooth.folds.count,
        "corner_folds": smooth.corner_folds.count,
        "std_log_jacobian": round(smooth.std_log_jacobian or 0, 3),
        "inverse_p95_mm": round(inverse_consistency(warp, back, grid, inside).p95_mm, 3),
    }


def _table(rows: list[dict]) -> str:
    columns = ("dice", "folds", "corner_folds", "std_log_jacobian", "inverse_p95_mm", "seconds")
    lines = ["| schedule | model | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 2)]
    for schedule in SCHEDULES:
        for model in MODELS:
            chosen = [row for row in rows if row["schedule"] == schedule and row["model"] == model]
            means = [f"{np.mean([row[c] for row in chosen]):.4g}" for c in columns]
            lines.append(f"| {schedule} | {model} | " + " | ".join(means) + " |")
    return "\n".join([f"Means over {len(rows) // 6} training pairs.", "", *lines, ""])


if __name__ == "__main__":
    main()
