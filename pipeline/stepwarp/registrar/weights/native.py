"""stepwarp's own checkpoints: safetensors whose header says what network it is, what it wants, and where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.recipes import Strict
from stepwarp.registrar.steps.config import StepConfig
from stepwarp.registrar.weights.assemble import assemble
from stepwarp.registrar.weights.card import Card
from stepwarp.registrar.weights.checkpoint import read_checkpoint, understood, write_checkpoint
from stepwarp.registrar.weights.recipe import Recipe
from stepwarp.registrar.weights.registrar import Registrar


class Header(Strict):
    """What a checkpoint says of itself. dims: axes of the images."""

    version: Literal[1] = 1
    dims: Literal[1, 2, 3]
    step: StepConfig
    recipe: Recipe
    card: Card


def save_native_weights(
    path: str | Path,
    config: StepConfig,
    state: Mapping[str, Tensor],
    recipe: Recipe,
    card: Card,
    dims: Literal[1, 2, 3] = 3,
    overwrite: bool = False,
) -> None:
    """Write the `state_dict` of the step that `config` builds, atomically. Half precision halves the file.

    Raises InputError for a state that does not belong to the config, and OutputError as `atomic_path`."""
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    assemble(config, dims, tensors, path)
    write_checkpoint(path, Header(dims=dims, step=config, recipe=recipe, card=card), tensors, overwrite)


def load_native_weights(path: str | Path) -> Registrar:
    """The registrar in a checkpoint of stepwarp.

    Raises InputError for a file that is damaged, that says nothing of itself, or whose tensors are not what it says."""
    path = Path(path)
    said, state = read_checkpoint(path)
    if said.get("kind") == "segmenter":
        raise InputError(
            f"{path}: names the structures of one image, and registers nothing. It is for stepwarp segment, and for "
            "--strip and --structures of register; for --weights give a network of stepwarp train, or brain-t1."
        )
    header = understood(said, Header, path)
    return Registrar(assemble(header.step, header.dims, state, path), header.recipe, header.card, header.step)
