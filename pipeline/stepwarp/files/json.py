"""JSON that a user gives: read in one way everywhere, and refused where it could be read in two."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from stepwarp.errors import ForeignError, InputError
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
