"""A registration made to fit into the memory there is: by a plan before it begins, and once more if that was wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stepwarp import limits
from stepwarp.config import Preset
from stepwarp.errors import MemoryShortageError, is_out_of_memory
from stepwarp.kernels import backend
from stepwarp.limits import in_words
from stepwarp.workflow.anatomy import as_large_as_a_head
from stepwarp.workflow.clock import Clock
from stepwarp.workflow.memory import STRUCTURES, Extent, PairMemory, Room, StageMemory
from stepwarp.workflow.network import bytes_for
from stepwarp.workflow.search import SearchRequest, SearchResult, search
from stepwarp.workflow.subjects import PreparedImage

_MIB = 2**20
_REMEDY = "Free some, give it more (--max-memory, the job's limit), or resample the images to coarser voxels."


@dataclass(frozen=True)
class MemoryPlan:
    """How a pair fits. stages: of what is to be run. room: what there was. left_out: for each thing that did not fit, a
    sentence. network: whether it may run."""

    stages: tuple[StageMemory, ...]
    room: Room
    left_out: tuple[str, ...] = ()
    network: bool = True

    @property
    def peak(self) -> int:
        """Bytes that the process holds at most."""
        return max(stage.bytes for stage in self.stages)

    def __str__(self) -> str:
        """In one line, for whoever waits."""
        on_gpu = "" if self.room.gpu is None else f" and {in_words(self.room.gpu)} of the GPU"
        stages = ", ".join(
            f"{stage.name} {in_words(stage.bytes)}{f' + {in_words(stage.gpu_bytes)}' if stage.gpu_bytes else ''}"
            for stage in self.stages
        )
        return f"memory planned, of {in_words(self.room.process)}{on_gpu}: {stages}"

    def record(self) -> dict[str, Any]:
        """For registration.json, in MiB."""
        planned = [
            {"stage": stage.name, "mib": stage.bytes // _MIB}
            | ({} if self.room.gpu is None else {"gpu_mib": stage.gpu_bytes // _MIB})
            for stage in self.stages
        ]
        there = {"limit_mib": self.room.process // _MIB}
        there |= {} if self.room.gpu is None else {"gpu_limit_mib": self.room.gpu // _MIB}
        return {**there, "planned_mib": self.peak // _MIB, "stages": planned, "left_out": list(self.left_out)}


def fitted(pair: PairMemory, recipe: Preset, room: Room) -> tuple[Preset, MemoryPlan]:
    """The recipe with as many of its levels as there is room for, and the plan of it.

    Raises MemoryShortageError, with the numbers, where not even the coarsest fits."""
    left_out: list[str] = []
    while True:
        stages = pair.stages(recipe)
        lacking = [(stage, lack) for stage in stages if (lack := room.lacks(stage)) is not None]
        if not lacking:
            return recipe, MemoryPlan(stages, room, tuple(left_out), network=bool(pair.network))
        worst, lack = max(lacking, key=lambda each: max(each[0].bytes, each[0].gpu_bytes))
        if any(stage.name == STRUCTURES for stage, _ in lacking):  # where there is no room, nobody looks
            pair = replace(pair, structures=False)
        elif worst.name == "network":
            left_out.append(f"the network was left out: it {lack}")
            pair = replace(pair, network=0)
        elif (coarser := pair.without_finest(recipe)) is not None:
            left_out.append(f"the level of {min(pair.edges(recipe)):g} mm was left out: '{worst.name}' {lack}")
            recipe = coarser
        else:
            raise MemoryShortageError(f"too little memory for this pair: the stage '{worst.name}' {lack}. {_REMEDY}")


def check_reading(pairs: Sequence[tuple[Any, Any]], room: Room) -> None:
    """MemoryShortageError if there is no room for reading pairs of files, by their headers. Others are in memory
    already."""
    known = []
    for pair in pairs:
        one, other = (Extent.of_file(Path(each)) if isinstance(each, str | Path) else None for each in pair)
        if one is not None and other is not None:
            known.append((one, other))
    if not known:
        return
    first, *further = known
    lack = room.lacks(PairMemory(*first, before=limits.held_memory(), further=tuple(further)).reading())
    if lack is not None:
        raise MemoryShortageError(f"too little memory for this pair: reading it {lack}. {_REMEDY}")


def search_in_room(
    request: SearchRequest,
    fixed: PreparedImage,
    moving: PreparedImage,
    clock: Clock,
    planned: Callable[[MemoryPlan], None],
) -> tuple[SearchResult, MemoryPlan]:
    """`search`, for which as much is left out as does not fit; once more without its finest level where memory runs out
    all the same. planned: is told the plan, and the other one.

    Raises MemoryShortageError where nothing is left to leave out."""
    pair = _memory_of(request, fixed, moving)
    recipe, plan = fitted(pair, request.recipe, Room.now(request.options.max_memory, request.device))
    planned(plan)
    try:
        return search(_leaving_out(request, recipe, plan), fixed, moving, clock), plan
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        recipe, plan = stepped_down(pair, recipe, plan, error)
    # Only now, because the error holds on to what was in memory.
    if request.device.type == "cuda":
        torch.cuda.empty_cache()
    planned(plan)
    return search(_leaving_out(request, recipe, plan), fixed, moving, clock), plan


def _memory_of(request: SearchRequest, fixed: PreparedImage, moving: PreparedImage) -> PairMemory:
    pairs = [(fixed, moving), *((each.fixed, each.moving) for each in request.further)]
    first, *further = ((_extent(one), _extent(other)) for one, other in pairs)
    return PairMemory(
        *first,
        affine_only=request.options.affine_only,
        cubic=request.options.interpolation == "cubic",
        kernels=backend.name_for(request.device) != "reference",
        gpu=request.device.type == "cuda",
        structures=fixed.anatomy is None and _may_be_looked_at(request, *first),
        auto=any(request.options.similarity_of(n) == "auto" for n in range(len(pairs))),
        before=max(0, limits.held_memory() - sum(each.held() for pair in (first, *further) for each in pair)),
        network=0 if request.network is None else bytes_for(request.network, fixed.scaled),
        further=tuple(further),
        compared_by=tuple(each.similarity for each in request.further),
    )


def _may_be_looked_at(request: SearchRequest, fixed: Extent, moving: Extent) -> bool:
    """Whether a segmenter would look at the images, should contrasts or what they share be in doubt."""
    return not request.options.affine_only and any(as_large_as_a_head(each.shown_mm3) for each in (fixed, moving))


def _extent(image: PreparedImage) -> Extent:
    return Extent.of_image(image.scaled, image.mask, image.image.data.itemsize)


def _leaving_out(request: SearchRequest, recipe: Preset, plan: MemoryPlan) -> SearchRequest:
    network = request.network if plan.network else None
    return replace(request, recipe=recipe, network=network, notes=(*request.notes, *plan.left_out))


def stepped_down(pair: PairMemory, recipe: Preset, plan: MemoryPlan, error: Exception) -> tuple[Preset, MemoryPlan]:
    """The recipe without its finest level, after memory ran out although `plan` fitted, and the plan of it.

    Raises MemoryShortageError where there is no coarser one."""
    ran_out = f"memory ran out, of which {in_words(plan.peak)} were planned to be enough"
    coarser = pair.without_finest(recipe)
    if coarser is None:
        raise MemoryShortageError(f"{ran_out}. {_REMEDY}") from error
    note = f"the level of {min(pair.edges(recipe)):g} mm was left out: {ran_out}"
    return coarser, replace(plan, stages=pair.stages(coarser), left_out=(*plan.left_out, note))
