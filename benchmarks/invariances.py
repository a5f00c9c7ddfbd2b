"""What must not matter: where headers put the images, and their units. And what must not happen: deforming a brain
onto itself.

    python benchmarks/invariances.py [--preset fast] [--data FOLDER]

On the validation pair with landmarks; writes results/invariances.json: the change of Dice and of TRE in mm against the
pair as it is, and how far a brain registered to itself moves."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import stepwarp
from stepwarp.benchmark.judged import judge
from stepwarp.data.manifest import Pair, data_root, pairs, read_manifest
from stepwarp.files import read_image
from stepwarp.geometry import Affine, Grid, Image
from stepwarp.machine import load, machine
from stepwarp.workflow.registration import Registration

OUT = Path(__file__).parent / "results" / "invariances.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--data", type=Path, help="the data root; $STEPWARP_DATA by default")
    arguments = parser.parse_args()
    preset, root = arguments.preset, data_root(arguments.data, "oasis")
    results = {"preset": preset, "machine": machine(threads=2) | {"load_at_the_end": load()}}
    pair = next(pair for pair in pairs(read_manifest("oasis"), root, "validation") if pair.id == "1013_1019")
    fixed, moving = read_image(pair.fixed.image), read_image(pair.moving.image)
    reference = stepwarp.register(fixed, moving, preset=preset)
    results["as it is"] = _judged(pair, reference)
    for name, (changed_fixed, changed_moving, away) in _variants(fixed, moving).items():
        found = stepwarp.register(changed_fixed, changed_moving, preset=preset)
        back = Affine(away.inverse().matrix @ found.affine.matrix)
        found = replace(found, fixed=fixed, moving=moving, affine=back)
        results[name] = _change(results["as it is"], _judged(pair, found))
        OUT.write_text(json.dumps(results, indent=1) + "\n")
    itself = stepwarp.register(fixed, fixed, preset=preset)
    inside = fixed.data.numpy() > 0
    points = fixed.grid.world(np.argwhere(inside)[::50])
    moved = np.linalg.norm(itself.transform(points) - points, axis=1)
    results["a brain to itself"] = {"mean_mm": round(float(moved.mean()), 5), "max_mm": round(float(moved.max()), 5)}
    OUT.write_text(json.dumps(results, indent=1) + "\n")


def _variants(fixed: Image, moving: Image) -> dict[str, tuple[Image, Image, Affine]]:
    """Changed images, and where the change has put the moving world."""
    turn = _turn(np.deg2rad(10), np.array([1.0, 2.0, -1.0]))
    shift = np.eye(4)
    shift[:3, 3] = 300 / np.sqrt(3)
    still = Affine.identity(3)
    cases = {"moving header 300 mm away": shift, "moving header turned by 10 degrees": turn, "both": shift @ turn}
    changed = {name: (fixed, _placed(moving, matrix), Affine(matrix)) for name, matrix in cases.items()}
    for factor in (0.3, 3.0):
        changed[f"moving intensities times {factor}"] = (fixed, _scaled(moving, factor), still)
        changed[f"fixed intensities times {factor}"] = (_scaled(fixed, factor), moving, still)
    return changed


def _placed(image: Image, matrix: np.ndarray) -> Image:
    return Image(image.data, Grid(image.grid.shape, matrix @ image.grid.affine), image.name)


def _scaled(image: Image, factor: float) -> Image:
    return Image(image.data * factor, image.grid, image.name)


def _turn(angle: float, axis: np.ndarray) -> np.ndarray:
    """A rotation about an axis through the world's origin, homogeneous (Rodrigues)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix = np.eye(4)
    matrix[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return matrix


def _judged(pair: Pair, registration: Registration) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        registration.save(folder, overwrite=True)
        found = judge(pair, Path(folder))
    inside = registration.fixed.data > 0
    result = {
        "dice": found["mean_dice"],
        "labels": found["labels_scored"],
        "tre_mm": found["tre_mm"]["mean"],
        "tre_max_mm": found["tre_mm"]["max"],
        "landmarks": found["tre_mm"]["count"],
        "folds": found["folds"]["count"],
        "corner_folds": found["corner_folds"]["count"],
        "std_log_jacobian": found["std_log_jacobian"],
        "inverse_mean_mm": found["inverse_mm"]["mean"],
        "inverse_p95_mm": found["inverse_mm"]["p95"],
        "displacement_mean_mm": float(registration.warp.millimetres().norm(dim=-1)[inside].mean()),
    }
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in result.items()}


def _change(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {f"change_{key}": round(after[key] - before[key], 5) for key in ("dice", "tre_mm")}


if __name__ == "__main__":
    main()
