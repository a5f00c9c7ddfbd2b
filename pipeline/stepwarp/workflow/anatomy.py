"""What a segmenter knows of the two images of a registration: masks of the brain, and whether structures meet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from stepwarp import files
from stepwarp.errors import InputError
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.geometry import Image, LabelMap, Transform
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.geometry.orientation import canonical
from stepwarp.registrar.weights import weights_path
from stepwarp.segment import HeadSegmenter, Segmentation, segment
from stepwarp.segment.segmenters import SHIPPED_SEGMENTER
from stepwarp.workflow.subjects import PreparedImage


def with_structures(image: PreparedImage, segmenter: HeadSegmenter, strip: bool) -> PreparedImage:
    """The image with what is found in it, and, to strip it, with its brain for a mask where it has none.

    Raises InputError, to strip it, where it shows no head."""
    found = segment(image.image, segmenter)
    image = replace(image, anatomy=found)
    if not strip:
        return image
    require_head(found)
    if image.mask is not None:
        return image
    mask = canonical(Image(found.mask.data.float(), found.mask.grid, found.mask.name))
    scaled = scale_intensities(canonical(image.image), mask)
    return replace(image, mask=mask, scaled=scaled, found_mask=found.mask)


def structures_met(fixed: PreparedImage, moving: PreparedImage, ways: dict[str, Transform]) -> dict[str, Any] | None:
    """How much both heads' structures overlap under each transform, fixed world -> moving world, by its name: the mean
    Dice of those of the brain, as far as both images show them; and how sure it is that both are heads. None where
    nobody asked; no overlap where one is no head."""
    if fixed.anatomy is None or moving.anatomy is None:
        return None
    seen = {"fixed": fixed.anatomy.head, "moving": moving.anatomy.head}
    result: dict[str, Any] = {role: head.as_dict() for role, head in seen.items()}
    if all(head.why_not is None for head in seen.values()):
        result |= {name: _overlap(fixed.anatomy, moving.anatomy, way) for name, way in ways.items()}
    return result


def _overlap(fixed: Segmentation, moving: Segmentation, way: Transform) -> float:
    moved = moving.coarse.warp(way, fixed.grid)
    image = moving.image
    shown = LabelMap(torch.ones(image.grid.shape, dtype=torch.uint8), image.grid).warp(way, fixed.grid)
    both = LabelMap(torch.where(shown.data > 0, fixed.coarse.data, 0), fixed.grid, fixed.coarse.name)
    scores = dice(both, moved, ignore=[each.id for each in fixed.known if not each.brain])
    return round(mean_dice(scores), 4) if scores else 0.0


def require_head(found: Segmentation) -> None:
    """InputError, with the reason, for an image that shows no head."""
    why = found.head.why_not
    if why is not None:
        raise InputError(
            f"{found.image.name}: does not look like a head, the way up and as large as its header says: {why}. Is it "
            "the right file, and its header right?"
        )


def described_segmenter(segmenter: HeadSegmenter) -> dict[str, Any]:
    """The shipped segmenter as a record holds it."""
    card = segmenter.header.card
    return {"name": card.name, "sha256": files.sha256(weights_path(SHIPPED_SEGMENTER)), "licence": card.licence}
