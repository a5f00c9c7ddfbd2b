"""What the weights are worth: fixed pairs, registered as they are and measured on the network's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stepwarp.data.structures import as_classes
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.evaluation.regularity import regularity
from stepwarp.evaluation.similarity import similarities
from stepwarp.geometry import DisplacementField, Grid, Image, LabelMap
from stepwarp.kernels import sampling
from stepwarp.losses.similarity import Similarity
from stepwarp.registrar.steps import Images, Segmented
from stepwarp.registrar.steps.segmented import BRAIN
from stepwarp.registrar.weights.card import Expected

#: Brighter than this is tissue, where regularity is measured; images are scaled to about 0..1.
_TISSUE = 0.05


@dataclass(frozen=True, eq=False)
class Validation:
    """measures: means over the pairs. mean_dice only where there are labels; loss: the dissimilarity on the grid;
    folds_percent (by central differences) and std_log_jacobian inside the fixed image's tissue; segmentation_dice: the
    mean Dice of both images' structures inside the brain. seen: what tells whether a pair is like these, as a card
    expects it: the range over the pairs of each. strip: a picture of the first pair (height, width), 0..1, of what
    `pictured` says; one row per direction of view."""

    measures: dict[str, float]
    seen: dict[Expected, tuple[float, float]]
    strip: Tensor
    pictured: str = "fixed, moving, moved, difference"


@torch.no_grad()
def validate(
    step: nn.Module,
    samples: Sequence[Mapping[str, Any]],
    grid: Grid,
    similarity: Similarity,
    ignore_labels: tuple[int, ...] = (),
    device: torch.device | str = "cpu",
    structures: Mapping[int, int] | None = None,
) -> Validation:
    """Register the pairs on `grid` with `step` and measure, in single precision.

    samples: as of `data.pairs.FixedPairs`, one or more. structures: label -> class of a step whose segmenter is
    judged too."""
    rows, seen, strip = [], [], None
    for sample in samples:
        fixed, moving = (Images(sample[side][None].to(device), grid) for side in ("fixed", "moving"))
        found = step(fixed, moving)
        moved = moving.warp(found)
        row = {"loss": float(similarity(fixed.data, moved.data))}
        field = found[0].on(grid).to("cpu")
        row |= _regularity(field, fixed)
        seen.append(_seen(field, fixed, moving, moved))
        if "fixed_labels" in sample:
            row["mean_dice"] = _dice(sample, field, ignore_labels)
            if structures and isinstance(step, Segmented):
                sides = (("fixed", fixed), ("moving", moving))
                each = [_segmented(step, images, sample[f"{side}_labels"], structures) for side, images in sides]
                row["segmentation_dice"] = float(np.mean(each))
        rows.append(row)
        strip = picture_strip(fixed.data, moving.data, moved.data) if strip is None else strip
    if strip is None:
        raise ValueError("there is no pair to validate on")
    measures = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    ranges = {name: (min(each), max(each)) for name in seen[0] for each in [[pair[name] for pair in seen]]}
    return Validation(measures, ranges, strip)


def picture_strip(fixed: Tensor, moving: Tensor, moved: Tensor) -> Tensor:
    """The middle slices of three images (1, 1, *shape), and the difference after registration, as one picture of greys.

    2D images are one row; of 3D images each axis is looked along in a row of its own."""
    panels = [fixed[0, 0], moving[0, 0], moved[0, 0], (fixed - moved)[0, 0].abs()]
    panels = [panel.detach().float().cpu().clamp(0, 1) for panel in panels]
    if panels[0].ndim == 3:
        rows = [[panel.select(axis, panel.shape[axis] // 2) for panel in panels] for axis in range(3)]
    else:
        rows = [[panel.reshape(panel.shape[0], -1) for panel in panels]]
    lines = [torch.cat([panel.T.flip(0) for panel in row], 1) for row in rows]
    width = max(line.shape[1] for line in lines)
    return torch.cat([torch.nn.functional.pad(line, (0, width - line.shape[1])) for line in lines])


def _tissue(fixed: Images) -> Tensor:
    """bool, on the grid; everywhere if the image shows nothing."""
    mask = fixed.data[0, 0].cpu() > _TISSUE
    return mask if mask.any() else torch.ones_like(mask)


def _regularity(field: DisplacementField, fixed: Images) -> dict[str, float]:
    measured = regularity(field, _tissue(fixed))
    spread = measured.std_log_jacobian
    return {
        "folds_percent": 100 * measured.folds.share,
        "std_log_jacobian": float("nan") if spread is None else spread,
    }


def _seen(field: DisplacementField, fixed: Images, moving: Images, moved: Images) -> dict[Expected, float]:
    inside = _tissue(fixed)
    target, *others = (Image(each.data[0, 0].float().cpu(), each.grid) for each in (fixed, moving, moved))
    before, after = (similarities(target, other, inside)["lncc"] for other in others)
    length = float(field.millimetres().norm(dim=-1)[inside].mean())
    return {"lncc_after_affine": before, "lncc_gain": round(after - before, 5), "displacement_mm": round(length, 4)}


def _segmented(step: Segmented, images: Images, labels: Tensor, structures: Mapping[int, int]) -> float:
    """The mean Dice of the structures in the tissue of an image (1, 1, *shape); labels: (1, *shape)."""
    inside = images.data[0, 0].cpu() > BRAIN
    found = step.segmenter(images.data).argmax(1)[0].cpu() * inside
    wanted = as_classes(labels, structures)[0] * inside
    fixed, moved = (LabelMap(each.int(), images.grid, "structures") for each in (wanted, found))
    return mean_dice(dice(fixed, moved))


def _dice(sample: Mapping[str, Any], field: DisplacementField, ignore: tuple[int, ...]) -> float:
    fixed, moving = (sample[f"{side}_labels"] for side in ("fixed", "moving"))
    still = torch.eye(field.grid.ndim + 1, dtype=torch.float64)
    warped = sampling.warp(moving[None], field.displacement, still, "nearest")
    labels = LabelMap(fixed[0], field.grid, "fixed labels"), LabelMap(warped[0, 0], field.grid, "moved labels")
    return mean_dice(dice(*labels, ignore))
