"""Checkpoints of icon_registration and uniGradICON: `.trch` files of their `regis_net.state_dict()`.

Such a file holds tensors and their names, and the tree of steps can be read from the names: `netPhi` and `netPsi` are
a TwoStepRegistration, `net` a DownsampleRegistration or, above a U-Net, a FunctionFromVectorField. It does not say how
images were prepared, so that is chosen by name. (A network of theirs in which only functions differ, not weights, has
the same names: SquaringVelocityField, or the older `tallUNet`, would be taken for these.)"""

from __future__ import annotations

import difflib
import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.files.nifti import check_zip
from stepwarp.networks.config import IconUNetConfig
from stepwarp.registrar.steps.config import StepConfig
from stepwarp.registrar.steps.types.downsampled import DownsampledConfig
from stepwarp.registrar.steps.types.two_step import TwoStepConfig
from stepwarp.registrar.steps.types.vector_field import VectorFieldConfig
from stepwarp.registrar.weights.assemble import assemble
from stepwarp.registrar.weights.card import Card
from stepwarp.registrar.weights.recipe import FullExtent, Maximum, Modality, Quantiles, Recipe, Window
from stepwarp.registrar.weights.registrar import Registrar

_UNIGRADICON = FullExtent(shape=(175, 175, 175))
#: How images are prepared, by the names under which the weights were published. "unigradicon" serves multiGradICON
#: too, and knows CT by its values; the two after it are for images where that may go wrong.
RECIPES = {
    "unigradicon": Recipe(intensities=Modality(), grid=_UNIGRADICON),
    "unigradicon-mri": Recipe(intensities=Quantiles(), grid=_UNIGRADICON),
    "unigradicon-ct": Recipe(intensities=Window(low=-1000, high=1000), grid=_UNIGRADICON),
    "gradicon-brain": Recipe(intensities=Maximum(to=0.9), grid=FullExtent(shape=(130, 155, 130))),
}
#: What wraps a registration network there: the loss, and data parallel training.
_WRAPPERS = ("module.", "regis_net.")
#: Older files hold the coordinates that the network was made for.
_COORDINATES = "identity_map"
#: No name of theirs is longer. A file that is no archive begins with so many pickles, before the numbers.
_LONGEST_NAME, _PICKLES = 1000, 5
#: Deeper than any of their trees.
_DEEPEST = 16


def load_icon_weights(path: str | Path, recipe: str | Recipe = "unigradicon") -> Registrar:
    """The network in a checkpoint of icon_registration or uniGradICON, with the recipe given or named.

    Nothing is executed that the file may contain. Raises InputError for a file that is damaged or of something else."""
    path = Path(path)
    chosen = recipe if isinstance(recipe, Recipe) else named_recipe(recipe)
    state = {_unwrapped(name): tensor for name, tensor in _read(path).items()}
    state = {name: tensor for name, tensor in state.items() if name.split(".")[-1] != _COORDINATES}
    config, weights = _tree(state, path, 0)
    dims = next(tensor.ndim - 2 for name, tensor in weights.items() if name.endswith("lastConv.weight"))
    if dims not in (1, 2, 3):
        raise InputError(f"{path}: its convolutions have {dims} axes, and images have one to three")
    card = Card(name=path.name, data="as published with the weights", licence="as published with the weights")
    return Registrar(assemble(config, dims, weights, path), chosen, card, config)


def named_recipe(name: str) -> Recipe:
    """The recipe of published weights. Raises InputError, with the nearest name, where there is none of that name."""
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(RECIPES)}"
    raise InputError(f"no published weights are prepared for as '{name}'; {hint}")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        _check_names(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors, or is damaged. Only the state_dict of a network is read."
        ) from error
    except Exception as error:  # torch raises whatever its unpickler runs into
        raise InputError(f"{path}: cannot be read as the weights of a network ({error})") from error
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: holds no weights. Only the state_dict of a network is read.")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()):
        raise InputError(f"{path}: holds more than tensors. Only the state_dict of a network is read.")
    return state


def _check_names(path: Path) -> None:
    """InputError for a name that no network has: torch looks through it for the words of a message, for hours."""
    if zipfile.is_zipfile(path):
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            streams: list[BinaryIO] = [
                io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith("/data.pkl")
            ]
        count = 1
    else:
        streams, count = [path.open("rb")], _PICKLES
    for stream in streams:
        with stream:
            for _ in range(count):
                texts = (value for _, value, _ in pickletools.genops(stream) if isinstance(value, str | bytes))
                if any(len(text) > _LONGEST_NAME for text in texts):
                    raise InputError(f"{path}: holds a name of more than {_LONGEST_NAME} letters. It is damaged.")


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _tree(state: dict[str, Tensor], path: Path, depth: int) -> tuple[StepConfig, dict[str, Tensor]]:
    """The steps that these names speak of, and the tensors under our names."""
    heads = {name.split(".")[0] for name in state}
    if heads == {"netPhi", "netPsi"} and depth < _DEEPEST:
        first, of_first = _tree(_under("netPhi", state), path, depth + 1)
        second, of_second = _tree(_under("netPsi", state), path, depth + 1)
        weights = _over("first", of_first) | _over("second", of_second)
        return TwoStepConfig(steps=(first, second), lazy=True, outside="border"), weights
    if heads == {"net"} and depth < _DEEPEST:
        inner = _under("net", state)
        if "lastConv.weight" in inner:
            return VectorFieldConfig(net=_unet(inner, path), unit="extent"), _over("net", inner)
        step, weights = _tree(inner, path, depth + 1)
        return DownsampledConfig(inner=step, corner_aligned=True), _over("step", weights)
    some = ", ".join(sorted(heads)[:4])
    raise InputError(f"{path}: '{some}' are no steps of icon_registration that can be read here")


def _unet(state: dict[str, Tensor], path: Path) -> IconUNetConfig:
    levels = range(sum(name.startswith("downConvs.") and name.endswith(".weight") for name in state))
    try:
        down = [state[f"downConvs.{n}.weight"].shape[0] for n in levels]
        up = [state[f"upConvs.{n}.weight"].shape[1] for n in levels]
        return IconUNetConfig(down=(state["downConvs.0.weight"].shape[1], *down), up=tuple(up))
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{path}: holds another U-Net than those of GradICON (tallUNet2)") from error


def _under(head: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{head}."): tensor for name, tensor in state.items() if name.startswith(f"{head}.")}


def _over(head: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{head}.{name}": tensor for name, tensor in state.items()}
