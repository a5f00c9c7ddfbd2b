"""What a segmenter knows of the two images of a registration: masks of the brain, and whether structures meet."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from stepwarp import limits
from stepwarp.errors import InputError
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import sha256
from stepwarp.geometry import Affine, Image, LabelMap, Transform
from stepwarp.geometry.orientation import canonical
from stepwarp.options import RegisterOptions
from stepwarp.registrar.subject import ImagedSubject
from stepwarp.registrar.weights import SHIPPED_SEGMENTERS, weights_path
from stepwarp.segment import HeadSegmenter, Segmentation, load_segmenter, segment
from stepwarp.segment.segmenters import SHIPPED_SEGMENTER
from stepwarp.workflow.clock import Clock
from stepwarp.workflow.memory import Extent, PairMemory, Room
from stepwarp.workflow.subjects import PreparedImage

#: What two brains, or two whole heads, show differs by less in volume; what a brain and a whole head show, by more.
_MUCH_MORE = 1.5
#: Of what an image shows, the share around the brain that is between that of a stripped head and that of a whole one.
_AROUND = 0.35
#: What shows less is no head, or too little of one; and what shows more.
_LEAST_MM3, _MOST_MM3 = 0.3e6, 12e6
#: A deformation that lowers the overlap of structures by so much does harm. Of an average brain in two contrasts, where
#: every deformation is wrong, it takes .11 to .14; right ones of training pairs of different contrasts add .01 or more.
_TAKEN_APART = 0.05
#: A head that lies further from where its header says may be none to the segmenter, which was trained with turns of up
#: to 20 degrees about each axis.
_LYING_DEGREES = 15


def with_anatomy(
    fixed: PreparedImage, moving: PreparedImage, options: RegisterOptions, device: torch.device, clock: Clock
) -> tuple[PreparedImage, PreparedImage, list[str]]:
    """Both images with what is found in them and with masks of their brains, as far as that is asked for; with masks
    also where one shows a whole head and the other one a stripped one, unless that is not wanted: of such a pair no
    search finds the way. And what a verdict has to say of it.

    Raises InputError for an image that shows no head, where masks are asked for."""
    if options.strip or options.structures:
        with clock.stage("structures"):
            fixed, moving = (with_structures(each, device) for each in (fixed, moving))
            if options.strip:
                fixed, moving = (_stripped(each) for each in (fixed, moving))
        return fixed, moving, []
    if options.strip is None and _one_shows_more(fixed, moving):
        with clock.stage("structures"):
            seen = _looked_at(fixed, moving, device, options.max_memory)
            if all(_is_head(each) for each in seen) and _one_is_whole(*(_around_the_brain(each) for each in seen)):
                said = "one image shows a whole head and the other one a stripped one: they were compared where their "
                said += "brains are (--no-strip compares all that they show)"
                return _stripped(seen[0]), _stripped(seen[1]), [said]
    return fixed, moving, []


def with_doubted_anatomy(
    fixed: PreparedImage, moving: PreparedImage, way: Affine, device: torch.device, max_memory: int | None
) -> tuple[PreparedImage, PreparedImage]:
    """Both images with what is found in them, where one of them at least is a head: of a pair whose greys do not tell
    how far to go.

    way: the linear transform, fixed world -> moving world. What is no head as its header says it lies is looked at
    again as this lays it beside the other one."""
    seen = _looked_at(fixed, moving, device, max_memory)
    heads = [_is_head(each) for each in seen]
    if not any(heads):
        return fixed, moving
    rotation = Rotation.from_matrix(way.matrix[:-1, :-1])  # that nearest to it
    if all(heads) or np.degrees(rotation.magnitude()) <= _LYING_DEGREES:
        return seen
    turn = Affine(np.column_stack([rotation.as_matrix(), np.zeros(3)]))
    with suppress(InputError):  # nobody asked: what turned shows too much is left as it was seen
        if heads[0]:
            return seen[0], with_structures(moving, device, turn.inverse())
        return with_structures(fixed, device, turn), seen[1]
    return seen


def with_structures(image: PreparedImage, device: torch.device, upright: Affine | None = None) -> PreparedImage:
    """The image with what is found in it; upright: as `segment` takes it."""
    return replace(image, anatomy=segment(image.image, shipped_segmenter(device), upright))


def _stripped(image: PreparedImage) -> PreparedImage:
    """The image with the brain that was found for a mask; with that of its own mask which is brain, unless that leaves
    little else. InputError where it shows no head."""
    found = image.anatomy
    assert found is not None
    require_head(found)
    if image.mask is not None and _around_the_brain(image) < _AROUND:
        return image
    mask = canonical(Image(found.mask.data.float(), found.mask.grid, found.mask.name))
    if image.mask is not None:
        mask = Image(torch.minimum(mask.data, image.mask.data), mask.grid, mask.name)
    return replace(image.masked(mask), found_mask=found.mask)


def _one_shows_more(fixed: PreparedImage, moving: PreparedImage) -> bool:
    """Whether one of two images shows so much more than the other one, as far as their masks trust them, as a head is
    larger than its brain, and both what can be a head."""
    less, more = sorted(_shown(each) for each in (fixed, moving))
    return less > _LEAST_MM3 and _MUCH_MORE * less < more < _MOST_MM3


def _looked_at(
    fixed: PreparedImage, moving: PreparedImage, device: torch.device, max_memory: int | None
) -> tuple[PreparedImage, PreparedImage]:
    """Both with what is found in them; as they are where neither is as large as a head, or there is no room to look."""
    if not any(as_large_as_a_head(_shown(each)) for each in (fixed, moving)):
        return fixed, moving
    if not _is_room_to_look(fixed, moving, device, max_memory):
        return fixed, moving
    try:
        return with_structures(fixed, device), with_structures(moving, device)
    except InputError:  # nobody asked: what cannot be looked at is not looked at
        return fixed, moving


def _is_head(image: PreparedImage) -> bool:
    return image.anatomy is not None and image.anatomy.head.why_not is None


def _is_room_to_look(fixed: PreparedImage, moving: PreparedImage, device: torch.device, max_memory: int | None) -> bool:
    one, other = (Extent.of_image(each.scaled, each.mask, each.image.data.itemsize) for each in (fixed, moving))
    before = max(0, limits.held_memory() - one.held() - other.held())
    pair = PairMemory(one, other, gpu=device.type == "cuda", before=before, structures=True)
    return Room.now(max_memory, device).lacks(pair.looking()) is None


def as_large_as_a_head(mm3: float) -> bool:
    """Whether an image that shows so much can be that of a head, whole or stripped."""
    return _LEAST_MM3 < mm3 < _MOST_MM3


def _around_the_brain(image: PreparedImage) -> float:
    """Of what an image shows, the share that lies outside the brain that was found in it."""
    assert image.anatomy is not None
    return 1 - min(1.0, 1000 * image.anatomy.volumes["brain mask"] / _shown(image))


def _shown(image: PreparedImage) -> float:
    """Cubic mm."""
    return ImagedSubject(image.scaled, image.mask).volume


def _one_is_whole(*around: float) -> bool:
    return min(around) < _AROUND < max(around)


@cache
def shipped_segmenter(device: torch.device) -> HeadSegmenter:
    """Read once in a process, and kept."""
    return load_segmenter(device=device)


def structures_taken_apart(measures: dict[str, Any]) -> bool:
    """Whether, by what `structures_met` says, a deformation took apart structures that lay on each other."""
    met = measures.get("structures", {})
    return "final" in met and met["final"] < met["affine"] - _TAKEN_APART


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


def described_segmenter(
    segmenter: HeadSegmenter | None = None, source: str | Path = SHIPPED_SEGMENTER
) -> dict[str, Any]:
    """A segmenter, by default the shipped one, as a record holds it. source: its file or name."""
    card = (segmenter or shipped_segmenter(torch.device("cpu"))).header.card
    shipped = SHIPPED_SEGMENTERS.get(str(source))  # as which it was checked when it was loaded
    return {"name": card.name, "sha256": shipped or sha256(weights_path(source)), "licence": card.licence}
