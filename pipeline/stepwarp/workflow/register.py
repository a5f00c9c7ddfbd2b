"""Registering one pair: what `stepwarp.register` and the command of that name do between reading and writing."""

from __future__ import annotations

import math
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import torch

from stepwarp import files
from stepwarp.config import LinearKind, Preset, SimilarityChoice
from stepwarp.errors import InputError
from stepwarp.geometry import DisplacementField, Transform
from stepwarp.kernels import backend
from stepwarp.kernels.precision import without_tf32
from stepwarp.layout import MASKS
from stepwarp.machine import device_name
from stepwarp.options import RegisterOptions
from stepwarp.progress import Progress, silent
from stepwarp.registrar.weights import Registrar
from stepwarp.version import __version__
from stepwarp.workflow.anatomy import described_segmenter, with_anatomy
from stepwarp.workflow.clock import Clock
from stepwarp.workflow.compared import ComparedPair
from stepwarp.workflow.device import chosen_device, determinism, use_threads
from stepwarp.workflow.escalation import escalated, second_try, thorough
from stepwarp.workflow.fallback import with_the_processor_left
from stepwarp.workflow.fitting import MemoryPlan, Room, check_reading, search_in_room
from stepwarp.workflow.initial import begin, read_start
from stepwarp.workflow.network import Network, read_network
from stepwarp.workflow.reading import read_by
from stepwarp.workflow.registration import Registration
from stepwarp.workflow.search import SearchRequest, SearchResult
from stepwarp.workflow.several import compared_as_asked, paired, read_further
from stepwarp.workflow.subjects import (
    MaskSource,
    PreparedImage,
    Source,
    check_outside,
    described_inputs,
    prepare,
    recorded_outside,
)


def register(
    fixed: Source | Sequence[Source],
    moving: Source | Sequence[Source],
    *,
    preset: str | Path | Preset = "default",
    set: str | Sequence[str] = (),
    affine_only: bool = False,
    transform: Literal[LinearKind, "none"] = "affine",
    initial: str | Path | Transform | Sequence[str | Path | Transform] = (),
    similarity: SimilarityChoice | Sequence[SimilarityChoice] = "auto",
    pair_weight: float | Sequence[float] = (),
    fixed_mask: MaskSource | None = None,
    moving_mask: MaskSource | None = None,
    device: str = "auto",
    threads: int | None = None,
    max_memory: int | str | None = None,
    time_budget: float | None = None,
    weights: str | Path | Registrar | None = None,
    steps: int | None = None,
    refine: bool = True,
    escalate: bool = True,
    strip: bool | None = None,
    structures: bool = False,
    trace: bool = False,
    trust: str | Sequence[str] | None = None,
    outside: float | None = None,
    interpolation: Literal["linear", "cubic"] = "linear",
    progress: Progress = silent,
    network: str | Path | Registrar | None = None,
    network_steps: int | None = None,
) -> Registration:
    """Find the transform that maps points of the fixed image to their matches in the moving image.

    Parameters
    ----------
    fixed, moving : path or image, or a list of these
        Paths, images of nibabel, SimpleITK or TorchIO, MetaTensors, pairs (array, affine) of numpy or torch with a
        4 x 4 affine to RAS+ mm, or `Image`s; 3D, any spacing and orientation; their headers need not overlap.
        Several of each, as many moving as fixed ones, are pairs of images of the same two subjects, such as [T1, T2]:
        the first two are those that the result is about, whose grids and names it has; in the others each image lies on
        the first one of its subject by its header, on a grid of its own. All pairs drive the linear and the deformable
        stage; weights of networks see the first.
    preset : str, Path or Preset
        fast, default, best or ct, a YAML file of one's own, or a `Preset`.
    set : str or sequence of str
        Changes to it, each as "deformable.levels.0.iterations=50".
    affine_only : bool
        Stop after the linear stage.
    transform : {"affine", "rigid", "similarity", "none"}
        What the linear stage may do; none leaves it out.
    initial : str, Path, Transform or sequence of these
        Where to begin in place of the search among rotations: a transform file or a result's folder, fixed world ->
        moving world, a `Transform`, or several in the order in which a point meets them, as `apply` takes them
        ("[PATH,1]" is an inverse); or "header" (or "identity", the same), as the headers lie, which transform="none"
        means by itself; or "centres", the centres of mass on each other. A linear start is refined as far as
        `transform` lets it. Of one with a field the linear part is kept, and the deformable stage goes on from the
        rest, with those levels that are as fine as the field's grid, the finest one at least.
    similarity : str or sequence of str
        The name of a file of `losses.similarities`, or "auto": the preset's, or, where the two images turn out to be of
        different contrasts, mutual information and then local correlation of greys mapped onto one contrast. Of several
        pairs of images, one for all or one for each.
    pair_weight : float or sequence of float
        What each of several pairs of images counts, in their order, by default all the same: with 2 as if it were given
        twice.
    fixed_mask, moving_mask : path or image, optional
        As the images, non-zero where an image may be trusted; the rest has no influence. On the grids of the first two
        images, for all images of their subjects.
    device : {"auto", "cpu", "cuda"}
        Where to compute.
    threads : int, optional
        All cores by default.
    max_memory : int or str, optional
        The most bytes that this process may hold at a time, "6G" as well; of a GPU where that computes; by default
        what is free. Where a pair needs more, the finest levels are left out; `memory` in the record says what was
        planned, and the verdict what was left out.
    time_budget : float, optional
        Seconds after which no further iteration starts.
    weights : str, Path or Registrar, optional
        A network to go on with from the affine: a file, the name of shipped ones, or a `Registrar`; the preset's levels
        that are coarser than its finest grid are then left out. What it finds is dropped, and the verdict says so,
        where it does not help.
    steps : int, optional
        How often the network runs each step that it repeats.
    refine : bool
        Whether the preset follows the network.
    escalate : bool
        Where the verdict is fail, try once more and more thoroughly, if there is time for it, and keep the better of
        the two; `escalation` in the record says which.
    strip : bool, optional
        Find the brain in both images, and take it for the mask of an image without one; what was found is saved with
        the result. Both have to be heads, of any contrast, whole or stripped. Includes structures. By default where
        there are no masks, and the one image shows a whole head and the other one a stripped one.
    structures : bool
        Name the structures of both heads, measure how much they overlap after the linear stage and in the end, and
        let the verdict say so. Changes nothing else.
    trace : bool
        Keep what every step found, for `save_trace` and the report.
    trust : str or sequence of str, optional
        Which statement of a header to believe that makes none, or two that contradict each other; one word for all
        files or FILE=statement for each.
    outside : float, optional
        What the moved image becomes where the moving one ends (NaN for nothing); by default the moving image's own
        background, the most frequent value on its faces if it covers half of them, else 0. It has no influence on the
        search.
    interpolation : {"linear", "cubic"}
        How the moving image is read for the moved one, where cubic is the cubic B-spline that passes through its
        voxels, for images without NaN. It has no influence on the search.
    progress : callable
        Is told the stages and their iterations, as `ProgressReport`.
    network, network_steps : optional
        The former names of weights and steps.

    Returns
    -------
    Registration
        Both images, and the transform with its parts: points of the fixed world -> of the moving world, RAS+ mm.

    Raises
    ------
    InputError
        For inputs that cannot be used, and with strip for an image that shows no head.
    RegistrationError
        Where the optimisation breaks down.
    MemoryShortageError
        Where there is too little memory for the pair, whatever is left out.
    """
    weights = _renamed("network", network, "weights", weights)
    steps = _renamed("network_steps", network_steps, "steps", steps)
    options = RegisterOptions.of(
        preset=preset,
        set=set,
        affine_only=affine_only,
        transform=transform,
        initial=initial,
        similarity=similarity,
        pair_weight=pair_weight,
        device=device,
        threads=threads,
        max_memory=max_memory,
        time_budget=time_budget,
        weights=weights,
        steps=steps,
        refine=refine,
        escalate=escalate,
        strip=strip,
        structures=structures,
        trace=trace,
        trust=trust,
        outside=outside,
        interpolation=interpolation,
    )
    return register_pair(fixed, moving, options, fixed_mask=fixed_mask, moving_mask=moving_mask, progress=progress)


def register_pair(
    fixed: Source | Sequence[Source],
    moving: Source | Sequence[Source],
    options: RegisterOptions,
    *,
    fixed_mask: MaskSource | None = None,
    moving_mask: MaskSource | None = None,
    progress: Progress = silent,
    planned: Callable[[MemoryPlan], None] = lambda plan: None,
) -> Registration:
    """`register`, told how as one value. planned: is told how much memory the search will take, before it begins, and
    what was left out for want of it."""
    return with_the_processor_left(
        lambda chosen: _register(fixed, moving, chosen, fixed_mask, moving_mask, progress, planned), options
    )


@without_tf32()
def _register(
    fixed: Source | Sequence[Source],
    moving: Source | Sequence[Source],
    options: RegisterOptions,
    fixed_mask: MaskSource | None,
    moving_mask: MaskSource | None,
    progress: Progress,
    planned: Callable[[MemoryPlan], None],
) -> Registration:
    started = time.monotonic()
    deadline = None if options.time_budget is None else started + options.time_budget
    check_outside(options.outside)
    place = chosen_device(options.device)
    threads = use_threads(options.threads)
    clock, rules = Clock(progress, device=place), files.TrustRules.of(options.trust)
    pairs = paired(fixed, moving, options)
    check_reading(pairs, Room.now(options.max_memory, place))
    with clock.stage("read"):
        net = None if options.weights is None else read_network(options.weights, options.steps, place)
        a = prepare(pairs[0][0], fixed_mask, rules, role="fixed")
        b = prepare(pairs[0][1], moving_mask, rules, options.outside, role="moving")
        others = read_further(pairs[1:], (a, b), rules)
        for image in (b.image, *(each[1].image for each in others)):
            read_by(image, options.interpolation)  # refuses now what it cannot read in the end
        stated = read_start(options, rules)
    a, b, stripped = with_anatomy(a, b, options, place, clock)
    further = compared_as_asked(others, (a, b), options)
    initial = None
    if stated is not None:
        with clock.stage("initial"):
            initial = begin(stated, a, b, options)
    about = {
        "version": __version__,
        "inputs": described_inputs(a, b, [(each.fixed, each.moving) for each in further]),
        "trusted": rules.record(),
        "settings": _settings(options, net),
        "device": device_name(place),
        "threads": threads,
        "versions": _versions(),
    }

    def registered(request: SearchRequest, clock: Clock) -> Registration:
        nonlocal a, b
        found, plan = search_in_room(request, a, b, clock, planned)
        seen = found.pairs[0].fixed, found.pairs[0].moving
        a, b = (replace(each, anatomy=known.anatomy) for each, known in zip((a, b), seen, strict=True))
        # Only now: a back end that cannot compute here is given up on the way, and what adds up in any order is met.
        known = {"memory": plan.record(), "kernels": backend.name_for(place), **determinism(place)}
        return _registration(a, b, found, clock, about | known)

    notes = (*rules.notes(), *stripped, *_of_the_first_alone(net, further))
    request = SearchRequest(options, options.recipe, net, place, deadline, notes, initial, further)
    first = registered(request, clock)
    if not options.escalate or first.record["verdict"]["status"] != "fail":
        return first
    again = replace(request, recipe=thorough(request.recipe))
    return escalated(first, lambda: registered(again, Clock(second_try(progress), device=place)), started, deadline)


def _of_the_first_alone(net: Network | None, further: Sequence[ComparedPair]) -> list[str]:
    return ["the network saw the first pair of images alone"] if net is not None and further else []


def _settings(options: RegisterOptions, net: Network | None) -> dict[str, Any]:
    """What was asked for, as a record holds it, with the whole recipe. Where it was computed stands beside it."""
    name = None if net is None else net.card.name
    return {
        **options.model_dump(exclude={"preset", "device", "threads", "max_memory", "weights", "initial"}),
        "preset": "custom" if isinstance(options.preset, Preset) else str(options.preset),
        "set": list(options.set),
        "initial": [str(each) for each in options.initial],
        "trust": list(options.trust),
        "outside": recorded_outside(options.outside),
        "weights": name,
        # By their former names too, for whoever reads them.
        "network": name,
        "network_steps": options.steps,
        **options.recipe.model_dump(),
    }


def _registration(
    a: PreparedImage, b: PreparedImage, found: SearchResult, clock: Clock, about: dict[str, Any]
) -> Registration:
    """What was found, on the grids of the images as read, with its record. about: what the record begins with."""
    fit, deformation, (first, *further) = found.fit, found.deformation, found.pairs
    record = {
        **about,
        "stages": clock.stages,
        "initial": None if found.initial is None else found.initial.record,
        "affine": {
            "matrix": fit.transform.matrix.tolist(),
            "loss": None if math.isnan(fit.loss) else fit.loss,
            "starts": [vars(s) for s in fit.starts],
            "stopped": fit.stopped,
        },
        "loss": [] if deformation is None else [{"stage": "deformable", **row} for row in deformation.trace],
        "stopped": None if deformation is None else deformation.stopped,
        "contrast": None if first.seen is None else first.seen.as_dict(),
        "further": {each.name: each.as_dict() for each in further},
        "segmenter": described_segmenter() if "structures" in found.measures else None,
        "network": None if found.tried is None else found.tried.record,
        "measures": found.measures,
        "verdict": found.verdict,
        "escalation": None,
        "gpu_failure": None,
    }
    warp, inverse_warp = None, None
    if deformation is not None:
        # Beyond the grid, what every reader makes of the files.
        warp, inverse_warp = (
            DisplacementField(field.on(a.image.grid).displacement.cpu(), a.image.grid, outside="zero")
            for field in (deformation.warp, deformation.inverse_warp)
        )
    masks = {name: mask for name, mask in zip(MASKS, (a.found_mask, b.found_mask), strict=True) if mask is not None}
    also = tuple(each.moving.image for each in further)
    return Registration(a.image, b.image, fit.transform, warp, inverse_warp, record, found.steps, masks, also)


def _renamed(former: str, old: Any, name: str, new: Any) -> Any:
    """The argument under its name or its former one, which is still understood."""
    if old is None:
        return new
    if new is not None:
        raise InputError(f"{former} is the former name of {name}; give one of them")
    warnings.warn(f"{former} is now called {name}", DeprecationWarning, stacklevel=3)
    return old


def _versions() -> dict[str, str]:
    import numba
    import SimpleITK

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "nibabel": nibabel.__version__,
        "SimpleITK": SimpleITK.Version.VersionString(),
        "numpy": np.__version__,
    }
