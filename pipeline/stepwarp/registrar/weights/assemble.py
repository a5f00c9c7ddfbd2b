"""Steps from settings and tensors that came from a file: nothing is believed before it fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from stepwarp.errors import InputError
from stepwarp.registrar.steps import Step
from stepwarp.registrar.steps.config import MOST_STEPS, StepConfig, build

Module = TypeVar("Module", bound=nn.Module)


def assemble(config: StepConfig, dims: int, state: Mapping[str, Tensor], path: Path) -> Step:
    """The step of these settings with these weights, on the CPU, in single precision, in evaluation mode.

    Raises InputError, naming the file, where a tensor is missing, superfluous, of another shape, or not finite."""
    if config.count > MOST_STEPS:
        raise InputError(
            f"{path}: asks for {config.count} steps one after the other, and no network takes more than "
            f"{MOST_STEPS}. The file is forged or damaged."
        )
    try:
        # On no device: nothing is allocated for a header that asks for more than the file holds.
        with torch.device("meta"):
            step = build(config, dims)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    return filled(step, state, path)


def filled(network: Module, state: Mapping[str, Tensor], path: Path) -> Module:
    """A network that is on no device yet, with these weights, as `assemble` gives it and with its errors."""
    wanted = network.state_dict()
    _check_names(set(wanted), set(state), path)
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape or tensor.is_floating_point() != wanted[name].is_floating_point():
            raise InputError(
                f"{path}: '{name}' has the shape {tuple(tensor.shape)} and type {tensor.dtype}, and the network needs"
                f" {tuple(wanted[name].shape)} and {wanted[name].dtype}. The file is of another network."
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: '{name}' holds values that are not numbers. The file is damaged.")
    network.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in state.items()}, assign=True)
    return network.eval()


def _check_names(wanted: set[str], given: set[str], path: Path) -> None:
    for what, names in (("lacks", wanted - given), ("holds the unknown", given - wanted)):
        if names:
            more = f" and {len(names) - 1} others" if len(names) > 1 else ""
            raise InputError(f"{path}: {what} '{min(names)}'{more}. The file is of another network, or damaged.")
