"""Of `register`, what a batch sets for all of its pairs; and what makes two results the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwarp.config import LinearKind, SimilarityName
from stepwarp.config import preset as load_preset
from stepwarp.files import TrustRules, sha256
from stepwarp.layout import RECORD
from stepwarp.version import __version__
from stepwarp.workflow.subjects import check_outside, recorded_outside


@dataclass(frozen=True)
class Settings:
    """Arguments of `register`, which explains them. weights: a file, or the name of shipped ones."""

    preset: str = "default"
    affine_only: bool = False
    transform: LinearKind = "affine"
    similarity: SimilarityName | None = None
    device: str = "auto"
    time_budget: float | None = None
    weights: str | None = None
    steps: int | None = None
    refine: bool = True
    escalate: bool = True
    trust: tuple[str, ...] = ()
    outside: float | None = None

    def check(self) -> None:
        """InputError for what would let every pair fail: choices that contradict each other, unusable weights."""
        import torch

        from stepwarp.workflow.network import read_network
        from stepwarp.workflow.register import check_network

        check_network(self.weights, self.steps, self.refine, self.affine_only)
        check_outside(self.outside)
        TrustRules(self.trust)
        if self.weights is not None:
            read_network(self.weights, self.steps, torch.device("cpu"))

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `register`; a weights file by its absolute path."""
        return {
            "preset": self.preset,
            "affine_only": self.affine_only,
            "transform": self.transform,
            "similarity": self.similarity,
            "device": self.device,
            "time_budget": self.time_budget,
            "weights": self._weights_path(),
            "steps": self.steps,
            "refine": self.refine,
            "escalate": self.escalate,
            "trust": self.trust,
            "outside": self.outside,
        }

    def identity(self) -> dict[str, Any]:
        """What of the settings a result depends on, JSON-ready: the preset by its content, the weights by theirs."""
        path = self._weights_path()
        options = self.options()
        recipe = load_preset(self.preset).model_dump(mode="json")
        options |= {"preset": recipe, "outside": recorded_outside(self.outside), "trust": list(self.trust)}
        return options | {"weights": None if path is None else sha256(path)}

    def _weights_path(self) -> str | None:
        if self.weights is None:
            return None
        from stepwarp.registrar.weights import weights_path

        return str(weights_path(self.weights).absolute())


def parts_of(settings: Mapping[str, Any], digests: Mapping[str, str | None]) -> dict[str, Any]:
    """What a result is made of. settings: their identity. digests: role of each input file -> SHA-256."""
    return {"stepwarp": __version__, "inputs": dict(digests), "settings": dict(settings)}


def parts_in(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a record says that its result is made of; None if no batch made it.

    Without the seed that earlier versions asked for: it changed nothing, so what they made need not be made anew."""
    parts = record.get("batch", {}).get("parts")
    if parts is None:
        return None
    return {**parts, "settings": {name: value for name, value in parts.get("settings", {}).items() if name != "seed"}}


def key_of(parts: Mapping[str, Any]) -> str:
    """The name of everything that a result is made of: two that share it are the same result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In what the parts of two results differ, in words."""
    if old.get("stepwarp") != new["stepwarp"]:
        return f"it was made by stepwarp {old.get('stepwarp')}, now {new['stepwarp']}"
    for kind in ("inputs", "settings"):
        before, after = old.get(kind, {}), new[kind]
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        if changed:
            return f"{'settings' if kind == 'settings' else 'input files'} have changed: {', '.join(changed)}"
    return "it was made otherwise"


def damage(folder: Path, record: Mapping[str, Any], digest: Callable[[Path], str] = sha256) -> str | None:
    """What is wrong with the files that a record lists; None if they are those that were written."""
    for name, expected in record.get("outputs", {}).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            return f"{name} is missing"
        if digest(path) != expected:
            return f"{name} is not the file that was written"
    return None if record.get("outputs") else f"{RECORD} lists no files"
