"""What a training trains, and all that the loop, the plan and the checkpoints ask of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepwarp.geometry import Grid
from stepwarp.registrar.weights import Card
from stepwarp.training.dataset import Dataset
from stepwarp.training.validation import Validation


class Trainee(ABC):
    """A network with its loss.

    module: whose weights are trained, averaged and kept. objective: a module around it, (batch, number of the stage,
    seed) -> the terms of the loss by their names, and their sum under "loss"; a batch is one of `PairLoader`.
    labels_used: whether the weights depend on label maps."""

    module: nn.Module
    objective: nn.Module
    labels_used: bool

    @abstractmethod
    def look_at(self, data: Dataset) -> None:
        """Take from the data what weights for use have to say of them. InputError where it can learn nothing there."""

    @abstractmethod
    def enter(self, stage: int) -> None:
        """Let gradients reach the weights that a stage trains, and no others."""

    @abstractmethod
    def judged(self, module: nn.Module, samples: Sequence[Mapping[str, Any]], device: torch.device) -> Validation:
        """What weights are worth: a module like the trained one, on samples of `Dataset.validation`, one or more."""

    @abstractmethod
    def score(self, measures: Mapping[str, float]) -> float:
        """By which of two validations the better one is kept: larger is better."""

    @abstractmethod
    def save(self, path: Path, module: nn.Module, card: Card) -> None:
        """Write weights for use, in place of those of an earlier iteration; after `look_at`."""

    @abstractmethod
    def described(self, grid: Grid) -> str:
        """What it consists of, for images on a grid: lines."""

    @abstractmethod
    def losses(self) -> str:
        """What it learns by, in words."""

    @abstractmethod
    def stage_in_words(self, stage: int) -> tuple[str, str, str]:
        """Which steps take part in a stage, how many of them rest, and what it is judged on."""
