"""The study's folder: one file for every piece of work, so that an interrupted study goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stepwarp.errors import InputError, OutputError
from stepwarp.files import atomic_path
from stepwarp.files.json import write_json as write_plain
from stepwarp.files.lock import refuse_links
from stepwarp.probes.statistics import jsonable

STUDY = "study.json"
MODELS, PROBES, RUNS, FIGURES = "models", "probes", "runs", "figures"
SUMMARY, TABLE, PAGE = "summary.json", "table.md", "mnist.html"
_PARTS = (MODELS, PROBES, RUNS, FIGURES)
#: What files of the parts are.
_SUFFIXES = (".safetensors", ".npz", ".json", ".png", ".svg", ".gif")


def claim(out: Path, about: Mapping[str, Any], force: bool) -> None:
    """Make the folder, or go on in it if it holds a study of the same settings and digits.

    force: remove a study of others. OutputError where there is one, and for a folder that cannot be made."""
    wanted = json.loads(json.dumps(jsonable(about)))
    path = out / STUDY
    if path.exists():
        if read_json(path) == wanted:
            return
        if not _is_study(path):
            raise OutputError(f"{path}: is not that of a study of digits. Choose another --out, or move it away.")
        if not force:
            raise OutputError(
                f"{path}: was made with other settings or digits. Choose another --out, or replace it with --force."
            )
        for part in _PARTS:
            _refuse_foreign(out / part)
        for part in _PARTS:
            shutil.rmtree(out / part, ignore_errors=True)
    else:
        present = next((part for part in _PARTS if os.path.lexists(out / part)), None)
        if present is not None:
            raise OutputError(f"{out / present}: is there already, and no {STUDY} beside it. Choose another --out.")
    try:
        for part in _PARTS:
            (out / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made ({error.strerror}). Choose another --out.") from error
    write_json(path, wanted)


def _refuse_foreign(part: Path) -> None:
    refuse_links(part)
    for path in sorted(part.iterdir()) if part.is_dir() else ():
        if path.is_dir() or path.suffix not in _SUFFIXES:
            raise OutputError(f"{path}: is no part of the study that is to be replaced. Move it away.")


def _is_study(path: Path) -> bool:
    content = read_json(path)
    return isinstance(content, dict) and {"settings", "scale", "digits"} <= content.keys()


def write_json(path: Path, values: Any) -> None:
    """Plain data, arrays among it, in place of an older file; what is not finite becomes null."""
    write_plain(path, jsonable(values), overwrite=True)


def read_json(path: Path) -> Any:
    """What `write_json` wrote. InputError for a file that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Delete it, and it is made again.") from error


def write_arrays(path: Path, found: Mapping[str, Any]) -> None:
    """Nested names -> arrays, as one compressed file of single precision; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"), atomic_path(path, overwrite=True) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **dict(_flat(found, "")))


def read_arrays(path: Path) -> dict[str, Any]:
    """What `write_arrays` wrote, nested as it was. InputError for a file that is damaged."""
    nested: dict[str, Any] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                *parents, last = name.split("|")
                place = nested
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[last] = file[name]
    except Exception as error:  # numpy raises half a dozen kinds for a damaged archive
        raise InputError(f"{path}: cannot be read ({error}). Delete it, and it is made again.") from error
    return nested


def _flat(found: Mapping[str, Any], before: str) -> list[tuple[str, np.ndarray]]:
    rows: list[tuple[str, np.ndarray]] = []
    for name, value in found.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{before}{name}|")
        else:
            array = np.asarray(value)
            rows.append((before + name, array.astype(np.float32) if array.dtype.kind == "f" else array))
    return rows
