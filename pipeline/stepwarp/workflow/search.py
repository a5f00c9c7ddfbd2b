"""The way from two prepared images to a transform: affine, network, deformable search, measures and verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from stepwarp.config import DeformableSettings, Level, Preset
from stepwarp.geometry import Affine, DisplacementField
from stepwarp.losses.similarities.mi import MutualInformation
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.losses.similarity import Similarity, find_similarity
from stepwarp.options import RegisterOptions
from stepwarp.progress import ProgressReport
from stepwarp.registrar.affine import LinearFit, register_linear
from stepwarp.registrar.deformable import Deformation, as_deformation, level_edges, make_similarity, optimise
from stepwarp.registrar.subject import ImagedSubject
from stepwarp.workflow.clock import Clock
from stepwarp.workflow.initial import Initial
from stepwarp.workflow.network import Attempt, Network, attempt
from stepwarp.workflow.subjects import PreparedImage, mask_remarks, outside_remarks
from stepwarp.workflow.trace import Kind, Recorder, TraceStep, measured
from stepwarp.workflow.verdict import foreground, judge, lowered, measure

#: A level is as fine as the network's grid, or a start's, up to this factor: spacings are rounded.
_AS_FINE = 1.01
#: What the deformable stage may go on from.
Start = Attempt | Initial


@dataclass(frozen=True, eq=False)
class SearchRequest:
    """What is to be done with a pair. recipe: that of the options, or of a second try. network: their weights, read.
    initial: the user's start. deadline: a `time.monotonic()` after which no further iteration of any stage starts.
    notes: what the verdict says besides."""

    options: RegisterOptions
    recipe: Preset
    network: Network | None
    device: torch.device
    deadline: float | None
    notes: tuple[str, ...] = ()
    initial: Initial | None = None


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What came of a plan. deformation: None for a linear registration. tried: None without a network. initial: the
    user's start, with what became of it. steps: of the trace, if one was wanted."""

    fit: LinearFit
    deformation: Deformation | None
    tried: Attempt | None
    initial: Initial | None
    measures: dict[str, Any]
    verdict: dict[str, Any]
    steps: tuple[TraceStep, ...]


def search(plan: SearchRequest, fixed: PreparedImage, moving: PreparedImage, clock: Clock) -> SearchResult:
    """Carry out a plan. Raises RegistrationError where the optimisation breaks down."""
    recorder = Recorder() if plan.options.trace else None
    fixed, moving = fixed.to(plan.device), moving.to(plan.device)
    with clock.stage("affine", reports_itself=True):
        fit = _linear_fit(plan, fixed, moving, clock)
    if recorder is not None:
        recorder.add("affine", None, clock.stages[-1]["seconds"])
    pair = _DeformablePair(plan, fixed, moving, fit.transform, clock, recorder)
    given = plan.initial
    tried = None if plan.network is None else pair.attempt(plan.network)
    start, deformation, measures = pair.deform(given if tried is None else tried)
    if isinstance(start, Attempt):
        tried = start
    else:
        given = start
    notes, checks = mask_remarks(fixed, moving)
    notes = [*plan.notes, *notes, *outside_remarks(moving)]
    if fit.stopped:
        checks = [*checks, f"the time budget ended the linear stage {fit.stopped}"]
    for each in (given, tried):
        if each is not None:
            notes, checks = [*notes, *each.notes], [*checks, *each.checks]
    verdict = judge(measures, notes, checks, multimodal=find_similarity(plan.recipe.deformable.similarity).multimodal)
    return SearchResult(fit, deformation, tried, given, measures, verdict, pair.steps())


def _linear_fit(plan: SearchRequest, fixed: PreparedImage, moving: PreparedImage, clock: Clock) -> LinearFit:
    """The linear part: searched for, refined from the user's start, or that start as it is."""
    kind, initial = plan.options.transform, plan.initial
    if kind == "none" or (initial is not None and not initial.refined):
        assert initial is not None
        clock.progress(ProgressReport("affine", 1, 1))
        return LinearFit(initial.affine, math.nan, ())
    return register_linear(
        fixed.scaled,
        moving.scaled,
        kind,
        *_linear_similarities(plan.recipe),
        plan.recipe.affine,
        fixed_mask=fixed.mask,
        moving_mask=moving.mask,
        device=plan.device,
        initial=None if initial is None else initial.affine,
        deadline=plan.deadline,
        progress=clock.progress,
    )


@dataclass(frozen=True, eq=False)
class _DeformablePair:
    """Two images with the affine between them, to be deformed."""

    plan: SearchRequest
    fixed: PreparedImage
    moving: PreparedImage
    affine: Affine
    clock: Clock
    recorder: Recorder | None

    def attempt(self, network: Network) -> Attempt:
        with self.clock.stage("network"):
            return attempt(
                network,
                self.fixed.image,
                self.moving.image,
                self.affine,
                self.settings.similarity,
                fixed_mask=self.fixed.mask,
                moving_mask=self.moving.mask,
                deadline=self.plan.deadline,
                recorder=self.recorder,
            )

    def deform(self, start: Start | None) -> tuple[Start | None, Deformation | None, dict[str, Any]]:
        """The deformation from the network's result or the user's start, or from nothing where that does harm, with its
        measures.

        One that makes the images less alike than the affine does is no deformation at all."""
        deformation = self._deformation(start)
        measures = self._measures(deformation)
        if start is not None and start.warp is not None and lowered(measures, self.settings.similarity):
            start = start.dropped("what came of it was less alike than after the affine")
            self._drop("deformable")
            deformation = self._deformation(start)
            measures = self._measures(deformation)
        if deformation is not None and lowered(measures, self.settings.similarity):
            self._drop("deformable")
            still = DisplacementField.identity(self.fixed.scaled.grid, self.plan.device)
            deformation = Deformation(still, still, deformation.trace, "it lowered the similarity and was dropped")
            measures = self._measures(deformation)
        if start is not None and start.warp is None:
            self._drop("network")
        return start, deformation, measures

    def steps(self) -> tuple[TraceStep, ...]:
        """What was recorded, with its numbers."""
        if self.recorder is None:
            return ()
        with self.clock.stage("trace"):
            inside = foreground(self.fixed.scaled, self.fixed.mask)
            return tuple(measured(self.recorder.steps, self.affine, self.fixed.scaled, self.moving.scaled, inside))

    @property
    def settings(self) -> DeformableSettings:
        return self.plan.recipe.deformable

    def _deformation(self, start: Start | None) -> Deformation | None:
        if self.plan.options.affine_only:
            return None
        with self.clock.stage("deformable", reports_itself=True):
            if start is None or start.warp is None:
                return self._optimised(self.settings, None)
            finer = self._as_fine_as(start.finest_mm)
            if isinstance(start, Initial):
                finer = finer or self.settings.levels[-1:]
            if self.plan.options.refine and finer:
                return self._optimised(self.settings.model_copy(update={"levels": finer}), start.warp)
            unrefined = "no level of the preset is as fine as the network's grid"
            reason = unrefined if self.plan.options.refine else "nothing was refined"
            self.clock.progress(ProgressReport("deformable", 0, 1))
            found = as_deformation(start.warp.to(self.plan.device), self.fixed.scaled.grid, self.settings, reason)
            self.clock.progress(ProgressReport("deformable", 1, 1))
            return found

    def _as_fine_as(self, mm: float) -> tuple[Level, ...]:
        """The levels with voxels of no more than so many mm."""
        subjects = (ImagedSubject(image.scaled, image.mask) for image in (self.fixed, self.moving))
        edges = level_edges(self.settings, *subjects)
        return tuple(lv for lv, edge in zip(self.settings.levels, edges, strict=True) if edge <= mm * _AS_FINE)

    def _optimised(self, settings: DeformableSettings, start: DisplacementField | None) -> Deformation:
        recorder = self.recorder
        if recorder is not None:
            recorder.begin()
        return optimise(
            self.fixed.scaled,
            self.moving.scaled,
            self.affine,
            settings,
            fixed_mask=self.fixed.mask,
            moving_mask=self.moving.mask,
            device=self.plan.device,
            start=start,
            deadline=self.plan.deadline,
            progress=self.clock.progress,
            watch=None if recorder is None else lambda _, field: recorder.add("deformable", field.to("cpu")),
        )

    def _measures(self, deformation: Deformation | None) -> dict[str, Any]:
        with self.clock.stage("measure"):
            fixed, moving = self.fixed, self.moving
            return measure(fixed.scaled, moving.scaled, self.affine, deformation, fixed.mask, moving.mask)

    def _drop(self, kind: Kind) -> None:
        if self.recorder is not None:
            self.recorder.drop(kind)


def _linear_similarities(recipe: Preset) -> tuple[Similarity, Similarity]:
    """For the linear stage, to search and to refine: the counterparts of the deformable stage's."""
    if recipe.affine.multimodal or find_similarity(recipe.deformable.similarity).multimodal:
        return MutualInformation(), MutualInformation()
    return NCC(), make_similarity(recipe.deformable)
