"""stepwarp's own checkpoints: safetensors whose header says what network it is, what it wants, and where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.files.atomic import atomic_path
from stepwarp.files.json import parse_json
from stepwarp.files.utf8 import utf8_path
from stepwarp.recipes import Strict
from stepwarp.registrar.steps.config import StepConfig
from stepwarp.registrar.weights.assemble import assemble
from stepwarp.registrar.weights.card import Card
from stepwarp.registrar.weights.recipe import Recipe
from stepwarp.registrar.weights.registrar import Registrar

#: The entry of the safetensors' metadata that holds the header as JSON.
_ENTRY = "stepwarp"


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
    header = Header(dims=dims, step=config, recipe=recipe, card=card)
    with atomic_path(path, overwrite) as temporary:
        safetensors.torch.save_file(tensors, temporary, {_ENTRY: header.model_dump_json()})


def load_native_weights(path: str | Path) -> Registrar:
    """The registrar in a checkpoint of stepwarp.

    Raises InputError for a file that is damaged, that says nothing of itself, or whose tensors are not what it says."""
    path = Path(path)
    try:
        with utf8_path(path) as plain, safetensors.safe_open(plain, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is no safetensors file, or damaged ({error})") from error
    if _ENTRY not in metadata:
        raise InputError(f"{path}: does not say which network it holds. It was not written by stepwarp.")
    try:
        header = Header.model_validate(parse_json(metadata[_ENTRY], f"{path}, header"))
    except (ValidationError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"{path}: its header cannot be understood. Is it of a later version? {what}") from error
    return Registrar(assemble(header.step, header.dims, state, path), header.recipe, header.card, header.step)
