"""Registering one pair: what `stepwarp.register` and the command of that name do between reading and writing."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import nibabel
import numpy as np
import torch

import stepwarp
from stepwarp import files
from stepwarp.config import LinearKind, Preset, SimilarityName
from stepwarp.config import preset as load_preset
from stepwarp.errors import InputError
from stepwarp.geometry import Affine, Composition, DisplacementField, Image, Transform
from stepwarp.registrar.progress import Progress, silent
from stepwarp.registrar.weights import Registrar
from stepwarp.workflow.clock import Clock
from stepwarp.workflow.device import chosen_device, device_name, use_threads
from stepwarp.workflow.escalation import escalated, second_try, thorough
from stepwarp.workflow.network import read_network
from stepwarp.workflow.search import Found, Plan, search
from stepwarp.workflow.subjects import (
    MaskSource,
    Source,
    Subject,
    check_outside,
    described_inputs,
    prepare,
    recorded_outside,
)
from stepwarp.workflow.trace import TraceStep, save_trace


@dataclass(frozen=True, eq=False)
class Registration:
    """A registered pair.

    fixed, moving: the images as read. affine: fixed world -> moving world. warp: fixed world -> fixed world on the
    fixed grid, before the affine; inverse_warp undoes it; both None for a linear registration. record: what
    registration.json holds. trace: the steps of the way there, the affine first, if they were asked for."""

    fixed: Image
    moving: Image
    affine: Affine
    warp: DisplacementField | None
    inverse_warp: DisplacementField | None
    record: dict[str, Any]
    trace: tuple[TraceStep, ...] = ()

    @property
    def transform(self) -> Transform:
        """Points of the fixed world (RAS+ mm) -> points of the moving world."""
        return self.affine if self.warp is None else Composition.of(self.affine, self.warp)

    @property
    def inverse(self) -> Transform:
        """Points of the moving world (RAS+ mm) -> points of the fixed world."""
        back = self.affine.inverse()
        return back if self.inverse_warp is None else Composition.of(self.inverse_warp, back)

    @cached_property
    def moved(self) -> Image:
        """The moving image on the fixed grid, its intensities as read, interpolated once."""
        return self.moving.warp(self.transform, self.fixed.grid)

    def save(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        progress: Progress = silent,
        truth: dict[str, tuple[Any, Any]] | None = None,
    ) -> Path:
        """Write everything into the folder `out`, read it back with SimpleITK, and compare: see `workflow.outputs`."""
        from stepwarp.workflow.outputs import save

        return save(self, Path(out), overwrite=overwrite, progress=progress, truth=truth)

    def save_trace(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the field after each step and trace.json into `folder`: see `workflow.trace`.

        Raises InputError for a registration that was made without a trace."""
        if not self.trace:
            raise InputError(f"{folder}: there is no trace to write; register with trace=True")
        save_trace(list(self.trace), Path(folder), overwrite)


def register(
    fixed: Source,
    moving: Source,
    *,
    preset: str | Preset = "default",
    affine_only: bool = False,
    transform: LinearKind = "affine",
    similarity: SimilarityName | None = None,
    fixed_mask: MaskSource | None = None,
    moving_mask: MaskSource | None = None,
    device: str = "auto",
    threads: int | None = None,
    time_budget: float | None = None,
    network: str | Path | Registrar | None = None,
    network_steps: int | None = None,
    refine: bool = True,
    escalate: bool = True,
    trace: bool = False,
    trust: str | Sequence[str] | None = None,
    outside: float | None = None,
    progress: Progress = silent,
) -> Registration:
    """Find the transform that maps points of the fixed image to their matches in the moving image.

    fixed, moving: paths, nibabel images or `Image`s; 3D, any spacing and orientation; their headers need not overlap.
    preset: fast, default or best, or settings of one's own. affine_only: stop after the linear stage. transform: what
    the linear stage may do: rigid, similarity or affine. similarity: instead of the preset's: lncc, ncc, ssd, or for
    different contrasts mi or mind. Masks: non-zero where an image may be trusted; the rest has no influence.
    device: auto, cpu or cuda. threads: all cores by default. time_budget: seconds after which no further iteration
    starts. trust: which statement of a header to believe that makes none, or two that contradict
    each other; one word for all files or FILE=statement for each. outside: what the moved image becomes
    where the moving one ends (NaN for nothing); by default the moving image's own background, the most frequent value
    on its faces if it covers half of them, else 0. It has no influence on the search.

    network: weights to go on with from the affine: a file, the name of shipped ones, or a `Registrar`; the preset's
    levels that are coarser than its finest grid are then left out. What it finds is dropped, and the verdict says so,
    where it does not help. network_steps: how often it runs each step that it repeats. refine: whether the preset
    follows. trace: keep what every step found, for `save_trace` and the report.

    escalate: where the verdict is fail, try once more and more thoroughly, if there is time for it, and keep the better
    of the two; `escalation` in the record says which.

    Raises InputError for inputs that cannot be used, RegistrationError where the optimisation breaks down."""
    started = time.monotonic()
    deadline = None if time_budget is None else started + time_budget
    recipe = _recipe(preset, similarity, transform, time_budget)
    check_network(network, network_steps, refine, affine_only)
    check_outside(outside)
    place = chosen_device(device)
    used_threads = use_threads(threads)
    clock, rules = Clock(progress), files.TrustRules.of(trust)
    with clock.stage("read"):
        net = None if network is None else read_network(network, network_steps, place)
        a = prepare(fixed, fixed_mask, rules)
        b = prepare(moving, moving_mask, rules, outside)
    about = {
        "version": stepwarp.__version__,
        "inputs": described_inputs(a, b),
        "trusted": rules.record(),
        "settings": {
            "preset": preset if isinstance(preset, str) else "custom",
            "transform": transform,
            "affine_only": affine_only,
            "time_budget": time_budget,
            "network": None if net is None else net.card.name,
            "network_steps": network_steps,
            "refine": refine,
            "escalate": escalate,
            "trust": list(rules.words),
            "outside": recorded_outside(outside),
            **recipe.model_dump(),
        },
        "deterministic": place.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
        "device": device_name(place),
        "threads": used_threads,
        "versions": _versions(),
    }

    def registered(plan: Plan, clock: Clock) -> Registration:
        return _registration(a, b, search(plan, a, b, clock), clock, about)

    plan = Plan(recipe, transform, affine_only, net, refine, trace, place, deadline, rules.notes())
    first = registered(plan, clock)
    if not escalate or first.record["verdict"]["status"] != "fail":
        return first
    again = replace(plan, recipe=thorough(recipe))
    return escalated(first, lambda: registered(again, Clock(second_try(progress))), started, deadline)


def _registration(a: Subject, b: Subject, found: Found, clock: Clock, about: dict[str, Any]) -> Registration:
    """What was found, on the grids of the images as read, with its record. about: what the record begins with."""
    fit, deformation = found.fit, found.deformation
    record = {
        **about,
        "stages": clock.stages,
        "affine": {"matrix": fit.transform.matrix.tolist(), "loss": fit.loss, "starts": [vars(s) for s in fit.starts]},
        "loss": [] if deformation is None else [{"stage": "deformable", **row} for row in deformation.trace],
        "stopped": None if deformation is None else deformation.stopped,
        "network": None if found.tried is None else found.tried.record,
        "measures": found.measures,
        "verdict": found.verdict,
        "escalation": None,
    }
    warp, inverse_warp = None, None
    if deformation is not None:
        fields = (field.on(a.image.grid) for field in (deformation.warp, deformation.inverse_warp))
        # Beyond the grid, what every reader makes of the files.
        warp, inverse_warp = (DisplacementField(f.displacement, f.grid, outside="zero") for f in fields)
    return Registration(a.image, b.image, fit.transform, warp, inverse_warp, record, found.steps)


def _recipe(name: str | Preset, similarity: str | None, transform: str, time_budget: float | None) -> Preset:
    """The preset with the caller's similarity; every choice checked before any work."""
    recipe = load_preset(name) if isinstance(name, str) else name
    for value, known, what in ((similarity, SimilarityName, "similarity"), (transform, LinearKind, "transform")):
        if value is not None and value not in get_args(known):
            raise InputError(f"{what} '{value}' does not exist; there are {', '.join(get_args(known))}")
    if time_budget is not None and not time_budget > 0:
        raise InputError(f"a time budget of {time_budget} s is no time at all; give the seconds there are")
    if similarity is None:
        return recipe
    return recipe.model_copy(update={"deformable": recipe.deformable.model_copy(update={"similarity": similarity})})


def check_network(network: object, steps: int | None, refine: bool, affine_only: bool) -> None:
    """InputError for choices that contradict each other."""
    if network is None and steps is not None:
        raise InputError("a number of steps was given, and no network to run them")
    if network is None and not refine:
        raise InputError("without a network and without refinement nothing is left; that is affine_only")
    if network is not None and affine_only:
        raise InputError("affine_only ends before the network; leave out one of them")


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
