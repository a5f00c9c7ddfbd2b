"""Packages whose files are a list of choices: the name of a file is what a user types, the first line of what it says
is what the help prints of it. Names and help are known without importing what the files need."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TypeVar

Kind = TypeVar("Kind")
_HERE = Path(__file__).parent


@cache
def names(package: str) -> tuple[str, ...]:
    """Of the choices that a package such as "losses.similarities" holds, in alphabetical order."""
    return tuple(sorted(path.stem for path in _folder(package).glob("*.py") if not path.stem.startswith("_")))


@cache
def summaries(package: str) -> dict[str, str]:
    """Of each choice the first line of its docstring, without its full stop."""
    return {name: _summary(_folder(package) / f"{name}.py") for name in names(package)}


def listed(choices: Mapping[str, str]) -> str:
    """Choices with a few words on each, as the help has them."""
    return "; ".join(f"{name} ({about})" if about else name for name, about in choices.items())


def load(package: str, name: str, kind: type[Kind]) -> type[Kind]:
    """The one class of a kind that a choice's file defines."""
    module = import_module(f"stepwarp.{package}.{name}")
    found = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, kind) and each.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} defines {len(found)} classes of {kind.__name__}"
    return found[0]


def _summary(file: Path) -> str:
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return said.partition("\n")[0].rstrip(".")


def _folder(package: str) -> Path:
    return _HERE.joinpath(*package.split("."))
