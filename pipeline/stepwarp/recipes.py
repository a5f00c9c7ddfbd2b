"""Recipes: YAML files of settings, those of stepwarp in `configs/`, and changes to them as `--set` takes them."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from stepwarp.errors import InputError
from stepwarp.printable import counted


class Strict(BaseModel):
    """A frozen model of finite numbers that names the nearest key to one it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(f"unknown key '{key}'; {_nearest_key(cls, str(key))}")
        return values


def nearest(name: str, known: Iterable[str], what: str = "there are") -> str:
    """What to say to a name that there is not: the nearest one, or all."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean '{near[0]}'?" if near else f"{what} {', '.join(names)}"


def first_problem(error: ValidationError) -> str:
    """The first complaint of pydantic in one line, with its place and how many follow."""
    first, *others = error.errors(include_url=False)
    place = ".".join(str(part) for part in first["loc"])
    message = "is missing" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    more = f" (and {counted(len(others), 'other problem')})" if others else ""
    return f"{f'{place}: ' if place else ''}{message}{more}."


def configs_folder() -> Path:
    """Where the recipes are: beside the code in an installed wheel, at the top of the checkout otherwise."""
    packaged = Path(str(resources.files("stepwarp"))) / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def read_recipe(path: Path, holds: str) -> dict[str, Any]:
    """The settings in a YAML file, as plain data. holds: what they are of, in words.

    Numbers may be written as 5e-5, which YAML on its own takes for text. Raises InputError for what is no such file."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read, {(error.strerror or str(error)).lower()}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no settings. A recipe is a table of {holds}.")
    return values


def changed(values: dict[str, Any], changes: Iterable[str], model: type[BaseModel]) -> dict[str, Any]:
    """The settings of a model as plain data, each change made: "loss.grids.0.mm=4", its right side read as YAML.

    A place is written as in the file. Its first part may be left out where only one section of the recipe has the
    second. Raises InputError for a place that cannot be, and leaves it to the model to refuse keys and values."""
    values = copy.deepcopy(values)
    for change in changes:
        _change(values, change, model)
    return values


def _change(values: dict[str, Any], change: str, model: type[BaseModel]) -> None:
    place, equals, text = change.partition("=")
    keys = [key.strip() for key in place.split(".")]
    if not equals or not all(keys):
        raise InputError(f"--set {change}: write the place, '=' and the value, as in A.B=C")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"--set {change}: the value is no YAML ({' '.join(str(error).split())})") from error
    keys = [*_section(model, keys[0]), *keys]
    inner: Any = values
    for depth, key in enumerate(keys):
        if isinstance(inner, list):
            at: Any = _index(inner, key, change)
        elif isinstance(inner, dict):
            at = key
        else:
            raise InputError(f"--set {change}: '{'.'.join(keys[:depth])}' is {inner!r} and has nothing in it")
        if depth == len(keys) - 1:
            inner[at] = value
        elif isinstance(inner, dict) and inner.get(at) is None:
            # Where nothing stands the defaults hold, and one of them is to be changed.
            inner[at] = {}
        inner = inner[at]


def _section(model: type[BaseModel], key: str) -> list[str]:
    """The section of a recipe that a key was written without, if it was."""
    found = [name for name, keys in _sections(model).items() if key in keys]
    return found if key not in model.model_fields and len(found) == 1 else []


def _sections(model: type[BaseModel]) -> dict[str, list[str]]:
    """Of a model, the settings that are models themselves, with their keys."""
    kinds = {name: field.annotation for name, field in model.model_fields.items()}
    return {
        name: list(kind.model_fields)
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


def _nearest_key(model: type[BaseModel], key: str) -> str:
    inner = {key: f"{section}.{key}" for section, keys in _sections(model).items() for key in keys}
    if not difflib.get_close_matches(key, model.model_fields, 1):
        near = difflib.get_close_matches(key, inner, 1)
        if near:
            return f"did you mean '{inner[near[0]]}'?"
    return nearest(key, model.model_fields, "known keys:")


def _index(values: Sequence[Any], key: str, change: str) -> int:
    if not key.isdecimal() or int(key) >= len(values):
        raise InputError(f"--set {change}: '{key}' is no place in a list of {len(values)}, counted from 0")
    return int(key)


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.1 with two traps removed: 5e-5 is a number, and a key that stands twice is an error.

    YAML 1.1 wants a point and a sign in 5.0e-5, and takes anything else for text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
