"""A second, more thorough try at a registration on which the verdict is fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stepwarp.config import Preset
from stepwarp.errors import MemoryShortageError, RegistrationError
from stepwarp.progress import Progress
from stepwarp.workflow.registration import Registration

#: How many times as many starts, and iterations of each level, the second try has.
_CANDIDATES, _ITERATIONS = 4, 2
_STATUSES = ("fail", "check", "pass")


def thorough(recipe: Preset) -> Preset:
    """The recipe with more starts, mutual information in the linear stage, and more iterations."""
    affine = recipe.affine.model_copy(update={"candidates": _CANDIDATES * recipe.affine.candidates, "multimodal": True})
    levels = tuple(
        level.model_copy(update={"iterations": _ITERATIONS * level.iterations}) for level in recipe.deformable.levels
    )
    return Preset(affine=affine, deformable=recipe.deformable.model_copy(update={"levels": levels}))


def escalated(
    first: Registration, again: Callable[[], Registration], started: float, deadline: float | None
) -> Registration:
    """The better of a failed registration and of a second try; by the verdict, then by the information shared.

    again: registers with the `thorough` recipe, from the user's start if there is one: then there are no other starts
    to try, and where its linear part is kept, only iterations are more. started, deadline: of `time.monotonic`; where
    the first try took longer than there is time left, no second is made. The record's `escalation` holds what was
    tried, why, what both found, and which was kept; a sentence of it ends the verdict."""
    verdict = first.record["verdict"]
    failure = verdict["reasons"][0]
    now = time.monotonic()
    if deadline is not None and now + (now - started) > deadline:
        return _noted(first, {"tried": None, "reason": failure}, "there was no time for a second, more thorough try")
    given = first.record.get("initial")
    tried, what = {"iterations": f"{_ITERATIONS} times as many"}, "more iterations"
    if given is None or given["refined"]:
        tried |= {"linear_similarity": "mi"}
        what = f"mutual information in the linear stage and {what}"
    if given is None:
        tried |= {"starts": f"{_CANDIDATES} times as many"}
        what = f"more starts, {what}"
    what = f"with {what}" if given is None else f"from the same start, with {what}"
    record: dict[str, Any] = {"tried": tried, "reason": failure, "first": _found(first)}
    try:
        second = again()
    except (RegistrationError, MemoryShortageError) as error:
        record |= {"second": str(error), "kept": "first"}
        return _noted(first, record, f"a second try {what} broke down: {error}")
    record["second"] = _found(second)
    stages = first.record["stages"] + [stage | {"name": f"second {stage['name']}"} for stage in second.record["stages"]]
    if _rank(second) > _rank(first):
        second = replace(second, record=second.record | {"stages": stages})
        note = f"this is the second try, {what}; of the first, {failure}"
        return _noted(second, record | {"kept": "second"}, note)
    first = replace(first, record=first.record | {"stages": stages})
    remedy = "" if given is None else "; without --initial the search looks for a start of its own"
    return _noted(first, record | {"kept": "first"}, f"a second try {what} was no better{remedy}")


def second_try(progress: Progress) -> Progress:
    """The receiver, told stages of the second try by another name."""
    return lambda step: progress(replace(step, stage=f"second {step.stage}"))


def _found(registration: Registration) -> dict[str, Any]:
    return {key: registration.record[key] for key in ("verdict", "measures")}


def _rank(registration: Registration) -> tuple[int, float]:
    record = registration.record
    information = record["measures"]["information"]
    return _STATUSES.index(record["verdict"]["status"]), information.get("final", information["affine"])


def _noted(registration: Registration, escalation: dict[str, Any], note: str) -> Registration:
    verdict = registration.record["verdict"]
    verdict = verdict | {"reasons": [*verdict["reasons"], note]}
    return replace(registration, record=registration.record | {"verdict": verdict, "escalation": escalation})
