"""What a training begins with, where that is not chance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.registrar.steps.config import build
from stepwarp.registrar.weights import load_weights, weights_path
from stepwarp.segment import load_segmenter
from stepwarp.training.config import AnyTraining, TrainingConfig
from stepwarp.training.segmenter_config import SegmenterTraining


@dataclass(frozen=True, eq=False)
class TrainingStart:
    """state: of the recipe's network, or of a part of it. labels_used: whether label maps are in it."""

    state: dict[str, Tensor]
    labels_used: bool


def read_start(config: AnyTraining, dims: int) -> TrainingStart | None:
    """The weights that a recipe begins with, if it names some: of its steps, or of those within its segmented ones; or
    of its segmenter.

    Raises InputError for weights that are not there or cannot be read, and for those of other steps or structures."""
    if config.start is None:
        return None
    if isinstance(config, SegmenterTraining):
        return _of_segmenter(config, config.start)
    return _of_registrar(config, config.start, dims)


def _of_registrar(config: TrainingConfig, source: str, dims: int) -> TrainingStart:
    path = weights_path(source)
    registrar = load_weights(path)
    state, wanted = registrar.step.state_dict(), build(config.steps, dims).state_dict()
    if config.segmenter is not None and not state.keys() & wanted.keys():
        state = {f"step.{name}": value for name, value in state.items()}
        wanted = {name: value for name, value in wanted.items() if name.startswith("step.")}
    shapes = [{name: value.shape for name, value in each.items()} for each in (wanted, state)]
    if shapes[0] != shapes[1]:
        raise InputError(f"start: {path} holds other steps than the recipe's. Give the recipe the steps that it holds.")
    return TrainingStart(state, registrar.card.labels_used)


def _of_segmenter(config: SegmenterTraining, source: str) -> TrainingStart:
    header, wanted = (found := load_segmenter(source)).header, config.segmenter
    held, wanted_ids = ([each.id for each in structures] for structures in (header.structures, wanted.structures))
    if held != wanted_ids:
        raise InputError(f"start: {source} knows the structures {held}, in this order, and not those of the recipe")
    if (header.channels, header.convolutions) != (wanted.channels, wanted.convolutions):
        raise InputError(
            f"start: {source} has channels {list(header.channels)} and {header.convolutions} convolutions. Give the "
            "recipe those."
        )
    return TrainingStart(found.network.state_dict(), True)
