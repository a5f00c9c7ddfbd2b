"""What a training is going to do, and what one of its iterations costs here, before hours are spent."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stepwarp.data import manifest as manifests
from stepwarp.data.pairs import training_pairs, validation_pairs
from stepwarp.data.scans import About
from stepwarp.geometry import Grid
from stepwarp.machine import peak_mib
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.registrar.steps import Step, describe
from stepwarp.registrar.steps.config import build
from stepwarp.training.config import Stage, TrainingConfig
from stepwarp.training.dataset import listed_pairs, scans_of, structures_of
from stepwarp.training.objective import TrainingObjective, train_only
from stepwarp.training.start import read_start


@dataclass(frozen=True)
class StageCost:
    """Of one stage. parameters: that it trains. seconds: of one iteration. peak_mib: of memory after it, on a GPU of
    what was allocated there, on a CPU of the whole process."""

    stage: Stage
    parameters: int
    seconds: float
    peak_mib: int


@dataclass(frozen=True)
class TrainingPlan:
    """A training before it begins. tree: the registrar. scans, pairs: to train on; validation_pairs: to judge by."""

    config: TrainingConfig
    tree: str
    grid: Grid
    scans: int
    pairs: int
    validation_pairs: int
    stages: tuple[StageCost, ...]

    @property
    def seconds(self) -> float:
        """Of all iterations, without the preparation of scans and without validation."""
        return sum(cost.stage.iterations * cost.seconds for cost in self.stages)


def make_plan(
    config: TrainingConfig, root: Path | None, device: torch.device | str = "cpu", progress: Progress = silent
) -> TrainingPlan:
    """Read the manifest, and time an iteration of every stage on images of noise. No scan is read, nothing written.

    Raises InputError for a manifest that cannot be trained with, or networks that do not fit the grid."""
    device = torch.device(device)
    settings, grid = config.data, config.data.grid()
    manifest = manifests.read_manifest(settings.manifest)
    root = manifests.data_root(root, settings.manifest)
    about = {scan.id: About(scan.id, scan.split, scan.subject) for scan in scans_of(manifest, settings, root, False)}
    listed = listed_pairs(manifest, root)
    training = training_pairs(settings, about, listed)
    judged = min(len(validation_pairs(settings, about, listed)), config.validation.pairs)
    read_start(config, grid.ndim)
    step = build(config.steps, grid.ndim)
    tree = describe(step, grid)
    structures = structures_of(config, manifest, root)
    objective = TrainingObjective(step, config, structures=structures).to(device).train()
    costs = []
    for number, stage in enumerate(config.curriculum):
        progress(ProgressReport("time the stages", number, len(config.curriculum)))
        costs.append(_cost(objective, number, stage, device))
    progress(ProgressReport("time the stages", len(costs), len(costs)))
    return TrainingPlan(config, tree, grid, len(training.scans()), len(training), judged, tuple(costs))


def _cost(objective: TrainingObjective, number: int, stage: Stage, device: torch.device) -> StageCost:
    """The second of two iterations: the first one also compiles and allocates."""
    batch = _noise(objective.config, device)
    step: Step = objective.step
    train_only(step, objective.config, stage)
    optimiser = torch.optim.Adam(step.parameters(), lr=1e-9)
    for _ in range(2):
        _wait(device)
        started = time.perf_counter()
        loss = objective(batch, number)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        _wait(device)
        seconds = time.perf_counter() - started
    trained = sum(weights.numel() for weights in step.parameters() if weights.requires_grad)
    return StageCost(stage, trained, seconds, peak_mib(device))


def _noise(config: TrainingConfig, device: torch.device) -> Mapping[str, Tensor]:
    shape = (config.data.batch, 1, *config.data.grid().shape)
    batch = {side: torch.rand(shape, device=device) for side in ("fixed", "moving")}
    if config.trains_with_labels:
        batch |= {f"{side}_labels": torch.randint(0, 100, shape, device=device) for side in ("fixed", "moving")}
    if config.loss.supervision:
        batch["teacher"] = torch.zeros(shape[0], len(shape) - 2, *shape[2:], device=device)
    return batch


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
