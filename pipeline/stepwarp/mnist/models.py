"""The networks of the study: how each is made, what it is trained on, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from stepwarp.errors import InputError
from stepwarp.files import atomic_path
from stepwarp.mnist.config import Settings, Training, Variation
from stepwarp.mnist.data import SIDE, Digits
from stepwarp.mnist.networks import Equivariant
from stepwarp.mnist.training import OUTSIDE
from stepwarp.networks.mlp import FCNet
from stepwarp.probes.statistics import jsonable
from stepwarp.registrar.steps import Repeat, Step, TwoStep, VectorField

#: The digits of the original experiment, and those that it was not trained on.
TRAINED, STRANGE = 5, 7
ANY = tuple(range(10))
TIED = "fives"


@dataclass(frozen=True)
class Model:
    """A network of the study. about: one line for people. digits: trained on pairs of one class out of these.

    kind: "tied", the same weights at every step; "separate", weights of its own for every step; "one step", trained
    with a single step and then repeated; "equivariant", tied, but a network that treats all places alike."""

    name: str
    about: str
    digits: tuple[int, ...] = (TRAINED,)
    kind: Literal["tied", "separate", "one step", "equivariant"] = "tied"

    def training(self, settings: Settings, share: float) -> Training:
        """How it is trained: the study's settings, or `share` of their iterations."""
        whole = settings.equivariant.of(settings.training) if self.kind == "equivariant" else settings.training
        return Variation(iterations=max(1, round(share * whole.iterations))).of(whole)

    def untrained(self, settings: Settings, seed: int) -> Step:
        """The step as it is trained, which finds the identity; random in its inner layers."""
        torch.manual_seed(seed)
        if self.kind == "separate":
            return _in_a_row([_field(self._net(settings)) for _ in range(settings.steps)])
        return Repeat(_field(self._net(settings)), 1 if self.kind == "one step" else settings.steps, outside=OUTSIDE)

    def as_used(self, step: Step, settings: Settings) -> Step:
        """The trained step as it is used: the one that was trained alone is repeated like the others."""
        if self.kind == "one step":
            assert isinstance(step, Repeat)
            step.n = settings.steps
        return step

    def _net(self, settings: Settings) -> nn.Module:
        return Equivariant() if self.kind == "equivariant" else FCNet(SIDE, settings.hidden)


MODELS = {
    model.name: model
    for model in (
        Model(TIED, "trained on 5s: the original set-up"),
        Model("sevens", "the same, trained on 7s", (STRANGE,)),
        Model("all digits", "the same, trained on pairs of all ten digits, both of a pair alike", ANY),
        Model("separate", "nine steps with weights of their own, trained on 5s", kind="separate"),
        Model("one step", "trained on 5s with a single step, then repeated", kind="one step"),
        Model("equivariant", "convolutions, the same everywhere in the image, trained on 5s", kind="equivariant"),
    )
}


def digits_of(model: Model, digits: Digits) -> Digits:
    """What of the digits a network is trained on."""
    return digits if model.digits == ANY else digits.of(*model.digits)


def save(path: Path, module: nn.Module, about: Mapping[str, Any]) -> None:
    """Write weights with what is to be known about them, atomically, in place of older ones."""
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    with atomic_path(path, overwrite=True) as temporary:
        save_file(state, str(temporary), {"about": json.dumps(jsonable(about))})


def load(path: Path, module: nn.Module) -> dict[str, Any]:
    """Read weights into a module, which then is for use only; returns what is known about them. InputError for a file
    that is missing, damaged, or of another network."""
    try:
        with safe_open(str(path), "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["about"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        module.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: holds no weights of this network ({reason}). Train them again.") from error
    module.eval().requires_grad_(False)
    return about


def _field(net: nn.Module) -> VectorField:
    return VectorField(net, unit="extent")


def _in_a_row(steps: list[VectorField]) -> Step:
    whole: Step = steps[0]
    for step in steps[1:]:
        whole = TwoStep(whole, step, outside=OUTSIDE)
    return whole
