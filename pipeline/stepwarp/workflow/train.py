"""Training from a recipe, or on from weights that there are, on a user's own scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepwarp.data.manifest import Manifest, read_manifest
from stepwarp.errors import InputError
from stepwarp.progress import Progress, silent
from stepwarp.registrar.weights import Registrar
from stepwarp.registrar.weights.native import load_native_weights
from stepwarp.training.config import TrainingConfig, changed_config, read_config
from stepwarp.training.loop import TrainingResult, train
from stepwarp.training.plan import TrainingPlan, make_plan
from stepwarp.workflow.device import chosen_device, use_threads

#: What fine-tuning does unless told otherwise: few iterations, at a fraction of the first learning rate.
_FINETUNE_ITERATIONS = 500
_FINETUNE_RATE = 0.2


def train_from_recipe(
    source: str | Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    root: Path | None = None,
    resume: bool = False,
    max_minutes: float | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress = silent,
) -> TrainingResult:
    """`training.loop.train` with a recipe's file or name. overrides: "a.b=c" texts. threads: all cores by default.

    Raises InputError for a recipe that makes no sense, and what `train` raises."""
    config = read_config(source, overrides)
    place, _ = chosen_device(device), use_threads(threads)
    return train(config, out, root=root, resume=resume, max_minutes=max_minutes, device=place, progress=progress)


def plan_recipe(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    root: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress = silent,
) -> TrainingPlan:
    """What `train_from_recipe` would do, and what it costs. Raises as it does."""
    config = read_config(source, overrides)
    place, _ = chosen_device(device), use_threads(threads)
    return make_plan(config, root, place, progress)


def finetune(
    manifest: str | Path,
    weights: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    root: Path | None = None,
    resume: bool = False,
    max_minutes: float | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress = silent,
) -> TrainingResult:
    """Go on training weights of stepwarp on other scans, with the recipe that made them but for its data and length.

    A split "validation" of the manifest is validated on, if there is one. Raises InputError for weights that do not say
    how they were trained, and what `train` raises."""
    registrar = load_native_weights(weights)
    config = finetuning_config(registrar, manifest, weights, overrides)
    place, _ = chosen_device(device), use_threads(threads)
    return train(config, out, root=root, resume=resume, max_minutes=max_minutes, device=place, progress=progress)


def finetuning_config(
    registrar: Registrar, manifest: str | Path, weights: Path, overrides: Sequence[str] = ()
) -> TrainingConfig:
    """The recipe of a fine-tuning. InputError for weights whose card holds no recipe."""
    settings = registrar.card.training.get("settings")
    if not isinstance(settings, dict):
        raise InputError(f"{weights}: does not say how it was trained, so its training cannot be continued")
    values: dict[str, Any] = {**settings, "name": f"{registrar.card.name}-finetuned", "start": str(weights)}
    data, loss, optimiser, validation = (dict(values[key]) for key in ("data", "loss", "optimiser", "validation"))
    listed = read_manifest(manifest)
    labelled = _all_labelled(listed)
    data |= {"manifest": str(manifest), "split": "training", "held_out": [], "validation_split": _validation(listed)}
    data |= {"teacher": None, "synthesis": None, "labels": labelled}
    loss |= {"supervision": 0.0, "similarity_weight": loss["similarity_weight"] or 1.0}
    if validation["keep_best_by"] == "segmentation_dice":
        validation["keep_best_by"] = "mean_dice"
    if not labelled:
        validation["keep_best_by"], loss["dice"] = "loss", 0.0
    optimiser["lr"] *= _FINETUNE_RATE
    values |= {"data": data, "loss": loss, "optimiser": optimiser, "validation": validation}
    values["curriculum"] = [{"iterations": _FINETUNE_ITERATIONS}]
    config = changed_config(values, overrides, str(weights))
    assert isinstance(config, TrainingConfig)  # as that of the weights
    return config


def _validation(manifest: Manifest) -> str | None:
    name = "validation"
    return name if any(scan.split == name for scan in manifest.images.values()) else None


def _all_labelled(manifest: Manifest) -> bool:
    return all(scan.labels is not None for scan in manifest.images.values())
