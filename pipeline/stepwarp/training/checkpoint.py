"""All that a training is at one moment, so that it goes on as if it had never been interrupted."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from stepwarp.errors import InputError
from stepwarp.files import atomic_path
from stepwarp.training.config import check_config
from stepwarp.training.ema import RunningMean
from stepwarp.training.settings import TrainingRecipe

_VERSION = 2
#: What may be changed when a training goes on, besides how its data is read: nothing that is counted in iterations.
_MAY_CHANGE = {"optimiser", "precision", "checkpoint_every", "validation", "description"}
_DATA_MAY_CHANGE = {"cache", "workers"}


@dataclass(frozen=True)
class Best:
    """The best validation so far. score: larger is better."""

    iteration: int
    score: float
    measures: dict[str, float]


@dataclass(eq=False)
class Progressed:
    """A training under way.

    module: what is trained. iteration: how many are done. seconds: of training, over all runs."""

    module: nn.Module
    mean: RunningMean
    optimiser: Optimizer
    iteration: int = 0
    seconds: float = 0.0
    best: Best | None = None


def save(path: Path, state: Progressed, config: TrainingRecipe, pairs: Mapping[str, Any]) -> None:
    """Write everything, atomically: a process that is killed leaves the checkpoint before.

    pairs: where the sequence of pairs stands, as their loader says it."""
    content = {
        "version": _VERSION,
        "config": config.model_dump(mode="json"),
        "module": state.module.state_dict(),
        "mean": state.mean.module.state_dict(),
        "mean_count": state.mean.count,
        "optimiser": state.optimiser.state_dict(),
        "iteration": state.iteration,
        "seconds": state.seconds,
        "best": None if state.best is None else asdict(state.best),
        "pairs": dict(pairs),
        "random": _random_state(),
    }
    with atomic_path(path, overwrite=True) as temporary:
        torch.save(content, temporary)


def load(path: Path, state: Progressed, config: TrainingRecipe) -> dict[str, Any]:
    """Bring a training to where a checkpoint stands; returns where the sequence of pairs does.

    Raises InputError for a file that is none or damaged, and for one of another recipe."""
    content = _read(path)
    require_same_recipe(check_config(content["config"], str(path)), config, path)
    state.module.load_state_dict(content["module"])
    state.mean.module.load_state_dict(content["mean"])
    state.mean.count = content["mean_count"]
    state.optimiser.load_state_dict(content["optimiser"])
    state.iteration = content["iteration"]
    state.seconds = content["seconds"]
    state.best = None if content["best"] is None else Best(**content["best"])
    _set_random_state(content["random"])
    pairs: dict[str, Any] = content["pairs"]
    return pairs


def require_same_recipe(before: TrainingRecipe, now: TrainingRecipe, path: Path) -> None:
    """InputError if a training cannot go on with other settings than it began with, naming the first of them."""
    a, b = (_what_must_stay(config) for config in (before, now))
    for key in a:
        if a[key] != b[key]:
            inner = [name for name in a[key] if a[key][name] != b[key].get(name)] if isinstance(a[key], dict) else []
            raise InputError(
                f"{path}: was begun with other settings of '{'.'.join([key, *inner[:1]])}'. To go on, leave them as "
                "they were; to begin anew, choose another --out."
            )


def _what_must_stay(config: TrainingRecipe) -> dict[str, Any]:
    values = config.model_dump(mode="json", exclude=_MAY_CHANGE)
    values["data"] = {key: value for key, value in values["data"].items() if key not in _DATA_MAY_CHANGE}
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["version"] != _VERSION:
            raise ValueError("it is of another version of stepwarp")
    except FileNotFoundError as error:
        raise InputError(f"{path}: does not exist, so there is nothing to go on with. Leave out --resume.") from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: is no checkpoint of a training, or damaged ({reason})") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: is damaged ({error})") from error
    return content


def _random_state() -> dict[str, Any]:
    """Of all generators of this process; as tensors and plain numbers, which can be read without running code."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # libraries may draw from it
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
