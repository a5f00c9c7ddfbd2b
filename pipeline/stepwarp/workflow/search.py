"""The way from two prepared images to a transform: affine, network, deformable search, measures and verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from stepwarp.config import DeformableSettings, Level, Preset, SimilarityName
from stepwarp.geometry import Affine, Composition, DisplacementField, Transform
from stepwarp.options import RegisterOptions
from stepwarp.progress import ProgressReport, is_over
from stepwarp.registrar.affine import LinearFit, from_afar, register_linear
from stepwarp.registrar.deformable import Deformation, as_deformation, level_edges, optimise
from stepwarp.registrar.pairs import ImagePair
from stepwarp.registrar.subject import ImagedSubject
from stepwarp.workflow.anatomy import structures_met, structures_taken_apart, with_doubted_anatomy
from stepwarp.workflow.clock import Clock
from stepwarp.workflow.compared import IN_THE_END, ComparedPair
from stepwarp.workflow.initial import Initial
from stepwarp.workflow.network import Attempt, Network, attempt
from stepwarp.workflow.subjects import PreparedImage, mask_remarks, outside_remarks
from stepwarp.workflow.trace import Kind, Recorder, TraceStep, measured
from stepwarp.workflow.verdict import foreground, gain, information_in_doubt, judge, judge_further, likeness, measure

#: A level is as fine as the network's grid, or a start's, up to this factor: spacings are rounded.
_AS_FINE = 1.01
#: Why a deformation was dropped.
_LOWERED = "it lowered the similarity and was dropped"
_TAKEN_APART = "it took apart structures that the linear transform had laid on each other, and was dropped"
#: What the deformable stage may go on from.
Start = Attempt | Initial


@dataclass(frozen=True, eq=False)
class SearchRequest:
    """What is to be done with a pair. recipe: that of the options, or of a second try. network: their weights, read.
    initial: the user's start. deadline: a `time.monotonic()` after which no further iteration of any stage starts.
    notes: what the verdict says besides. further: more pairs of images of the two subjects."""

    options: RegisterOptions
    recipe: Preset
    network: Network | None
    device: torch.device
    deadline: float | None
    notes: tuple[str, ...] = ()
    initial: Initial | None = None
    further: tuple[ComparedPair, ...] = ()


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What came of a plan. deformation: None for a linear registration. tried: None without a network. initial: the
    user's start, with what became of it. pairs: of images, as they were compared. steps: of the trace, if one was
    wanted."""

    fit: LinearFit
    deformation: Deformation | None
    tried: Attempt | None
    initial: Initial | None
    measures: dict[str, Any]
    verdict: dict[str, Any]
    pairs: tuple[ComparedPair, ...]
    steps: tuple[TraceStep, ...]


def search(plan: SearchRequest, fixed: PreparedImage, moving: PreparedImage, clock: Clock) -> SearchResult:
    """Carry out a plan. Raises RegistrationError where the optimisation breaks down."""
    recorder = Recorder() if plan.options.trace else None
    similarity, chosen = plan.recipe.deformable.similarity, plan.options.similarity_of(0) != "auto"
    pairs = tuple(
        each.to(plan.device) for each in (ComparedPair(fixed, moving, similarity, chosen=chosen), *plan.further)
    )
    with clock.stage("affine", reports_itself=True):
        fit = _linear_fit(plan, pairs, clock)
        pairs = tuple(each.looked_at(fit.transform) for each in pairs)
        if any(each.mapped for each in pairs):
            plan = replace(plan, recipe=_compared_by(plan.recipe, pairs[0].similarity))
            fit = _refined_in_one_contrast(plan, pairs, _linear_fit(plan, _first_of_all(pairs), clock), clock)
    if recorder is not None:
        recorder.add("affine", None, clock.stages[-1]["seconds"])
    looked = fixed.anatomy is not None and moving.anatomy is not None
    doubted = any(each.doubted for each in pairs)
    if doubted and not looked and _has_time_to_look(plan):
        looked = True
        pairs = _looked_at(plan, pairs, fit.transform, clock)
    pair = _DeformablePair(plan, pairs, fit.transform, clock, recorder)
    given = plan.initial
    tried = None if plan.network is None else pair.attempt(plan.network)
    start, deformation, measures = pair.deform(given if tried is None else tried)
    if information_in_doubt(measures) and not looked and _has_time_to_look(plan):
        pairs = _looked_at(plan, pairs, fit.transform, clock)
        met = structures_met(pairs[0].fixed, pairs[0].moving, pair.ways(deformation))
        measures |= {} if met is None else {"structures": met}
    if isinstance(start, Attempt):
        tried = start
    else:
        given = start
    notes, checks = mask_remarks(pairs[0].fixed, pairs[0].moving)
    notes = [*plan.notes, *notes, *outside_remarks(pairs[0].moving)]
    if fit.stopped:
        checks = [*checks, f"the time budget ended the linear stage {fit.stopped}"]
    notes += [each.said(deformation is not None) for each in pairs if each.mapped]
    if deformation is not None and deformation.stopped in (_LOWERED, _TAKEN_APART):
        checks = [*checks, f"there is no deformation: {deformation.stopped}"]
    for each in (given, tried):
        if each is not None:
            notes, checks = [*notes, *each.notes], [*checks, *each.checks]
    known: list[str] = []
    for other in pairs[1:]:
        good, doubtful = judge_further(measures, other.name, multimodal=other.multimodal)
        known, checks = [*known, *good], [*checks, *doubtful]
    verdict = judge(measures, notes, checks, multimodal=pairs[0].multimodal)
    if verdict["status"] == "fail" and pairs[1:]:
        others = " and ".join(other.name for other in pairs[1:])
        known.insert(0, f"{others} had a say in this, and may be of other subjects: try without")
    verdict["reasons"] += known
    return SearchResult(fit, deformation, tried, given, measures, verdict, pairs, pair.steps())


def _has_time_to_look(plan: SearchRequest) -> bool:
    """Whether a segmenter may look at the images; for a linear stage alone only who asks for it wants that."""
    return not plan.options.affine_only and not is_over(plan.deadline)


def _looked_at(
    plan: SearchRequest, pairs: tuple[ComparedPair, ...], way: Affine, clock: Clock
) -> tuple[ComparedPair, ...]:
    """The first images with what a segmenter finds in them, and the further ones as they are."""
    first, *further = pairs
    with clock.stage("structures"):
        fixed, moving = with_doubted_anatomy(first.fixed, first.moving, way, plan.device, plan.options.max_memory)
    return replace(first, fixed=fixed, moving=moving), *further


def _first_of_all(pairs: tuple[ComparedPair, ...]) -> tuple[ComparedPair, ...]:
    """Those that begin: all, or without further ones of different contrasts where the first is of one contrast. The
    better the subjects lie on each other, the more exactly do greys that meet tell one contrast by the other."""
    first, *further = pairs
    return pairs if first.mapped else (first, *(each for each in further if not each.mapped))


def _linear_fit(plan: SearchRequest, pairs: tuple[ComparedPair, ...], clock: Clock) -> LinearFit:
    """The linear part: searched for, refined from the user's start, or that start as it is."""
    initial = plan.initial
    if not _searches(plan):
        assert initial is not None
        clock.progress(ProgressReport("affine", 1, 1))
        return LinearFit(initial.affine, math.nan, ())
    shown = [each.linear(plan.recipe) for each in pairs]
    return _fitted(plan, shown, None if initial is None else initial.affine, clock)


def _refined_in_one_contrast(
    plan: SearchRequest, pairs: tuple[ComparedPair, ...], fit: LinearFit, clock: Clock
) -> LinearFit:
    """A fit by mutual information as correlation makes it, which sees more exactly, once the greys are mapped."""
    if not _searches(plan) or fit.stopped:
        return fit
    shown = [
        each.in_one_contrast(fit.transform, plan.recipe.deformable) if each.mapped else each.linear(plan.recipe)
        for each in pairs
    ]
    return _fitted(plan, shown, fit.transform, clock)


def _searches(plan: SearchRequest) -> bool:
    return plan.options.transform != "none" and (plan.initial is None or plan.initial.refined)


def _fitted(plan: SearchRequest, pairs: Sequence[ImagePair], start: Affine | None, clock: Clock) -> LinearFit:
    kind = plan.options.transform
    assert kind != "none"
    first, *further = pairs
    return register_linear(
        first.fixed,
        first.moving,
        kind,
        from_afar(first.similarity),
        first.similarity,
        plan.recipe.affine,
        fixed_mask=first.fixed_mask,
        moving_mask=first.moving_mask,
        device=plan.device,
        initial=start,
        further=further,
        deadline=plan.deadline,
        progress=clock.progress,
    )


def _compared_by(recipe: Preset, similarity: SimilarityName) -> Preset:
    deformable = recipe.deformable.model_copy(update={"similarity": similarity})
    return recipe.model_copy(update={"deformable": deformable})


@dataclass(frozen=True, eq=False)
class _DeformablePair:
    """Two subjects with the affine between them, to be deformed."""

    plan: SearchRequest
    pairs: tuple[ComparedPair, ...]
    affine: Affine
    clock: Clock
    recorder: Recorder | None

    @property
    def fixed(self) -> PreparedImage:
        return self.pairs[0].fixed

    @property
    def moving(self) -> PreparedImage:
        return self.pairs[0].moving

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
        if start is not None and start.warp is not None and self._lowered(measures):
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
        if self._lowered(measures):
            return _LOWERED
        doubted = any(each.doubted for each in self.pairs)
        return _TAKEN_APART if doubted and structures_taken_apart(measures) else None

    def _lowered(self, measures: dict[str, Any]) -> bool:
        """Whether it made the images less alike than the affine does; of several pairs on the whole."""
        each = zip(self.pairs, [measures, *measures.get("further", {}).values()], strict=True)
        return sum(pair.weight * gain(own, pair.similarity) for pair, own in each) < 0

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
        found = self._moved_on([each.deformable(settings) for each in _first_of_all(self.pairs)], settings, start)
        if not any(each.mapped for each in self.pairs) or is_over(self.plan.deadline):
            return found
        way = Composition.of(self.affine, found.warp)
        alike = [
            each.in_one_contrast(way, settings) if each.mapped else each.deformable(settings) for each in self.pairs
        ]
        # The coarsest level would find again what is known by now.
        finer: dict[str, Any] = {"levels": settings.levels[1:] or settings.levels}
        finer |= {"similarity": IN_THE_END} if self.pairs[0].mapped else {}
        again = self._moved_on(alike, settings.model_copy(update=finer), found.warp)
        return replace(again, trace=[*found.trace, *again.trace])

    def _moved_on(
        self, pairs: Sequence[ImagePair], settings: DeformableSettings, start: DisplacementField | None
    ) -> Deformation:
        recorder = self.recorder
        first, *further = pairs
        return optimise(
            first.fixed,
            first.moving,
            self.affine,
            settings,
            fixed_mask=first.fixed_mask,
            moving_mask=first.moving_mask,
            device=self.plan.device,
            start=start,
            further=further,
            deadline=self.plan.deadline,
            progress=self.clock.progress,
            watch=None if recorder is None else lambda _, field: recorder.add("deformable", field.to("cpu")),
        )

    def _measures(self, deformation: Deformation | None) -> dict[str, Any]:
        with self.clock.stage("measure"):
            fixed, moving = self.fixed, self.moving
            ways = self.ways(deformation)
            met = structures_met(fixed, moving, ways)
            measures = measure(fixed.scaled, moving.scaled, self.affine, deformation, fixed.mask, moving.mask)
            measures |= {} if met is None else {"structures": met}
            further = {
                each.name: likeness(each.fixed.scaled, each.moving.scaled, ways, each.fixed.mask, each.moving.mask)
                for each in self.pairs[1:]
            }
            return measures | ({"further": further} if further else {})

    def _drop(self, kind: Kind) -> None:
        if self.recorder is not None:
            self.recorder.drop(kind)
