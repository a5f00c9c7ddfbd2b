"""What was achieved, in numbers, and whether to trust it, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepwarp.config import SimilarityName
from stepwarp.evaluation.metrics import of_similarities
from stepwarp.evaluation.regularity import inverse_consistency, regularity
from stepwarp.evaluation.similarity import similarities
from stepwarp.geometry import Affine, Composition, DisplacementField, Image, Transform
from stepwarp.losses.similarities.mi import MutualInformation
from stepwarp.losses.similarity import find_similarity
from stepwarp.printable import counted
from stepwarp.registrar.deformable import Deformation
from stepwarp.registrar.masks import pooled
from stepwarp.registrar.subject import SHOWN, ImagedSubject, voxel_edge

#: The information that two images share is measured on voxels so large that the subject is so many across: about 4 mm
#: in a head, nearly the same for every scanner's.
_INFORMATION_ACROSS = 44

#: Voxels around the moving subject, and around where the affine brings the fixed one, that are background as well as
#: those of the image: a deformation goes no further.
_BEYOND = 8
#: A voxel that is read from known ones alone, but for rounding.
_WHOLLY = 0.999

#: Limits of a result that needs no second look, and of one that must not be used. The overlap is that of the smaller
#: subject. Folds are corner folds inside the subject. The limits of stretch, information and change of volume lie
#: between the registered and the spoilt training pairs of benchmarks/verdicts.py.
_OVERLAP_FAIL, _OVERLAP_CHECK = 0.5, 0.9
FOLD_SHARE_FAIL = 1e-3
#: Of the subject's size, half a millimetre in a head of 175 mm, .43 in a brain; and of a voxel's longest side, where
#: that is more: an inverse on coarse voxels is no more exact than they are.
_RESIDUAL_CHECK, _RESIDUAL_OF_A_VOXEL = 1 / 350, 1 / 8
_STD_LOG_JACOBIAN_CHECK = 0.6
_VOLUME_FAIL, _VOLUME_CHECK = 8.0, 2.0
_STRETCH_FAIL, _STRETCH_CHECK = 1.5, 1.3
_LINEAR_INFORMATION_FAIL, _LINEAR_INFORMATION_CHECK = 0.06, 0.1
_INFORMATION_FAIL, _INFORMATION_CHECK = 0.2, 0.28
#: Of the overlap of structures that a segmenter names in both heads, where all is linear and where it is deformed, and
#: what a deformation may take of it. Brains of two people reach .60 to .76 by an affine, 6 mm beside it .42 to .49,
#: 10 mm beside it .25; deformed .75 to .81, parts of a head .70; T2 onto T1 of one average brain loses .1.
_LINEAR_STRUCTURES_FAIL, _LINEAR_STRUCTURES_CHECK = 0.3, 0.55
_STRUCTURES_FAIL, _STRUCTURES_CHECK, _STRUCTURES_LOST = 0.45, 0.66, 0.02
#: How certain structures are below which an image is no head, rather than a part of one or one that lies otherwise.
_NO_HEAD = 0.6
#: A deformation changes the similarity by less only if it does nothing; fine where images are so much alike.
_GAIN_CHECK, _ALIKE = 0.01, {"lncc": 0.9, "mutual_information": 0.65}
#: What an image shares with itself of its information, as it is measured, on all development brains, heads and chests.
_OF_ITSELF = "an image and itself: about 0.73"


def measure(
    fixed: Image,
    moving: Image,
    affine: Affine,
    deformation: Deformation | None,
    fixed_mask: Image | None,
    moving_mask: Image | None = None,
) -> dict[str, Any]:
    """Similarity at each stage, regularity, inverse residual and overlap, inside the fixed subject (and mask).

    fixed, moving: scaled to 0..1, as they were registered. Similarity and information also leave out what has a partner
    that the moving mask excludes, or that lies beyond where the moving image cuts the subject."""
    inside = foreground(fixed, fixed_mask)
    ways: dict[str, Transform] = {"affine": affine}
    if deformation is not None:
        ways["final"] = Composition.of(affine, deformation.warp)
    stretches = np.linalg.svd(affine.matrix[:-1, :-1], compute_uv=False)
    result: dict[str, Any] = {
        "subject_voxels": int(inside.sum()),
        "subject_mm": round(ImagedSubject(fixed, fixed_mask).size, 4),
        "voxel_mm": round(float(fixed.grid.spacing.max()), 4),
        **likeness(fixed, moving, ways, fixed_mask, moving_mask),
        "volume_ratio": round(float(np.linalg.det(affine.matrix[:-1, :-1])), 5),
        "stretch": round(float(stretches[0] / stretches[-1]), 5),
        "overlap": _overlap(fixed, moving, list(ways.values())[-1], inside),
        "overlap_of_moving": _overlap(moving, fixed, affine.inverse(), foreground(moving, moving_mask)),
    }
    if deformation is not None:
        warp, inverse_warp = deformation.warp, deformation.inverse_warp
        result["displacement_mm"] = _lengths(warp, inside)
        result["regularity"] = regularity(warp, inside).as_dict()
        result["inverse_residual"] = inverse_consistency(warp, inverse_warp, fixed.grid, inside).as_dict()
    return result


def likeness(
    fixed: Image,
    moving: Image,
    ways: dict[str, Transform],
    fixed_mask: Image | None,
    moving_mask: Image | None = None,
) -> dict[str, Any]:
    """Similarity and shared information under the affine and, where there is one, the final transform, as `measure` has
    them. ways: both, fixed world -> moving world, as "affine" and "final"."""
    subject = ImagedSubject(fixed, fixed_mask)
    trusted = _trusted(subject, ImagedSubject(moving, moving_mask), *ways.values())
    compared = foreground(fixed, fixed_mask if trusted is None else trusted)
    edge = voxel_edge(subject.size, _INFORMATION_ACROSS, float(fixed.grid.spacing.min()))
    result: dict[str, Any] = {"information": {"mm": round(edge, 4)}}
    for stage, way in ways.items():
        moved = moving.warp(way, fixed.grid)
        result["similarity_affine" if stage == "affine" else "similarity"] = similarities(fixed, moved, compared)
        result["information"][stage] = _information(fixed, moved, trusted, edge)
    return result


def foreground(fixed: Image, mask: Image | None) -> Tensor:
    """Where a scaled image shows something (and is trusted), bool on its grid; everywhere if it shows nothing."""
    inside = fixed.data > SHOWN
    if mask is not None:
        inside &= mask.data > 0
    return inside if inside.any() else torch.ones_like(inside)


def lowered(measures: dict[str, Any], similarity: SimilarityName) -> bool:
    """Whether the deformation made the images less alike than the affine alone, by the measure nearest to the loss."""
    return gain(measures, similarity) < 0


def gain(measures: dict[str, Any], similarity: SimilarityName) -> float:
    """How much more alike the images are with the deformation than by the affine alone, by the measure nearest to the
    loss."""
    key = find_similarity(similarity).nearest_measure
    return measures["similarity"][key] - measures["similarity_affine"][key]


def information_in_doubt(measures: dict[str, Any]) -> bool:
    """Whether images share so little information that only structures can tell whether they lie right."""
    found = measures["information"]
    return found["affine"] < _LINEAR_INFORMATION_CHECK or found.get("final", 1.0) < _INFORMATION_CHECK


def judge(
    measures: dict[str, Any], notes: Sequence[str] = (), checks: Sequence[str] = (), *, multimodal: bool = False
) -> dict[str, Any]:
    """{status: pass, check or fail, reasons: [a sentence each]} from what `measure` returned.

    notes, checks: sentences of other stages, to be known and to be looked at. multimodal: the contrasts differ, so that
    correlation says nothing."""
    fails: list[str] = []
    checks = [*checks]
    good = [*notes]
    _judge_overlap(measures["overlap"], measures["overlap_of_moving"], fails, checks, good)
    _judge_linear(measures, fails, checks)
    _judge_information(measures, fails, checks, good)
    if "structures" in measures:
        parts = min(measures["overlap"], measures["overlap_of_moving"]) < _OVERLAP_CHECK
        _judge_structures(measures["structures"], parts, fails, checks, good)
    if "similarity" in measures:
        _judge_deformation(measures, "mutual_information" if multimodal else "lncc", fails, checks, good)
    status = "fail" if fails else "check" if checks else "pass"
    return {"status": status, "reasons": fails + checks + good}


def _judge_overlap(of_fixed: float, of_moving: float, fails: list[str], checks: list[str], good: list[str]) -> None:
    """By the smaller subject: of a slab onto a whole brain, all of the slab has a partner."""
    text = f"{of_fixed:.0%} of the fixed subject has a partner inside the moving image"
    if of_fixed < _OVERLAP_CHECK:
        text += f", and {of_moving:.0%} of the moving subject one inside the fixed image"
    overlap = max(of_fixed, of_moving)
    if overlap < _OVERLAP_FAIL:
        text += f": less than {_OVERLAP_FAIL:.0%} of either can be compared"
    (fails if overlap < _OVERLAP_FAIL else checks if overlap < _OVERLAP_CHECK else good).append(text)


def judge_further(measures: dict[str, Any], name: str, *, multimodal: bool) -> tuple[list[str], list[str]]:
    """What to know and what to look at of a further pair of images, in sentences. measures: of the first pair, with
    what `likeness` has of that one in `further`, by its name.

    What would be a failure of the first pair is to be looked at: the first may be right all the same."""
    checks: list[str] = []
    good: list[str] = []
    own = measures["further"][name] | {"structures": measures.get("structures", {})}
    _judge_information(own, checks, checks, good)
    if "similarity" in own:
        _judge_gain(own, "mutual_information" if multimodal else "lncc", checks, checks, good)
    return [f"{name}: {text}" for text in good], [f"{name}: {text}" for text in checks]


def _judge_linear(measures: dict[str, Any], fails: list[str], checks: list[str]) -> None:
    size, stretch = measures["volume_ratio"], measures["stretch"]
    if size <= 0:
        fails.append("the linear transform mirrors the subject")
    elif not 1 / _VOLUME_CHECK < size < _VOLUME_CHECK:
        text = f"the linear transform makes the fixed subject {size:.3g} times as large"
        (checks if 1 / _VOLUME_FAIL < size < _VOLUME_FAIL else fails).append(text)
    if stretch > _STRETCH_CHECK:
        text = f"the linear transform stretches one direction {stretch:.2f} times as much as another"
        (fails if stretch > _STRETCH_FAIL else checks).append(text)


def _judge_information(measures: dict[str, Any], fails: list[str], checks: list[str], good: list[str]) -> None:
    linear = measures["information"]["affine"]
    final = measures["information"].get("final")
    text = f"the images share {linear:.2f} of their information after the linear transform"
    if final is None:
        final = 1.0
    else:
        text += f" and {final:.2f} in the end"
    text += f" ({_OF_ITSELF})"
    if _structures_meet(measures):  # little may be left by different contrasts, or a bias, of what lies on each other
        good.append(text)
    elif linear < _LINEAR_INFORMATION_FAIL or final < _INFORMATION_FAIL:
        fails.append(f"{text}: too little to be the same anatomy in the same place")
    elif information_in_doubt(measures):
        checks.append(f"{text}: less than most pairs that are registered well")
    else:
        good.append(text)


def _structures_meet(measures: dict[str, Any]) -> bool:
    """Whether both are heads, and their structures lie on each other as in registered ones."""
    met = measures.get("structures", {})
    if "final" not in met:
        return met.get("affine", 0.0) >= _LINEAR_STRUCTURES_CHECK
    return met["final"] >= max(_STRUCTURES_CHECK, met["affine"] - _STRUCTURES_LOST)


def _judge_structures(met: dict[str, Any], parts: bool, fails: list[str], checks: list[str], good: list[str]) -> None:
    """met: of `anatomy.structures_met`. parts: whether one image shows a part of the other; of a slab no segmenter
    knows that it is of a head."""
    unlike = [role for role in ("fixed", "moving") if not met[role]["is_head"]]
    if len(unlike) == 2:
        good.append("neither image looks like a head, so that nothing is known of structures")
    elif unlike:
        certainty = met[unlike[0]]["certainty"]
        text = f"the {unlike[0]} image does not look like a head, and the other one does"
        worse = fails if certainty < _NO_HEAD else checks
        (good if parts else worse).append(f"{text} (its structures are {certainty:.2f} certain)")
    else:
        before, after = met["affine"], met.get("final", met["affine"])
        least, wanted = _LINEAR_STRUCTURES_FAIL, _LINEAR_STRUCTURES_CHECK
        text = f"the structures that were found in both heads overlap by {before:.2f} after the linear transform"
        if "final" in met:
            least, wanted = _STRUCTURES_FAIL, _STRUCTURES_CHECK
            text += f" and {after:.2f} in the end"
        text += " (mean Dice)"
        lost = after < before - _STRUCTURES_LOST
        if after < wanted:
            text += ": less than those of most pairs that are registered well"
        elif lost:
            text += ": the deformation takes apart what lay together"
        (fails if after < least else checks if lost or after < wanted else good).append(text)


def _judge_gain(
    measures: dict[str, Any], similarity: str, fails: list[str], checks: list[str], good: list[str]
) -> None:
    """similarity: the key of that by which gain and loss are told."""
    before, after = measures["similarity_affine"][similarity], measures["similarity"][similarity]
    what = of_similarities()[similarity].name
    text = f"the deformation {'lowered' if after < before else 'raised'} the {what} from {before:.2f} to {after:.2f}"
    if after == before:
        text = f"the {what} is {before:.2f} with the deformation and without it"
    lost, gained = after < before - _GAIN_CHECK, after >= before + _GAIN_CHECK or after >= _ALIKE[similarity]
    (fails if lost else good if gained else checks).append(text)


def _judge_deformation(
    measures: dict[str, Any], similarity: str, fails: list[str], checks: list[str], good: list[str]
) -> None:
    _judge_gain(measures, similarity, fails, checks, good)
    smoothness = measures["regularity"]
    folds = smoothness["corner_folds"]
    said = counted(folds["count"], "voxel folds", "voxels fold") if folds["count"] else "no voxel folds"
    text = f"{said} by one-sided differences (corner folds)"
    (fails if folds["share"] > FOLD_SHARE_FAIL else checks if folds["count"] else good).append(text)
    spread = smoothness["std_log_jacobian"]
    if spread is None or spread > _STD_LOG_JACOBIAN_CHECK:
        amount = "not known" if spread is None else f"{spread:.2f}"
        checks.append(f"volumes change strongly (standard deviation of log J {amount})")
    residual = measures["inverse_residual"]["p95_mm"]
    text = f"going there and back ends within {residual:.2g} mm for 95 % of the subject"
    most = max(_RESIDUAL_CHECK * measures["subject_mm"], _RESIDUAL_OF_A_VOXEL * measures["voxel_mm"])
    (checks if residual > most else good).append(text)


def _overlap(image: Image, other: Image, transform: Transform, inside: Tensor) -> float:
    """The share of an image's subject that the transform sends into the other one's box."""
    box = Image(torch.ones_like(other.data), other.grid)
    return round(float(box.warp(transform, image.grid).data[inside].mean()), 5)


def _trusted(fixed: ImagedSubject, moving: ImagedSubject, affine: Transform, *others: Transform) -> Image | None:
    """Where on the fixed grid the images may be compared, under none of the transforms with what the moving one does
    not know; None for everywhere."""
    if moving.mask is None and not moving.cut.any():
        return fixed.mask
    blocks = moving.blocks((1,) * moving.grid.ndim, _BEYOND, around=affine(fixed.outline()))
    known = moving.known(blocks, moving.image.data.device)
    assert known is not None
    trusted = torch.ones_like(fixed.image.data) if fixed.mask is None else (fixed.mask.data > 0).float()
    for each in (affine, *others):
        trusted = torch.where(Image(known, blocks.grid).warp(each, fixed.grid).data < _WHOLLY, 0, trusted)
    return Image(trusted, fixed.grid)


def _information(fixed: Image, moved: Image, trusted: Image | None, edge: float) -> float:
    """The share of their information that two images on one grid have in common, on voxels of about `edge` mm."""
    factors = tuple(max(1, round(edge / spacing)) for spacing in fixed.grid.spacing)
    mask = None if trusted is None else trusted.data
    (f, weight), (m, _) = (pooled(image.data, mask, factors) for image in (fixed, moved))
    inside = f > SHOWN
    if weight is not None:
        inside &= weight > 0.5
    if not inside.any():
        inside = torch.ones_like(inside)
    return round(1 - float(MutualInformation()(f[inside][None, None], m[inside][None, None])), 5)


def _lengths(warp: DisplacementField, inside: Tensor) -> dict[str, float]:
    """How far the deformation alone moves the subject, mm."""
    lengths = warp.lengths()[inside]
    return {"mean": round(float(lengths.mean()), 4), "max": round(float(lengths.max()), 4)}
