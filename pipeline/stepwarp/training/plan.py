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
from stepwarp.training.config import AnyTraining, TrainingConfig
from stepwarp.training.dataset import judged_pairs, listed_pairs, scans_of, structures_of
from stepwarp.training.settings import TrainingRecipe
from stepwarp.training.start import read_start
from stepwarp.training.trainee import Trainee
from stepwarp.training.trainees import trainee_of


@dataclass(frozen=True)
class StageCost:
    """Of one stage. steps, frozen, losses: which steps take part, how many of them rest, what they are judged on.
    parameters: that it trains. seconds: of one iteration. peak_mib: of memory after it, on a GPU of what was allocated
    there, on a CPU of the whole process."""

    iterations: int
    steps: str
    frozen: str
    losses: str
    parameters: int
    seconds: float
    peak_mib: int


@dataclass(frozen=True)
class TrainingPlan:
    """A training before it begins. tree: what is trained. losses: by what, in words. scans, pairs: to train on;
    validation_pairs: to judge by."""

    config: TrainingRecipe
    tree: str
    losses: str
    grid: Grid
    scans: int
    pairs: int
    validation_pairs: int
    stages: tuple[StageCost, ...]

    @property
    def seconds(self) -> float:
        """Of all iterations, without the preparation of scans and without validation."""
        return sum(cost.iterations * cost.seconds for cost in self.stages)


def make_plan(
    config: AnyTraining, root: Path | None, device: torch.device | str = "cpu", progress: Progress = silent
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
    judged = judged_pairs(config, validation_pairs(settings, about, listed))
    trainee = trainee_of(config, read_start(config, grid.ndim), structures=structures_of(config, manifest, root))
    trainee.objective.to(device).train()
    costs = []
    for number in range(len(config.curriculum)):
        progress(ProgressReport("time the stages", number, len(config.curriculum)))
        costs.append(_cost(trainee, config, number, device))
    progress(ProgressReport("time the stages", len(costs), len(costs)))
    pairs = len(training.scans()), len(training), judged
    return TrainingPlan(config, trainee.described(grid), trainee.losses(), grid, *pairs, tuple(costs))


def _cost(trainee: Trainee, config: AnyTraining, number: int, device: torch.device) -> StageCost:
    """The second of two iterations: the first one also compiles and allocates."""
    batch, module = _noise(config, device), trainee.module
    trainee.enter(number)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-9)
    for _ in range(2):
        _wait(device)
        started = time.perf_counter()
        loss = trainee.objective(batch, number, 0)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        _wait(device)
        seconds = time.perf_counter() - started
    trained = sum(weights.numel() for weights in module.parameters() if weights.requires_grad)
    words = trainee.stage_in_words(number)
    return StageCost(config.curriculum[number].iterations, *words, trained, seconds, peak_mib(device))


def _noise(config: AnyTraining, device: torch.device) -> Mapping[str, Tensor]:
    shape = (config.data.batch, 1, *config.data.grid().shape)
    batch = {side: torch.rand(shape, device=device) for side in ("fixed", "moving")}
    if config.trains_with_labels:
        batch |= {f"{side}_labels": torch.randint(0, 100, shape, device=device) for side in ("fixed", "moving")}
    if isinstance(config, TrainingConfig) and config.loss.supervision:
        batch["teacher"] = torch.zeros(shape[0], len(shape) - 2, *shape[2:], device=device)
    return batch


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
