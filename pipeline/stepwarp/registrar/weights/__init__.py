"""Weights in files: stepwarp's own, and those published for icon_registration and uniGradICON."""

from __future__ import annotations

from pathlib import Path

from stepwarp.errors import InputError
from stepwarp.registrar.weights.card import Card
from stepwarp.registrar.weights.icon import load_icon_weights, named_recipe
from stepwarp.registrar.weights.native import load_native_weights, save_native_weights
from stepwarp.registrar.weights.recipe import Recipe
from stepwarp.registrar.weights.registrar import Registrar
from stepwarp.registrar.weights.shipped import SHIPPED, SHIPPED_SEGMENTERS, weights_path

__all__ = [
    "SHIPPED",
    "SHIPPED_SEGMENTERS",
    "Card",
    "Recipe",
    "Registrar",
    "load_icon_weights",
    "load_native_weights",
    "load_weights",
    "named_recipe",
    "save_native_weights",
    "weights_path",
]


def load_weights(path: str | Path, recipe: str | None = None) -> Registrar:
    """The registrar in a checkpoint of stepwarp, icon_registration or uniGradICON, told apart by its content.

    recipe: how images were prepared for published weights, which do not say so themselves ("unigradicon" unless
    given); stepwarp's own do. Raises InputError for anything that is not such a file."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(f"{path}: cannot be read, {(error.strerror or str(error)).lower()}") from error
    if start[8:] == b"{":
        if recipe is not None:
            raise InputError(f"{path}: says itself how images are prepared for it. Leave out the recipe '{recipe}'.")
        return load_native_weights(path)
    return load_icon_weights(path, recipe or "unigradicon")
