"""The way from two prepared images to a transform: affine, network, deformable search, measures and verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from stepwarp.config import DeformableSettings, Level, Preset
from stepwarp.geometry import Affine, Composition, DisplacementField, Image, Transform
from stepwarp.losses.similarities.mi import MutualInformation
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.losses.similarity import Similarity, find_similarity
from stepwarp.options import RegisterOptions
from stepwarp.progress import ProgressReport, is_over
from stepwarp.registrar.affine import LinearFit, register_linear
from stepwarp.registrar.contrast import Contrasts, MappedPair, better_side, contrasts, mapped_pair
from stepwarp.registrar.deformable import Deformation, as_deformation, level_edges, make_similarity, optimise
from stepwarp.registrar.masks import pooled
from stepwarp.registrar.subject import ImagedSubject, voxel_edge
from stepwarp.segment import Segmentation
from stepwarp.workflow.anatomy import structures_met, structures_taken_apart, with_doubted_anatomy
from stepwarp.workflow.clock import Clock
from stepwarp.workflow.initial import Initial
from stepwarp.workflow.network import Attempt, Network, attempt
from stepwarp.workflow.subjects import PreparedImage, mask_remarks, outside_remarks
from stepwarp.workflow.trace import Kind, Recorder, TraceStep, measured
from stepwarp.workflow.verdict import foreground, information_in_doubt, judge, lowered, measure

#: A level is as fine as the network's grid, or a start's, up to this factor: spacings are rounded.
_AS_FINE = 1.01
#: What compares images of different contrasts, before and after their greys are mapped onto one.
_ACROSS, _IN_THE_END = "mi", "lncc"
#: Contrasts are looked at on voxels of which the subject is so many across, about 2 mm in a brain: of larger ones too
#: many hold several tissues.
_CONTRAST_ACROSS = 88
#: Why a deformation was dropped.
_LOWERED = "it lowered the similarity and was dropped"
_TAKEN_APART = "it took apart structures that the linear transform had laid on each other, and was dropped"
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
    user's start, with what became of it. contrast: what the greys of the images have to do with each other, for
    registration.json; None where nobody asked. steps: of the trace, if one was wanted. anatomy: what a
    segmenter found in the fixed and in the moving image, None where nobody looked."""

    fit: LinearFit
    deformation: Deformation | None
    tried: Attempt | None
    initial: Initial | None
    measures: dict[str, Any]
    verdict: dict[str, Any]
    contrast: dict[str, Any] | None
    steps: tuple[TraceStep, ...]
    anatomy: tuple[Segmentation | None, Segmentation | None] = (None, None)


def search(plan: SearchRequest, fixed: PreparedImage, moving: PreparedImage, clock: Clock) -> SearchResult:
    """Carry out a plan. Raises RegistrationError where the optimisation breaks down."""
    recorder = Recorder() if plan.options.trace else None
    fixed, moving = fixed.to(plan.device), moving.to(plan.device)
    with clock.stage("affine", reports_itself=True):
        fit = _linear_fit(plan, fixed, moving, clock)
        seen = _contrasts(plan, fixed, moving, fit.transform)
        others = seen is not None and not seen.alike
        across = find_similarity(plan.recipe.deformable.similarity).multimodal
        doubted = across if seen is None else not seen.surely_alike
        if others:
            plan = replace(plan, recipe=_across_contrasts(plan.recipe))
            fit = _refined_in_one_contrast(plan, fixed, moving, _linear_fit(plan, fixed, moving, clock), clock)
    if recorder is not None:
        recorder.add("affine", None, clock.stages[-1]["seconds"])
    looked = fixed.anatomy is not None and moving.anatomy is not None
    if doubted and not looked and _has_time_to_look(plan):
        looked = True
        with clock.stage("structures"):
            fixed, moving = with_doubted_anatomy(fixed, moving, fit.transform, plan.device, plan.options.max_memory)
    pair = _DeformablePair(plan, fixed, moving, fit.transform, clock, recorder, others, doubted)
    given = plan.initial
    tried = None if plan.network is None else pair.attempt(plan.network)
    start, deformation, measures = pair.deform(given if tried is None else tried)
    if information_in_doubt(measures) and not looked and _has_time_to_look(plan):
        with clock.stage("structures"):
            fixed, moving = with_doubted_anatomy(fixed, moving, fit.transform, plan.device, plan.options.max_memory)
            met = structures_met(fixed, moving, pair.ways(deformation))
            measures |= {} if met is None else {"structures": met}
    if isinstance(start, Attempt):
        tried = start
    else:
        given = start
    notes, checks = mask_remarks(fixed, moving)
    notes = [*plan.notes, *notes, *outside_remarks(moving)]
    if fit.stopped:
        checks = [*checks, f"the time budget ended the linear stage {fit.stopped}"]
    if seen is not None and others:
        notes.append(_said(seen, deformation))
    if deformation is not None and deformation.stopped in (_LOWERED, _TAKEN_APART):
        checks = [*checks, f"there is no deformation: {deformation.stopped}"]
    for each in (given, tried):
        if each is not None:
            notes, checks = [*notes, *each.notes], [*checks, *each.checks]
    verdict = judge(measures, notes, checks, multimodal=find_similarity(plan.recipe.deformable.similarity).multimodal)
    contrast = None if seen is None else seen.as_dict()
    anatomy = fixed.anatomy, moving.anatomy
    return SearchResult(fit, deformation, tried, given, measures, verdict, contrast, pair.steps(), anatomy)


def _has_time_to_look(plan: SearchRequest) -> bool:
    """Whether a segmenter may look at the images; for a linear stage alone only who asks for it wants that."""
    return not plan.options.affine_only and not is_over(plan.deadline)


def _linear_fit(plan: SearchRequest, fixed: PreparedImage, moving: PreparedImage, clock: Clock) -> LinearFit:
    """The linear part: searched for, refined from the user's start, or that start as it is."""
    initial = plan.initial
    if not _searches(plan):
        assert initial is not None
        clock.progress(ProgressReport("affine", 1, 1))
        return LinearFit(initial.affine, math.nan, ())
    pair, start = MappedPair(fixed.scaled, moving.scaled), None if initial is None else initial.affine
    return _fitted(plan, pair, fixed, moving, *_linear_similarities(plan.recipe), start, clock)


def _refined_in_one_contrast(
    plan: SearchRequest, fixed: PreparedImage, moving: PreparedImage, fit: LinearFit, clock: Clock
) -> LinearFit:
    """A fit by mutual information as correlation makes it, which sees more exactly, once the greys are mapped."""
    if not _searches(plan) or fit.stopped:
        return fit
    pair = _in_one_contrast(fixed, moving, fit.transform)
    refine = find_similarity(_IN_THE_END).of(plan.recipe.deformable)
    return _fitted(plan, pair, fixed, moving, NCC(), refine, fit.transform, clock)


def _searches(plan: SearchRequest) -> bool:
    return plan.options.transform != "none" and (plan.initial is None or plan.initial.refined)


def _fitted(
    plan: SearchRequest,
    pair: MappedPair,
    fixed: PreparedImage,
    moving: PreparedImage,
    search: Similarity,
    refine: Similarity,
    start: Affine | None,
    clock: Clock,
) -> LinearFit:
    kind = plan.options.transform
    assert kind != "none"
    return register_linear(
        pair.fixed,
        pair.moving,
        kind,
        search,
        refine,
        plan.recipe.affine,
        fixed_mask=fixed.mask,
        moving_mask=moving.mask,
        device=plan.device,
        initial=start,
        deadline=plan.deadline,
        progress=clock.progress,
    )


def _in_one_contrast(fixed: PreparedImage, moving: PreparedImage, transform: Transform) -> MappedPair:
    """The scaled pair in one contrast, as the greys that meet under a transform tell."""
    (f, f_mask), (m, m_mask) = (_coarse(each) for each in (fixed, moving))
    seen = contrasts(f, m, transform, f_mask, m_mask)
    side = better_side(seen, f, m, transform, f_mask, m_mask)
    return mapped_pair(seen, side, fixed.scaled, moving.scaled)


def _contrasts(plan: SearchRequest, fixed: PreparedImage, moving: PreparedImage, affine: Affine) -> Contrasts | None:
    """What the greys of a pair have to do with each other after the linear stage, where the similarity is to follow
    from it."""
    if plan.options.similarity != "auto" or find_similarity(plan.recipe.deformable.similarity).multimodal:
        return None
    (f, f_mask), (m, m_mask) = (_coarse(each) for each in (fixed, moving))
    return contrasts(f, m, affine, f_mask, m_mask)


def _across_contrasts(recipe: Preset) -> Preset:
    deformable = recipe.deformable.model_copy(update={"similarity": _ACROSS})
    return recipe.model_copy(update={"deformable": deformable})


def _coarse(image: PreparedImage) -> tuple[Image, Image | None]:
    """An image and its mask, on the voxels on which their contrasts are looked at."""
    subject = ImagedSubject(image.scaled, image.mask)
    edge = voxel_edge(subject.size, _CONTRAST_ACROSS, float(image.scaled.grid.spacing.min()))
    factors = subject.factors(edge)
    values, trusted = pooled(image.scaled.data, None if image.mask is None else image.mask.data, factors)
    grid = image.scaled.grid.coarser(factors)
    return Image(values[0, 0], grid), None if trusted is None else Image(trusted[0, 0], grid)


def _said(seen: Contrasts, deformation: Deformation | None) -> str:
    text = (
        f"the images are of different contrasts: a rising line explains {max(seen.line, 0):.0%} of the variance of one "
        f"and a curve {max(seen.of_moving, seen.of_fixed):.0%}; they were compared by mutual information"
    )
    return text if deformation is None else f"{text}, and then by local correlation of greys mapped onto one contrast"


@dataclass(frozen=True, eq=False)
class _DeformablePair:
    """Two images with the affine between them, to be deformed.

    mapping: whether, in the end, their greys are mapped onto one contrast. doubted: whether they may be of different
    contrasts, and structures have the last word."""

    plan: SearchRequest
    fixed: PreparedImage
    moving: PreparedImage
    affine: Affine
    clock: Clock
    recorder: Recorder | None
    mapping: bool
    doubted: bool

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

        One that makes the images less alike than the affine does, or, where their greys may mislead, takes apart
        structures that lay on each other, is no deformation at all."""
        deformation = self._deformation(start)
        measures = self._measures(deformation)
        if start is not None and start.warp is not None and lowered(measures, self.settings.similarity):
            start = start.dropped("what came of it was less alike than after the affine")
            self._drop("deformable")
            deformation = self._deformation(start)
            measures = self._measures(deformation)
        harm = None if deformation is None else self._harm(measures)
        if deformation is not None and harm is not None:
            self._drop("deformable")
            still = DisplacementField.identity(self.fixed.scaled.grid, self.plan.device)
            deformation = Deformation(still, still, deformation.trace, harm)
            measures = self._measures(deformation)
        if start is not None and start.warp is None:
            self._drop("network")
        return start, deformation, measures

    def _harm(self, measures: dict[str, Any]) -> str | None:
        """What a deformation did that it is dropped for."""
        if lowered(measures, self.settings.similarity):
            return _LOWERED
        return _TAKEN_APART if self.doubted and structures_taken_apart(measures) else None

    def steps(self) -> tuple[TraceStep, ...]:
        """What was recorded, with its numbers."""
        if self.recorder is None:
            return ()
        with self.clock.stage("trace"):
            inside = foreground(self.fixed.scaled, self.fixed.mask)
            return tuple(measured(self.recorder.steps, self.affine, self.fixed.scaled, self.moving.scaled, inside))

    def ways(self, deformation: Deformation | None) -> dict[str, Transform]:
        """Fixed world -> moving world, linear and as it is in the end."""
        linear: dict[str, Transform] = {"affine": self.affine}
        return linear if deformation is None else linear | {"final": Composition.of(self.affine, deformation.warp)}

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
        if self.recorder is not None:
            self.recorder.begin()
        found = self._moved_on(self.fixed.scaled, self.moving.scaled, settings, start)
        if not self.mapping or is_over(self.plan.deadline):
            return found
        alike = _in_one_contrast(self.fixed, self.moving, Composition.of(self.affine, found.warp))
        # The coarsest level would find again what is known by now.
        finer = {"similarity": _IN_THE_END, "levels": settings.levels[1:] or settings.levels}
        again = self._moved_on(alike.fixed, alike.moving, settings.model_copy(update=finer), found.warp)
        return replace(again, trace=[*found.trace, *again.trace])

    def _moved_on(
        self, fixed: Image, moving: Image, settings: DeformableSettings, start: DisplacementField | None
    ) -> Deformation:
        recorder = self.recorder
        return optimise(
            fixed,
            moving,
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
            met = structures_met(fixed, moving, self.ways(deformation))
            measures = measure(fixed.scaled, moving.scaled, self.affine, deformation, fixed.mask, moving.mask)
            return measures if met is None else measures | {"structures": met}

    def _drop(self, kind: Kind) -> None:
        if self.recorder is not None:
            self.recorder.drop(kind)


def _linear_similarities(recipe: Preset) -> tuple[Similarity, Similarity]:
    """For the linear stage, to search and to refine: the counterparts of the deformable stage's."""
    if recipe.affine.multimodal or find_similarity(recipe.deformable.similarity).multimodal:
        return MutualInformation(), MutualInformation()
    return NCC(), make_similarity(recipe.deformable)
