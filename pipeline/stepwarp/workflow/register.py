"""Registering one pair: what `stepwarp.register` and the command of that name do between reading and writing."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import nibabel
import numpy as np
import torch

import stepwarp
from stepwarp import files
from stepwarp.config import DeformableSettings, LinearKind, Preset, SimilarityName
from stepwarp.config import preset as load_preset
from stepwarp.errors import InputError
from stepwarp.geometry import Affine, Composition, DisplacementField, Image, Transform
from stepwarp.losses.similarity import NCC, MutualInformation, Similarity
from stepwarp.registrar.affine import register_linear
from stepwarp.registrar.deformable import Deformation, as_deformation, make_similarity, optimise
from stepwarp.registrar.progress import Progress, Step, silent
from stepwarp.registrar.weights import Registrar
from stepwarp.workflow.clock import Clock
from stepwarp.workflow.device import chosen_device, device_name, use_threads
from stepwarp.workflow.escalation import escalated, second_try, thorough
from stepwarp.workflow.network import Attempt, attempt, read_network
from stepwarp.workflow.subjects import MaskSource, Source, Subject, described_inputs, mask_remarks, prepare
from stepwarp.workflow.trace import Kind, Recorder, TraceStep, measured, save_trace
from stepwarp.workflow.verdict import MULTIMODAL, foreground, judge, lowered, measure

#: A level is as fine as the network's grid up to this factor: spacings are rounded.
_AS_FINE = 1.01


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
    seed: int = 0,
    time_budget: float | None = None,
    network: str | Path | Registrar | None = None,
    network_steps: int | None = None,
    refine: bool = True,
    escalate: bool = True,
    trace: bool = False,
    trust: files.Trust | None = None,
    progress: Progress = silent,
) -> Registration:
    """Find the transform that maps points of the fixed image to their matches in the moving image.

    fixed, moving: paths, nibabel images or `Image`s; 3D, any spacing and orientation; their headers need not overlap.
    preset: fast, default or best, or settings of one's own. affine_only: stop after the linear stage. transform: what
    the linear stage may do: rigid, similarity or affine. similarity: instead of the preset's: lncc, ncc, ssd, or for
    different contrasts mi or mind. Masks: non-zero where an image may be trusted; the rest has no influence.
    device: auto, cpu or cuda. threads: all cores by default. time_budget: seconds after which no further iteration
    starts. trust: which statement of a self-contradicting header to believe.

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
    place = chosen_device(device)
    used_threads = use_threads(threads)
    torch.manual_seed(seed)
    clock = Clock(progress)
    recorder = Recorder() if trace else None

    with clock.stage("read"):
        net = None if network is None else read_network(network, network_steps, place)
        a = prepare(fixed, fixed_mask, trust)
        b = prepare(moving, moving_mask, trust)
    with clock.stage("affine", reports_itself=True):
        fit = register_linear(
            a.scaled,
            b.scaled,
            transform,
            *_linear_similarities(recipe),
            recipe.affine,
            fixed_mask=a.mask,
            moving_mask=b.mask,
            device=place,
            progress=progress,
        )
    if recorder is not None:
        recorder.add("affine", None, clock.stages[-1]["seconds"])
    tried = None
    if net is not None:
        with clock.stage("network"):
            tried = attempt(
                net,
                a.image,
                b.image,
                fit.transform,
                recipe.deformable.similarity,
                fixed_mask=a.mask,
                moving_mask=b.mask,
                recorder=recorder,
            )

    def deform(start: Attempt | None) -> tuple[Deformation | None, dict[str, Any]]:
        """From the network's result or from nothing, with the measures."""
        deformation = None
        if not affine_only:
            with clock.stage("deformable", reports_itself=True):
                deformation = _deformation(
                    a, b, fit.transform, recipe.deformable, start, refine, place, deadline, progress, recorder
                )
        with clock.stage("measure"):
            return deformation, measure(a.scaled, b.scaled, fit.transform, deformation, a.mask, b.mask)

    deformation, measures = deform(tried)
    if tried is not None and tried.warp is not None and lowered(measures, recipe.deformable.similarity):
        tried = tried.dropped("what came of it was less alike than after the affine")
        _drop(recorder, "deformable")
        deformation, measures = deform(tried)
    if deformation is not None and lowered(measures, recipe.deformable.similarity):
        _drop(recorder, "deformable")
        still = DisplacementField.identity(a.scaled.grid)
        deformation = Deformation(still, still, deformation.trace, "it lowered the similarity and was dropped")
        measures = measure(a.scaled, b.scaled, fit.transform, deformation, a.mask, b.mask)
    if tried is not None and tried.warp is None:
        _drop(recorder, "network")
    steps: list[TraceStep] = []
    if recorder is not None:
        with clock.stage("trace"):
            inside = foreground(a.scaled, a.mask)
            steps = measured(recorder.steps, fit.transform, a.scaled, b.scaled, inside)

    notes, checks = mask_remarks(a, b)
    if tried is not None:
        notes, checks = [*notes, *tried.notes], [*checks, *tried.checks]
    verdict = judge(measures, notes, checks, multimodal=recipe.deformable.similarity in MULTIMODAL)
    record = {
        "version": stepwarp.__version__,
        "inputs": described_inputs(a, b),
        "settings": {
            "preset": preset if isinstance(preset, str) else "custom",
            "transform": transform,
            "affine_only": affine_only,
            "time_budget": time_budget,
            "network": None if net is None else net.card.name,
            "network_steps": network_steps,
            "refine": refine,
            "escalate": escalate,
            "trust": trust,
            **recipe.model_dump(),
        },
        "seed": seed,
        "deterministic": place.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
        "device": device_name(place),
        "threads": used_threads,
        "versions": _versions(),
        "stages": clock.stages,
        "affine": {"matrix": fit.transform.matrix.tolist(), "loss": fit.loss, "starts": [vars(s) for s in fit.starts]},
        "loss": [] if deformation is None else [{"stage": "deformable", **row} for row in deformation.trace],
        "stopped": None if deformation is None else deformation.stopped,
        "network": None if tried is None else tried.record,
        "measures": measures,
        "verdict": verdict,
        "escalation": None,
    }
    warp, inverse_warp = None, None
    if deformation is not None:
        warp, inverse_warp = (field.on(a.image.grid) for field in (deformation.warp, deformation.inverse_warp))
    found = Registration(a.image, b.image, fit.transform, warp, inverse_warp, record, tuple(steps))
    if not escalate or verdict["status"] != "fail":
        return found

    def again(seconds: float | None) -> Registration:
        return register(
            a.image,
            b.image,
            preset=thorough(recipe),
            affine_only=affine_only,
            transform=transform,
            fixed_mask=fixed_mask,
            moving_mask=moving_mask,
            device=device,
            threads=threads,
            seed=seed,
            time_budget=seconds,
            network=network,
            network_steps=network_steps,
            refine=refine,
            escalate=False,
            trace=trace,
            trust=trust,
            progress=second_try(progress),
        )

    return escalated(found, again, started, deadline)


def _deformation(
    a: Subject,
    b: Subject,
    affine: Affine,
    settings: DeformableSettings,
    start: Attempt | None,
    refine: bool,
    device: torch.device,
    deadline: float | None,
    progress: Progress,
    recorder: Recorder | None,
) -> Deformation:
    """The deformable part on the scaled images: what the network found, refined if it is to be."""
    warp = None if start is None else start.warp
    if start is not None and warp is not None:
        finer = tuple(level for level in settings.levels if level.mm <= start.finest_mm * _AS_FINE)
        if not (refine and finer):
            reason = "no level of the preset is as fine as the network's grid" if refine else "nothing was refined"
            progress(Step("deformable", 0, 1))
            found = as_deformation(warp, a.scaled.grid, settings, reason)
            progress(Step("deformable", 1, 1))
            return found
        settings = settings.model_copy(update={"levels": finer})
    if recorder is not None:
        recorder.begin()
    return optimise(
        a.scaled,
        b.scaled,
        affine,
        settings,
        fixed_mask=a.mask,
        moving_mask=b.mask,
        device=device,
        start=warp,
        deadline=deadline,
        progress=progress,
        watch=None if recorder is None else lambda _, field: recorder.add("deformable", field),
    )


def _drop(recorder: Recorder | None, kind: Kind) -> None:
    if recorder is not None:
        recorder.drop(kind)


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


def _linear_similarities(recipe: Preset) -> tuple[Similarity, Similarity]:
    """For the linear stage, to search and to refine: the counterparts of the deformable stage's."""
    if recipe.affine.multimodal or recipe.deformable.similarity in MULTIMODAL:
        return MutualInformation(), MutualInformation()
    return NCC(), make_similarity(recipe.deformable)


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
