"""What was achieved, in numbers, and whether to trust it, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepwarp.config import SimilarityName
from stepwarp.evaluation.regularity import inverse_consistency, regularity
from stepwarp.evaluation.similarity import similarities
from stepwarp.geometry import Affine, Composition, DisplacementField, Image, Transform
from stepwarp.registrar.deformable import Deformation

#: Scaled intensities above this belong to the subject, not to the background.
_FOREGROUND = 0.05

#: Limits of a result that needs no second look, and of one that must not be used. Folds count inside the subject.
_OVERLAP_FAIL, _OVERLAP_CHECK = 0.5, 0.9
_FOLD_SHARE_FAIL = 1e-3
_RESIDUAL_CHECK_MM = 0.5
_STD_LOG_JACOBIAN_CHECK = 0.8
_VOLUME_CHECK = 2.0
#: A deformation changes the local correlation by less only if it does nothing; fine where images are so much alike.
_GAIN_CHECK, _ALIKE = 0.01, 0.9
_INFORMATION_FAIL = 0.03


def measure(
    fixed: Image,
    moving: Image,
    affine: Affine,
    deformation: Deformation | None,
    fixed_mask: Image | None,
) -> dict[str, Any]:
    """Similarity at each stage, regularity, inverse residual and overlap, inside the fixed subject (and mask).

    fixed, moving: scaled to 0..1, as they were registered."""
    inside = foreground(fixed, fixed_mask)
    transform: Transform = affine if deformation is None else Composition.of(affine, deformation.warp)
    result: dict[str, Any] = {
        "subject_voxels": int(inside.sum()),
        "similarity_affine": similarities(fixed, moving.warp(affine, fixed.grid), inside),
        "volume_ratio": round(float(np.linalg.det(affine.matrix[:-1, :-1])), 5),
        "overlap": _overlap(fixed, moving, transform, inside),
    }
    if deformation is not None:
        warp, inverse_warp = deformation.warp, deformation.inverse_warp
        result["similarity"] = similarities(fixed, moving.warp(transform, fixed.grid), inside)
        result["displacement_mm"] = _lengths(warp, inside)
        result["regularity"] = regularity(warp, inside).as_dict()
        result["inverse_residual"] = inverse_consistency(warp, inverse_warp, fixed.grid, inside).as_dict()
    return result


def foreground(fixed: Image, mask: Image | None) -> Tensor:
    """Where a scaled image shows something (and is trusted), bool on its grid; everywhere if it shows nothing."""
    inside = fixed.data > _FOREGROUND
    if mask is not None:
        inside &= mask.data > 0
    return inside if inside.any() else torch.ones_like(inside)


def lowered(measures: dict[str, Any], similarity: SimilarityName) -> bool:
    """Whether the deformation made the images less alike than the affine alone, by the measure nearest to the loss."""
    key = {"lncc": "lncc", "mi": "mutual_information", "mind": "mutual_information"}.get(similarity, "ncc")
    return measures["similarity"][key] < measures["similarity_affine"][key]


def judge(measures: dict[str, Any], notes: Sequence[str] = (), checks: Sequence[str] = ()) -> dict[str, Any]:
    """{status: pass, check or fail, reasons: [a sentence each]} from what `measure` returned.

    notes, checks: sentences of other stages, to be known and to be looked at."""
    fails: list[str] = []
    checks = [*checks]
    good = [*notes]
    overlap = measures["overlap"]
    text = f"{overlap:.0%} of the fixed subject has a partner inside the moving image"
    (fails if overlap < _OVERLAP_FAIL else checks if overlap < _OVERLAP_CHECK else good).append(text)
    final = measures.get("similarity", measures["similarity_affine"])
    text = f"the images share {final['mutual_information']:.2f} of their information, correlation {final['ncc']:.2f}"
    (fails if final["mutual_information"] < _INFORMATION_FAIL else good).append(text)
    size = measures["volume_ratio"]
    if not 1 / _VOLUME_CHECK < size < _VOLUME_CHECK:
        checks.append(f"the linear transform makes the fixed subject {size:.2f} times as large")
    if "similarity" in measures:
        _judge_deformation(measures, fails, checks, good)
    status = "fail" if fails else "check" if checks else "pass"
    return {"status": status, "reasons": fails + checks + good}


def _judge_deformation(measures: dict[str, Any], fails: list[str], checks: list[str], good: list[str]) -> None:
    before, after = measures["similarity_affine"]["lncc"], measures["similarity"]["lncc"]
    text = f"the deformation {'lowered' if after < before else 'raised'} the local correlation "
    text += f"from {before:.2f} to {after:.2f}"
    lost, gained = after < before - _GAIN_CHECK, after >= before + _GAIN_CHECK or after >= _ALIKE
    (fails if lost else good if gained else checks).append(text)
    smoothness = measures["regularity"]
    folds = smoothness["corner_folds"]
    text = f"{folds['count']} voxels fold" if folds["count"] else "no voxel folds"
    (fails if folds["share"] > _FOLD_SHARE_FAIL else checks if folds["count"] else good).append(text)
    spread = smoothness["std_log_jacobian"]
    if spread is None or spread > _STD_LOG_JACOBIAN_CHECK:
        amount = "not known" if spread is None else f"{spread:.2f}"
        checks.append(f"volumes change strongly (standard deviation of log J {amount})")
    residual = measures["inverse_residual"]["p95_mm"]
    text = f"going there and back ends within {residual:.3f} mm for 95 % of the subject"
    (checks if residual > _RESIDUAL_CHECK_MM else good).append(text)


def _overlap(fixed: Image, moving: Image, transform: Transform, inside: Tensor) -> float:
    """The share of the fixed subject that the transform sends into the moving image's box."""
    box = Image(torch.ones_like(moving.data), moving.grid)
    return round(float(box.warp(transform, fixed.grid).data[inside].mean()), 5)


def _lengths(warp: DisplacementField, inside: Tensor) -> dict[str, float]:
    """How far the deformation alone moves the subject, mm."""
    lengths = warp.millimetres().norm(dim=-1)[inside]
    return {"mean": round(float(lengths.mean()), 4), "max": round(float(lengths.max()), 4)}
