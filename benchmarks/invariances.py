"""What must not matter: where headers put the images, their units of length and of intensity, the empty space around
the subject, what else was scanned, and which image is fixed. And what must not happen: deforming a brain onto itself.

    python benchmarks/invariances.py [--preset fast] [--data FOLDER]

On the validation pair with landmarks; writes results/invariances.json: the change of Dice and of TRE in mm against the
pair as it is; how far the result moves further than 20 mm from where a file was cut; how far a brain registered to
itself moves; and how far from where it began a point ends that goes there by the linear stage and back by that of the
images exchanged: affine for other people, rigid for rescans of one person."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch.nn.functional as F

import stepwarp
from stepwarp.benchmark.judged import judge
from stepwarp.data.manifest import Pair, data_root, pairs, read_manifest
from stepwarp.files import read_image
from stepwarp.geometry import Affine, DisplacementField, Grid, Image
from stepwarp.machine import load, machine
from stepwarp.workflow.registration import Registration

OUT = Path(__file__).parent / "results" / "invariances.json"
#: Millimetres of the subject that a file is short of, and how far from there its result is compared.
SHORT, AWAY = 30, 20


@dataclass(frozen=True)
class Variant:
    """A changed pair, and where the change has put its two worlds: (4, 4) from the world before."""

    name: str
    fixed: Image
    moving: Image
    fixed_world: np.ndarray
    moving_world: np.ndarray

    def undone(self, found: Registration, fixed: Image, moving: Image) -> Registration:
        """The result as one of the pair as it is."""
        back = np.linalg.inv(self.moving_world) @ found.affine.matrix @ self.fixed_world
        fields = [
            DisplacementField(f.displacement, _placed(f.grid, np.linalg.inv(self.fixed_world))).on(fixed.grid)
            for f in (found.warp, found.inverse_warp)
        ]
        return replace(found, fixed=fixed, moving=moving, affine=Affine(back), warp=fields[0], inverse_warp=fields[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--data", type=Path, help="the data root; $STEPWARP_DATA by default")
    arguments = parser.parse_args()
    preset, root = arguments.preset, data_root(arguments.data, "oasis")
    results = {"preset": preset, "machine": machine(threads=2) | {"load_at_the_end": load()}}

    def keep(name: str, found: dict[str, float]) -> None:
        results[name] = found
        print(name, found, flush=True)
        OUT.write_text(json.dumps(results, indent=1) + "\n")

    pair = next(pair for pair in pairs(read_manifest("oasis"), root, "validation") if pair.id == "1013_1019")
    fixed, moving = read_image(pair.fixed.image), read_image(pair.moving.image)
    reference = stepwarp.register(fixed, moving, preset=preset)
    keep("as it is", _judged(pair, reference))
    for variant in _variants(fixed, moving):
        found = variant.undone(stepwarp.register(variant.fixed, variant.moving, preset=preset), fixed, moving)
        keep(variant.name, _change(results["as it is"], _judged(pair, found)))
    inside = fixed.data.numpy() > 0
    points = fixed.grid.world(np.argwhere(inside)[::50].astype(float))
    for side in ("fixed", "moving"):
        images = {"fixed": fixed, "moving": moving}
        images[side], floor = _short(images[side])
        found = stepwarp.register(images["fixed"], images["moving"], preset=preset)
        heights = points if side == "fixed" else reference.transform(points)
        keep(f"{side} {SHORT} mm short", _apart(reference, found, points[heights[:, 2] > floor + AWAY]))
    keep("exchanged, affine", _there_and_back(fixed, moving, points, "affine"))
    for rescan in pairs(read_manifest("oasis_rescans"), root):
        images = [read_image(side.image) for side in (rescan.fixed, rescan.moving)]
        points = images[0].grid.world(np.argwhere(images[0].data.numpy() > 0)[::50].astype(float))
        keep(f"exchanged, rigid, {rescan.id}", _there_and_back(*images, points, "rigid"))
    itself = stepwarp.register(fixed, fixed, preset=preset)
    points = fixed.grid.world(np.argwhere(inside)[::50].astype(float))
    keep("a brain to itself", _lengths(itself.transform(points) - points))


def _variants(fixed: Image, moving: Image) -> Iterator[Variant]:
    still, shift = np.eye(4), np.eye(4)
    turn = _turn(np.deg2rad(10), np.array([1.0, 2.0, -1.0]))
    shift[:3, 3] = 300 / np.sqrt(3)
    for name, matrix in {"300 mm away": shift, "turned by 10 degrees": turn, "both": shift @ turn}.items():
        yield Variant(f"moving header {name}", fixed, _at(moving, matrix), still, matrix)
    for factor in (0.01, 0.1, 10.0):
        scale = np.diag([factor] * 3 + [1.0])
        yield Variant(f"lengths times {factor}", _at(fixed, scale), _at(moving, scale), scale, scale)
    for factor in (0.3, 3.0):
        yield Variant(f"moving intensities times {factor}", fixed, _scaled(moving, factor), still, still)
        yield Variant(f"fixed intensities times {factor}", _scaled(fixed, factor), moving, still, still)
    yield Variant("80 mm around fixed", _around(fixed, 80), moving, still, still)
    yield Variant("80 mm around moving", fixed, _around(moving, 80), still, still)
    yield Variant("80 mm around both", _around(fixed, 80), _around(moving, 80), still, still)
    yield Variant("air cropped to 2 mm", _tight(fixed, 2), _tight(moving, 2), still, still)


def _at(image: Image, matrix: np.ndarray) -> Image:
    return Image(image.data, _placed(image.grid, matrix), image.name)


def _placed(grid: Grid, matrix: np.ndarray) -> Grid:
    return Grid(grid.shape, matrix @ grid.affine)


def _scaled(image: Image, factor: float) -> Image:
    return Image(image.data * factor, image.grid, image.name)


def _padded(image: Image, before: np.ndarray, after: np.ndarray) -> Image:
    """With so many voxels more along each axis, or fewer where negative."""
    data = F.pad(image.data, [int(n) for ends in zip(before[::-1], after[::-1], strict=True) for n in ends])
    affine = image.grid.affine.copy()
    affine[:3, 3] = image.grid.world(-np.array(before, dtype=float))
    return Image(data.contiguous(), Grid(tuple(data.shape), affine), image.name)


def _around(image: Image, mm: float) -> Image:
    voxels = np.round(mm / image.grid.spacing).astype(int)
    return _padded(image, voxels, voxels)


def _tight(image: Image, mm: float) -> Image:
    """No more around the brain than so many mm."""
    shown = (image.data > 0).nonzero().numpy()
    margin = np.round(mm / image.grid.spacing).astype(int)
    return _padded(image, margin - shown.min(0), margin + shown.max(0) + 1 - np.array(image.grid.shape))


def _short(image: Image) -> tuple[Image, float]:
    """Without the lowest part of the brain, and the height (world mm) where it is cut."""
    axis = int(np.abs(image.grid.affine[2, :3]).argmax())
    upwards = image.grid.affine[2, axis] > 0
    shown = (image.data > 0).nonzero().numpy()[:, axis]
    voxels = round(SHORT / image.grid.spacing[axis])
    before, after = np.zeros(3, int), np.zeros(3, int)
    if upwards:
        before[axis] = -(shown.min() + voxels)
    else:
        after[axis] = shown.max() - voxels + 1 - image.grid.shape[axis]
    part = _padded(image, before, after)
    return part, float(part.grid.corners()[:, 2].min())


def _apart(one: Registration, other: Registration, points: np.ndarray) -> dict[str, float]:
    return _lengths(one.transform(points) - other.transform(points))


def _there_and_back(fixed: Image, moving: Image, points: np.ndarray, kind: str) -> dict[str, float]:
    there, back = (
        stepwarp.register(*images, transform=kind, affine_only=True) for images in ((fixed, moving), (moving, fixed))
    )
    sent = there.transform(points)
    return _lengths(back.transform(sent) - points)


def _lengths(vectors: np.ndarray) -> dict[str, float]:
    lengths = np.linalg.norm(vectors, axis=1)
    found = {"mean_mm": lengths.mean(), "p95_mm": np.percentile(lengths, 95), "max_mm": lengths.max()}
    return {name: round(float(value), 5) for name, value in found.items()}


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
