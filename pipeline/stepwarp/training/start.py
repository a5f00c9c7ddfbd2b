"""What a training begins with, where that is not chance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.registrar.steps.config import build
from stepwarp.registrar.weights import load_weights, weights_path
from stepwarp.training.config import TrainingConfig


@dataclass(frozen=True, eq=False)
class TrainingStart:
    """state: of the recipe's steps, or of a part of them. labels_used: whether label maps are in it."""

    state: dict[str, Tensor]
    labels_used: bool


def read_start(config: TrainingConfig, dims: int) -> TrainingStart | None:
    """The weights that a recipe begins with, if it names some: of its steps, or of those within its segmented ones.

    Raises InputError for weights that are not there or cannot be read, and for those of other steps."""
    if config.start is None:
        return None
    path = weights_path(config.start)
    registrar = load_weights(path)
    state, wanted = registrar.step.state_dict(), build(config.steps, dims).state_dict()
    if config.segmenter is not None and not state.keys() & wanted.keys():
        state = {f"step.{name}": value for name, value in state.items()}
        wanted = {name: value for name, value in wanted.items() if name.startswith("step.")}
    shapes = [{name: value.shape for name, value in each.items()} for each in (wanted, state)]
    if shapes[0] != shapes[1]:
        raise InputError(f"start: {path} holds other steps than the recipe's. Give the recipe the steps that it holds.")
    return TrainingStart(state, registrar.card.labels_used)
