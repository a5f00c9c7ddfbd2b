"""Files of weights that say themselves what they hold: safetensors with a header in JSON, checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.files.atomic import atomic_path
from stepwarp.files.json import parse_json
from stepwarp.files.utf8 import utf8_path
from stepwarp.recipes import Strict

#: The entry of the safetensors' metadata that holds the header as JSON.
_ENTRY = "stepwarp"

Said = TypeVar("Said", bound=Strict)


def write_checkpoint(path: Path, header: Strict, state: Mapping[str, Tensor], overwrite: bool) -> None:
    """Write tensors and what they are, atomically. Raises OutputError as `atomic_path`."""
    with atomic_path(path, overwrite) as temporary:
        safetensors.torch.save_file(dict(state), temporary, {_ENTRY: header.model_dump_json()})


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file says of itself, as it stands there, and its tensors.

    Raises InputError for a file that is damaged, or that says nothing of itself."""
    try:
        with utf8_path(path) as plain, safetensors.safe_open(plain, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is no safetensors file, or damaged ({error})") from error
    if _ENTRY not in metadata:
        raise InputError(f"{path}: does not say which network it holds. It was not written by stepwarp.")
    said = parse_json(metadata[_ENTRY], f"{path}, header")
    if not isinstance(said, dict):
        raise InputError(f"{path}: its header cannot be understood: it is no table. The file is forged or damaged.")
    return said, state


def understood(said: dict[str, Any], kind: type[Said], path: Path) -> Said:
    """A header as the model of it; InputError for another one."""
    try:
        return kind.model_validate(said)
    except (ValidationError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"{path}: its header cannot be understood. Is it of a later version? {what}") from error
