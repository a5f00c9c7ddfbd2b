"""JSON: what a user gives is read in one way everywhere, and refused where it could be read in two; what is ours is
written whole, and valid."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from stepwarp.errors import ForeignError, InputError
from stepwarp.files.atomic import write_text
from stepwarp.files.tables import read_text


def read_json(path: Path, largest: int, what: str) -> Any:
    """The content of a file that should be a `what`; InputError as `parse_json`, and if it is larger than `largest`
    bytes."""
    return parse_json(read_text(path, largest, what), str(path))


def parse_json(text: str, where: str) -> Any:
    """The content of a text. InputError, which names `where`, if it is not JSON, and for a key that is there twice: one
    reader keeps the first, another the last."""
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: is not JSON, or is cut off, at line {error.lineno} ({error.msg}).") from None
    except _TwiceError as error:
        raise InputError(f"{where}: the key '{error}' is there twice. Keep one of them.") from None
    except (RecursionError, ValueError):
        raise InputError(
            f"{where}: is not JSON that can be read: it is nested too deeply, or its numbers are too long."
        ) from None


def write_json(path: Path, content: Any, overwrite: bool = False) -> None:
    """Write what JSON can hold, keys of a dictionary as text, numbers that are not finite as null; errors as
    `atomic_path`."""
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", overwrite=overwrite)


def read_record(path: Path) -> dict[str, Any]:
    """The object in a file that a run keeps for itself; InputError if there is none in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}). Remove it, and it is made again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a JSON object. Remove it, and it is made again.")
    return content


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write such a file, in the place of an older one, with the folders to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content, overwrite=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def refuse_foreign_json(path: Path, keys: Collection[str], what: str) -> None:
    """ForeignError for a file that is there and is no `what` by the keys that every one of them has."""
    if not os.path.lexists(path):
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not (isinstance(content, dict) and content.keys() >= set(keys)):
        raise ForeignError(f"{path}: is there already, and is no {what}. Choose another name, or move it away.")


class _TwiceError(ValueError):
    """A key that an object has twice."""


def _without_doubles(items: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(items)
    if len(content) < len(items):
        keys = [key for key, _ in items]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return content
