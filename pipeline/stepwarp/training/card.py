"""The card of weights for use: what they are, and where they are from."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from stepwarp.data.manifest import Manifest
from stepwarp.machine import device_name, versions
from stepwarp.printable import counted
from stepwarp.registrar.weights import Card
from stepwarp.registrar.weights.card import Expected
from stepwarp.training.settings import TrainingRecipe

_PACKAGES = ("stepwarp", "torch", "monai", "numpy", "lightning-fabric")


def card_of(
    config: TrainingRecipe,
    manifest: Manifest,
    *,
    labels_used: bool,
    metrics: Mapping[str, float],
    expects: Mapping[Expected, tuple[float, float]],
    iteration: int,
    seconds: float,
    machine: str,
) -> Card:
    """The model card of weights.

    labels_used: whether the weights depend on label maps, beside images that were synthesised from them.
    metrics, expects: of the validation, for the card; none where nothing is held out.
    seconds: of training until these weights were reached. machine: what it ran on, without names of hosts."""
    settings = config.model_dump(mode="json")
    settings["data"]["cache"] = None  # a place on this machine
    settings["data"]["manifest"] = manifest.name
    settings["start"] = config.start and Path(config.start).name
    return Card(
        name=config.name,
        data=f"{manifest.name}, split '{config.data.split}'"
        + (f" without {', '.join(config.data.held_out)}" if config.data.held_out else "")
        + (", images synthesised from its label maps" if config.data.synthesis is not None else ""),
        licence=manifest.licence or "not stated by the manifest",
        labels_used=labels_used or config.data.synthesis is not None,
        training={
            "settings": settings,
            "iteration": iteration,
            "versions": {"python": platform.python_version(), **versions(_PACKAGES)},
        },
        seed=config.seed,
        seconds=round(seconds, 1),
        machine=machine,
        metrics={name: float(value) for name, value in metrics.items() if math.isfinite(value)},
        expects=dict(expects),
        notes=config.description,
    )


def machine_name(device: torch.device, processes: int) -> str:
    """The kind of processor that a training ran on."""
    if device.type == "cuda":
        name = device_name(device)
    else:
        name = f"{platform.processor() or platform.machine()} CPU, {counted(torch.get_num_threads(), 'thread')}"
    return f"{processes} x {name}" if processes > 1 else name
