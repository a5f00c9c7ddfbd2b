"""Judges one transform of one pair: every number that there is ground truth for, measured on the fixed grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.evaluation.distances import DistanceSummary
from stepwarp.evaluation.landmarks import target_registration_error
from stepwarp.evaluation.overlap import Overlap, label_changes, label_ids, millilitres, overlaps
from stepwarp.evaluation.regularity import inverse_consistency, non_diffeomorphic_volume, regularity
from stepwarp.evaluation.similarity import similarities
from stepwarp.evaluation.surfaces import SurfaceDistance, largest_distance, surface_distances
from stepwarp.files import Landmarks, on_grid_of
from stepwarp.geometry import Affine, Grid, Image, LabelMap, Transform
from stepwarp.geometry.background import faces
from stepwarp.geometry.intensities import scale_intensities, scaled_outside

#: Told the stage, and how many of how many parts of it are done.
Report = Callable[[str, int, int], None]

_WORDS = {True: "non-zero voxels of the fixed image", False: "all voxels of the fixed image"}


def evaluate(
    fixed: Image,
    moving: Image,
    transform: Transform,
    *,
    inverse: Transform | None = None,
    fixed_labels: LabelMap | None = None,
    moving_labels: LabelMap | None = None,
    ignore_labels: Iterable[int] = (),
    label_names: Mapping[int, str] | None = None,
    fixed_landmarks: Landmarks | None = None,
    moving_landmarks: Landmarks | None = None,
    unreliable_landmarks: Iterable[str] = (),
    mask: LabelMap | None = None,
    report: Report = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Everything that can be said about a transform, fixed world to moving world, JSON-ready.

    inverse: moving world to fixed world. Labels: each on its image's grid; a label is scored if both maps hold it and
    it is neither 0 nor in `ignore_labels`. Landmarks pair up by name; unreliable_landmarks: names, or numbers counted
    from 1 in the order of the fixed ones, that are left out, as are those that either side lists without a position.
    mask: non-zero where regularity, displacement, inverse residual and similarity are measured; by default the fixed
    image's voxels that are not NaN, if some are, those that are not 0, if 0 is its background, else all. Labels and
    landmarks count wherever they lie. report: told the stages as they begin.

    Keys, absent without ground truth: mask {source, voxels}; mean_dice, mean_jaccard, mean_hd95_mm, mean_asd_mm,
    labels_scored, surfaces_scored (that the warped map has), surfaces_penalised and surface_penalty_mm (a label that
    the warp lost has a Dice of 0 and, in its own distances and in their means, the largest distance between two voxels
    of the fixed grid, so that losing one is never better than misplacing it), labels {id: {name, dice, jaccard,
    hd95_mm, asd_mm, fixed_ml, moved_ml}}, labels_lost and labels_created by the warp,
    labels_missing_in {fixed, moving} (held by the other map alone, not scored); tre_mm {count, mean, median, p75, p95,
    max, before_mean, left_out, landmarks {name: {before, after}}}; folds, corner_folds {count, share}, ndv
    {percent, ml}, std_log_jacobian, jacobian {min, p01, median, p99, max}, displacement_mm {mean, p95, max}, all of the
    whole transform sampled on the fixed grid; inverse_mm {mean, median, p95, max}; similarity {before, after}, before
    being the identity in the world. A number that is not finite is null.

    Raises InputError for labels or a mask on another grid than their image (how many mm away), labels of which none can
    be scored, landmarks that do not pair up (which), and ground truth of one image alone."""
    inside, source = measured_in(fixed, mask)
    result: dict[str, Any] = {"mask": {"source": source, "voxels": int(inside.sum())}}
    labels = _pair(fixed_labels, moving_labels, "labels")
    if labels is not None:
        labels = on_grid_of(labels[0], fixed), on_grid_of(labels[1], moving)
        result |= of_labels(*labels, transform, frozenset(ignore_labels), label_names or {}, report)
    landmarks = _pair(fixed_landmarks, moving_landmarks, "landmarks")
    if landmarks is not None:
        result["tre_mm"] = _of_landmarks(*landmarks, transform, tuple(unreliable_landmarks))
    report("regularity", 0, 1)
    result |= of_field(transform, fixed.grid, inside)
    if inverse is not None:
        residual = inverse_consistency(transform, inverse, fixed.grid, inside)
        result["inverse_mm"] = {
            "mean": residual.mean_mm,
            "median": residual.median_mm,
            "p95": residual.p95_mm,
            "max": residual.max_mm,
        }
    report("similarity", 0, 1)
    result["similarity"] = _of_images(fixed, moving, transform, inside)
    report("similarity", 1, 1)
    return json_ready(result)


def measured_in(fixed: Image, mask: LabelMap | None = None) -> tuple[Tensor, str]:
    """Where `evaluate` measures, a bool tensor on the fixed grid, and in words where that is."""
    if mask is None:
        if fixed.missing is not None:
            return ~fixed.missing, "voxels of the fixed image that are not NaN"
        zero_around = _has_zero_background(fixed.data)
        return fixed.data != 0 if zero_around else torch.ones_like(fixed.data, dtype=torch.bool), _WORDS[zero_around]
    inside = on_grid_of(mask, fixed).data != 0
    if not inside.any():
        raise InputError(f"{mask.name}: the mask is empty. Non-zero voxels are the ones that count.")
    return inside, f"given: {mask.name}"


def _has_zero_background(values: Tensor) -> bool:
    """Whether 0 is the lowest value and that of most voxels on the faces of the image, as after skull-stripping."""
    return bool(values.min() == 0) and float((faces(values) == 0).float().mean()) > 0.5


def _pair(fixed: Any, moving: Any, what: str) -> tuple[Any, Any] | None:
    if (fixed is None) != (moving is None):
        given, lacking = ("fixed", "moving") if moving is None else ("moving", "fixed")
        raise InputError(f"there are {what} of the {given} image and none of the {lacking} one. Give both, or neither.")
    return None if fixed is None else (fixed, moving)


def of_labels(
    fixed: LabelMap,
    moving: LabelMap,
    transform: Transform,
    ignored: frozenset[int],
    names: Mapping[int, str] = MappingProxyType({}),
    report: Report = lambda stage, done, total: None,
) -> dict[str, Any]:
    """What `evaluate` says of labels, of maps that lie on the grids of their images."""
    report("labels", 0, 1)
    in_fixed, in_moving = label_ids(fixed) - ignored, label_ids(moving) - ignored
    scored = sorted(in_fixed & in_moving)
    if not scored:
        raise InputError(
            f"there is no label to score: {_listed(fixed, in_fixed)}, {_listed(moving, in_moving)}, beside those that "
            "are ignored. Give two maps with the same labels."
        )
    warped = moving.warp(transform, onto=fixed.grid)
    changes = label_changes(moving, warped)
    overlap = overlaps(fixed, warped, ignored)
    surfaces = surface_distances(fixed, warped, scored, lambda done, total: report("surfaces", done, total))
    worst = largest_distance(fixed.grid)
    lost = [n for n in scored if surfaces[n] is None]
    distances = {n: surfaces[n] or SurfaceDistance(worst, worst) for n in scored}
    return {
        "mean_dice": float(np.mean([overlap[n].dice for n in scored])),
        "mean_jaccard": float(np.mean([overlap[n].jaccard for n in scored])),
        "mean_hd95_mm": float(np.mean([distances[n].hd95_mm for n in scored])),
        "mean_asd_mm": float(np.mean([distances[n].asd_mm for n in scored])),
        "labels_scored": len(scored),
        "surfaces_scored": len(scored) - len(lost),
        "surfaces_penalised": len(lost),
        "surface_penalty_mm": worst,
        "labels": {str(n): _of_label(n, names, overlap[n], distances[n], fixed.grid) for n in scored},
        "labels_lost": sorted(set(changes.lost) - ignored),
        "labels_created": sorted(set(changes.created) - ignored),
        "labels_missing_in": {"fixed": sorted(in_moving - in_fixed), "moving": sorted(in_fixed - in_moving)},
    }


def _of_label(
    label: int, names: Mapping[int, str], overlap: Overlap, surface: SurfaceDistance, grid: Grid
) -> dict[str, Any]:
    return {
        **({"name": names[label]} if label in names else {}),
        "dice": overlap.dice,
        "jaccard": overlap.jaccard,
        "hd95_mm": surface.hd95_mm,
        "asd_mm": surface.asd_mm,
        "fixed_ml": millilitres(overlap.fixed, grid),
        "moved_ml": millilitres(overlap.warped, grid),
    }


def _listed(labels: LabelMap, ids: frozenset[int]) -> str:
    some = ", ".join(map(str, sorted(ids)[:8])) + (", ..." if len(ids) > 8 else "")
    return f"{labels.name} holds {some or 'none'}"


def _of_landmarks(
    fixed: Landmarks, moving: Landmarks, transform: Transform, unreliable: tuple[str, ...]
) -> dict[str, Any]:
    missing = [name for landmarks in (fixed, moving) for _, name in landmarks.missing]
    left_out = list(dict.fromkeys([*(_landmark_name(text, fixed) for text in unreliable), *missing]))
    names, at, towards = _matched(fixed, moving, frozenset(left_out))
    before = target_registration_error(Affine.identity(3), at, towards)
    after = target_registration_error(transform, at, towards)
    summary = DistanceSummary.of(after)
    return {
        "count": summary.count,
        "mean": summary.mean_mm,
        "median": summary.median_mm,
        "p75": float(np.percentile(after, 75)),
        "p95": summary.p95_mm,
        "max": summary.max_mm,
        "before_mean": float(before.mean()),
        "left_out": left_out,
        "landmarks": {n: {"before": float(b), "after": float(a)} for n, b, a in zip(names, before, after, strict=True)},
    }


def _landmark_name(text: str, landmarks: Landmarks) -> str:
    """The name that a name, or a number counted from 1, means."""
    names, _ = landmarks.listed()
    if text in names:
        return text
    if text.isdecimal() and 1 <= int(text) <= len(names):
        return names[int(text) - 1]
    raise InputError(
        f"landmark '{text}' is to be left out, but the fixed image has none of that name or number; it has "
        f"{', '.join(names)}."
    )


def _matched(fixed: Landmarks, moving: Landmarks, left_out: frozenset[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The names both have, in the fixed order, with their points (N, 3) in either."""
    points = []
    for side, landmarks in (("fixed", fixed), ("moving", moving)):
        twice = sorted({name for name in landmarks.names if landmarks.names.count(name) > 1})
        if twice:
            raise InputError(f"the {side} landmarks hold {', '.join(twice)} more than once. Give each its own name.")
        pairs = zip(landmarks.names, landmarks.points, strict=True)
        points.append({name: point for name, point in pairs if name not in left_out})
    lacking = {"fixed": points[1].keys() - points[0].keys(), "moving": points[0].keys() - points[1].keys()}
    if any(lacking.values()):
        which = "; ".join(
            f"the {side} ones lack {', '.join(sorted(names))}" for side, names in lacking.items() if names
        )
        raise InputError(f"{len(fixed)} fixed and {len(moving)} moving landmarks do not pair up: {which}.")
    if not points[0]:
        raise InputError("there is no landmark to measure: every one of them is left out.")
    names = list(points[0])
    return names, np.array([points[0][n] for n in names]), np.array([points[1][n] for n in names])


def of_field(transform: Transform, grid: Grid, inside: Tensor) -> dict[str, Any]:
    """What `evaluate` says of a transform alone: folds, volumes and displacements inside a mask on the fixed grid."""
    field = transform.on(grid)
    lengths = field.millimetres().norm(dim=-1)[inside].double().numpy()
    ndv = non_diffeomorphic_volume(field, inside)
    measured = regularity(field, inside).as_dict()
    return {
        **{key: measured[key] for key in ("folds", "corner_folds")},
        "ndv": {"percent": ndv.percent, "ml": ndv.ml},
        **{key: measured[key] for key in ("std_log_jacobian", "jacobian")},
        "displacement_mm": {
            "mean": float(lengths.mean()),
            "p95": float(np.percentile(lengths, 95)),
            "max": float(lengths.max()),
        },
    }


def _of_images(fixed: Image, moving: Image, transform: Transform, inside: Tensor) -> dict[str, Any]:
    a = scale_intensities(fixed)
    b = scale_intensities(moving).surrounded(scaled_outside(moving))
    maps = {"before": Affine.identity(3), "after": transform}
    return {when: similarities(a, b.warp(map_, onto=a.grid), inside) for when, map_ in maps.items()}


def json_ready(value: Any) -> Any:
    """The same with floats of six digits, and null for those that are not finite."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
