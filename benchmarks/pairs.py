"""The pairs of a manifest, and the judgement of a method's written files on one of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepwarp.evaluation.landmarks import target_registration_error
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.evaluation.regularity import inverse_consistency, regularity
from stepwarp.files import read_image, read_labels, read_landmarks, read_transform, sha256
from stepwarp.geometry import Composition, DisplacementField, Transform

ROOT = Path(__file__).parents[1]
MANIFESTS = ROOT / "data_manifests"
RESULTS = Path(__file__).parent / "results"

#: Inside the brain: every voxel of these skull-stripped images above 0.
BACKGROUND = 0


def data_root() -> Path:
    return Path(os.environ.get("STEPWARP_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class Scan:
    image: Path
    labels: Path | None
    landmarks: Path | None
    unreliable: frozenset[str]


@dataclass(frozen=True)
class Pair:
    id: str
    fixed: Scan
    moving: Scan
    ignore_labels: tuple[int, ...]


def load_pairs(manifest: str, split: str) -> list[Pair]:
    """The pairs of a split; stops at a file that is missing or is not the one the manifest means."""
    content = json.loads((MANIFESTS / f"{manifest}.json").read_text())
    ignore = tuple(content["ignore_labels"])
    return [
        Pair(p["id"], *(_scan(content["images"][p[role]]) for role in ("fixed", "moving")), ignore)
        for p in content["pairs"]
        if p["split"] == split
    ]


def _scan(entry: dict[str, Any]) -> Scan:
    paths: dict[str, Path | None] = {}
    for role in ("image", "labels", "landmarks"):
        path = data_root() / entry[role] if role in entry else None
        if path is not None and sha256(path) != entry["sha256"][role]:
            raise SystemExit(f"{path}: is not the file that the manifest describes")
        paths[role] = path
    image = paths["image"]
    assert image is not None
    return Scan(image, paths["labels"], paths["landmarks"], frozenset(entry.get("unreliable_landmarks", ())))


def read_result(folder: Path) -> tuple[Transform, Transform, DisplacementField | None]:
    """The transform, its inverse and the deformable part, from files named as ANTs names them."""
    affine = read_transform(folder / "0GenericAffine.mat")
    if not (folder / "1Warp.nii.gz").exists():
        return affine, affine.inverse(), None
    warp, back = (read_transform(folder / name) for name in ("1Warp.nii.gz", "1InverseWarp.nii.gz"))
    assert isinstance(warp, DisplacementField)
    return Composition.of(affine, warp), Composition.of(back, affine.inverse()), warp


def judge(pair: Pair, folder: Path) -> dict[str, Any]:
    """Everything measured on the written files, in mm and shares; what the pair has no ground truth for is absent."""
    transform, inverse, warp = read_result(folder)
    result: dict[str, Any] = {}
    if pair.fixed.labels and pair.moving.labels:
        fixed, moving = read_labels(pair.fixed.labels), read_labels(pair.moving.labels)
        scores = dice(fixed, moving.warp(transform, fixed.grid), ignore=pair.ignore_labels)
        present = set(np.unique(fixed.data.numpy()).tolist())
        scores = {label: score for label, score in scores.items() if label in present}
        result |= {"dice": mean_dice(scores), "labels": len(scores)}
    if pair.fixed.landmarks and pair.moving.landmarks:
        errors = target_registration_error(transform, *_matched_landmarks(pair))
        result |= {"tre_mm": float(errors.mean()), "tre_max_mm": float(errors.max()), "landmarks": len(errors)}
    if warp is not None:
        inside = read_image(pair.fixed.image).data > BACKGROUND
        smooth = regularity(warp, inside)
        residual = inverse_consistency(transform, inverse, warp.grid, inside)
        result |= {
            "folds": smooth.folds.count,
            "corner_folds": smooth.corner_folds.count,
            "std_log_jacobian": smooth.std_log_jacobian,
            "inverse_mean_mm": residual.mean_mm,
            "inverse_p95_mm": residual.p95_mm,
            "displacement_mean_mm": float(warp.millimetres().norm(dim=-1)[inside].mean()),
        }
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in result.items()}


def _matched_landmarks(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    fixed, moving = (_landmarks(scan) for scan in (pair.fixed, pair.moving))
    order = list(fixed)
    left_out = {order[int(number) - 1] for number in pair.fixed.unreliable | pair.moving.unreliable}
    names = [name for name in order if name in moving and name not in left_out]
    return np.array([fixed[n] for n in names]), np.array([moving[n] for n in names])


def _landmarks(scan: Scan) -> dict[str, np.ndarray]:
    assert scan.landmarks is not None
    marks = read_landmarks(scan.landmarks)
    return dict(zip(marks.names, marks.points, strict=True))
