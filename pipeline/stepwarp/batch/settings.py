"""What makes two results of a batch the same, and what can be wrong with its options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stepwarp.errors import InputError
from stepwarp.files import TrustRules, sha256
from stepwarp.layout import RECORD
from stepwarp.options import START_WORDS, RegisterOptions
from stepwarp.version import __version__
from stepwarp.workflow.subjects import check_outside, recorded_outside

#: Options that make no other result, or that are known by what they make of the preset or of a case's inputs.
_NO_MATTER = {"set", "threads", "max_memory", "trace", "initial", "pair_weight"}


def check(options: RegisterOptions) -> None:
    """InputError for what would let every pair fail, and is known without one: weights, starts or values that are
    unusable."""
    import torch

    from stepwarp.workflow.initial import read_start
    from stepwarp.workflow.network import read_network

    check_outside(options.outside)
    TrustRules(options.trust)
    options.check_pairs(1)
    if not all(isinstance(each, str) for each in options.initial):
        raise InputError("a batch hands the start to other processes: name its file")
    read_start(options, TrustRules(options.trust))
    if options.weights is not None:
        if not isinstance(options.weights, (str, Path)):
            raise InputError("a batch hands weights to other processes: name a file, or shipped ones")
        read_network(options.weights, options.steps, torch.device("cpu"))


def for_workers(options: RegisterOptions) -> RegisterOptions:
    """The same in another folder or on another computer: weights and start by their absolute paths."""
    from stepwarp.workflow.journey import absolute

    start = tuple(each if each in START_WORDS else absolute(each) for each in options.initial)
    return options.model_copy(update={"weights": _weights_path(options), "initial": start})


def identity(options: RegisterOptions) -> dict[str, Any]:
    """What of the options a result depends on, JSON-ready: the preset by its content, the weights by theirs."""
    path = _weights_path(options)
    return options.model_dump(exclude=_NO_MATTER) | {
        "preset": options.changed_preset.model_dump(mode="json"),
        "outside": recorded_outside(options.outside),
        "trust": list(options.trust),
        "weights": None if path is None else sha256(Path(path)),
    }


def _weights_path(options: RegisterOptions) -> str | None:
    if options.weights is None:
        return None
    from stepwarp.registrar.weights import weights_path

    return str(weights_path(options.weights).absolute())


def parts_of(settings: Mapping[str, Any], digests: Mapping[str, str | None]) -> dict[str, Any]:
    """What a result is made of. settings: their identity. digests: role of each input file -> SHA-256."""
    return {"stepwarp": __version__, "inputs": dict(digests), "settings": dict(settings)}


def parts_in(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a record says that its result is made of; None if no batch made it.

    Without the seed that earlier versions asked for, which changed nothing; and with what holds unless one says
    otherwise for options that they did not have: what they made need not be made anew."""
    parts = record.get("batch", {}).get("parts")
    if parts is None:
        return None
    later = RegisterOptions().model_dump(mode="json", exclude=_NO_MATTER | {"preset"})
    made = {name: value for name, value in parts.get("settings", {}).items() if name != "seed"}
    return {**parts, "settings": {**later, **made}}


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
