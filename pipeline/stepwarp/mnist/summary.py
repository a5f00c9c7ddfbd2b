"""The study in one record: what `summary.json` holds, and the page and the table are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from stepwarp.mnist import store
from stepwarp.mnist.answers import ANSWERS
from stepwarp.mnist.models import MODELS
from stepwarp.mnist.probing import PROBES
from stepwarp.mnist.study import MnistStudy

#: A training whose loss is, at the end, this many times its lowest has broken down.
BROKEN = 1.5


def summarise(study: MnistStudy) -> dict[str, Any]:
    """All that is there of a study: "networks", "sensitivity", "stability", "classifier" and "answers"."""
    found: dict[str, Any] = {
        "digits": study.digits.source,
        "settings": study.settings.model_dump(),
        "scale": study.scale.model_dump(),
        "networks": _networks(study),
    }
    for kind in ("sensitivity", "stability"):
        found[kind] = _variations(study, kind)
    answers = {letter: _answer(study, letter) for letter in PROBES}
    found["answers"] = {letter: answer for letter, answer in answers.items() if answer is not None}
    if found["answers"]:
        found["classifier"] = study.classifier_accuracy()
    return found


def stacked(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Nested arrays of several seeds, each with the seeds as a new first axis."""
    first = parts[0]
    return {
        name: stacked([part[name] for part in parts]) if isinstance(value, dict) else np.stack([p[name] for p in parts])
        for name, value in first.items()
    }


def _answer(study: MnistStudy, letter: str) -> dict[str, Any] | None:
    paths = [study.result(letter, seed) for seed in study.seeds]
    if not all(path.exists() for path in paths):
        return None
    found = stacked([store.read_arrays(path) for path in paths])
    return {"question": PROBES[letter][0], **asdict(ANSWERS[letter](found, study.settings.steps))}


def _networks(study: MnistStudy) -> dict[str, Any]:
    found = {}
    for name, model in MODELS.items():
        paths = [study.evaluation(name, seed) for seed in study.seeds]
        if not all(path.exists() for path in paths):
            continue
        judged = [store.read_json(path) for path in paths]
        trained = [study.training(name, seed) for seed in study.seeds]
        found[name] = {
            "about": model.about,
            "held_out": {digit: [each[digit] for each in judged] for digit in judged[0]},
            "reduction": {d: float(np.mean([each[d]["reduction"] for each in judged])) for d in judged[0]},
            "folds": {d: float(np.mean([each[d]["folds"] for each in judged])) for d in judged[0]},
            "seconds": [each["seconds"] for each in trained],
            "cpu_seconds": [each["cpu_seconds"] for each in trained],
            "curve": trained[0]["curve"],
        }
    return found


def _variations(study: MnistStudy, kind: str) -> dict[str, Any]:
    found = {}
    for which, name in study.variations():
        path = study.variation(which, name)
        if which != kind or not path.exists():
            continue
        record = store.read_json(path)
        loss = np.array(record["curve"]["loss"], float)
        lowest = np.minimum.accumulate(loss)
        above = np.flatnonzero(loss > BROKEN * lowest)
        broken = bool(loss[-1] > BROKEN * lowest[-1])
        found[name] = {
            **record,
            "broke_down": broken,
            "at_iteration": _beginning(loss, record["curve"]["iteration"]) if broken and len(above) else None,
        }
    return found


def _beginning(loss: np.ndarray, iterations: Sequence[float]) -> float:
    """The iteration after which the loss never again was near its lowest."""
    near = np.flatnonzero(loss <= BROKEN * loss.min())
    return float(iterations[int(near[-1])])
