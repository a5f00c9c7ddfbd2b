"""Training a registrar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepwarp.geometry import Grid
from stepwarp.registrar.steps import Step, describe
from stepwarp.registrar.steps.config import build
from stepwarp.registrar.weights import Card, save_native_weights
from stepwarp.training.config import LossGrid, TrainingConfig
from stepwarp.training.dataset import Dataset
from stepwarp.training.objective import TrainingObjective, train_only
from stepwarp.training.start import TrainingStart
from stepwarp.training.trainee import Trainee
from stepwarp.training.validation import Validation, validate

_DIMS = 3


class TrainedRegistrar(Trainee):
    """The registrar of a recipe. ignore_labels, structures: as of `TrainingObjective`."""

    module: Step
    objective: TrainingObjective

    def __init__(
        self,
        config: TrainingConfig,
        start: TrainingStart | None = None,
        ignore_labels: Iterable[int] = (),
        structures: Mapping[int, int] | None = None,
    ) -> None:
        self.config = config
        self.module = build(config.steps, _DIMS)
        if start is not None:
            self.module.load_state_dict(start.state, strict=False)  # a segmenter may be missing
        self.labels_used = config.trains_with_labels or (start is not None and start.labels_used)
        self.ignore_labels = tuple(ignore_labels)
        self.objective = TrainingObjective(self.module, config, self.ignore_labels, structures)

    def look_at(self, data: Dataset) -> None:
        self.recipe = data.recipe

    def enter(self, stage: int) -> None:
        train_only(self.module, self.config, self.config.curriculum[stage])

    def judged(self, module: nn.Module, samples: Sequence[Mapping[str, Any]], device: torch.device) -> Validation:
        objective = self.objective
        judging = objective.grid, objective.similarity, self.ignore_labels
        return validate(module, samples, *judging, device, structures=objective.structures)

    def score(self, measures: Mapping[str, float]) -> float:
        by = self.config.validation.keep_best_by
        return -measures[by] if by == "loss" else measures[by]

    def save(self, path: Path, module: nn.Module, card: Card) -> None:
        save_native_weights(path, self.config.steps, module.state_dict(), self.recipe, card, overwrite=True)

    def described(self, grid: Grid) -> str:
        return describe(self.module, grid)

    def losses(self) -> str:
        loss = self.config.loss
        ways = ", both directions" if loss.both_ways else ""
        return f"{_in_words(loss.grids)}, {loss.similarity.kind} and {loss.regularity}{ways}"

    def stage_in_words(self, stage: int) -> tuple[str, str, str]:
        chosen = self.config.curriculum[stage]
        if chosen.segmenter:
            return "none", "0", "labels (segmenter)"
        return str(chosen.steps or "all"), str(chosen.frozen), _in_words(chosen.grids or self.config.loss.grids)


def _in_words(grids: Iterable[LossGrid]) -> str:
    return " + ".join(f"{grid.weight:g} x {grid.mm:g} mm" for grid in grids)
