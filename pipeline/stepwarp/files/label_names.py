"""Tables of label names: JSON, CSV and TSV, FreeSurfer's colour tables, ITK-SNAP's label descriptions."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from stepwarp.errors import InputError
from stepwarp.files.json import parse_json
from stepwarp.files.tables import read_text
from stepwarp.printable import counted

_SUFFIXES = (".json", ".csv", ".tsv", ".txt", ".label", ".lut", ".ctbl")
_LARGEST_FILE = 16 * 2**20

#: Columns that hold the id and the name, the first that fits; `label` is an id in some tables and a name in others.
_ID_COLUMNS = ("id", "index", "label_id", "value", "number", "no", "no.", "key", "label")
_NAME_COLUMNS = ("name", "label_name", "structure", "region", "label", "description", "abbreviation")

_SNAP = re.compile(r'(-?\d+)\s+\d+\s+\d+\s+\d+\s+[\d.]+\s+[01]\s+[01]\s+"(.*)"')
_FREESURFER = re.compile(r"(-?\d+)\s+(\S.*?)\s+\d+\s+\d+\s+\d+(?:\s+\d+)?")


def read_label_names(path: str | Path) -> dict[int, str]:
    """Label id -> name, from a file in one of these forms:

    .json: an object {"4": "3rd Ventricle"}. .csv, .tsv: a line of column names, with one for the ids (id, index, value,
    label) and one for the names (name, structure, label). .txt, .label, .lut, .ctbl: a colour table of FreeSurfer
    (id, name, R, G, B, A) or a label description of ITK-SNAP (id, R, G, B, A, two flags, "name"); # starts a comment.

    Raises InputError, naming file and line, for anything else, for an id with two names, and for no name at all."""
    path = Path(path)
    text, suffix = read_text(path, _LARGEST_FILE, "table of labels"), path.suffix.lower()
    if suffix == ".json":
        pairs = _from_json(text, path)
    elif suffix in (".csv", ".tsv"):
        pairs = _from_columns(text, path, "," if suffix == ".csv" else "\t")
    elif suffix in _SUFFIXES:
        pairs = _from_lines(text, path)
    else:
        raise InputError(f"{path}: label names are read from {', '.join(_SUFFIXES)}. Convert it.")
    names: dict[int, str] = {}
    for where, label, name in pairs:
        if names.setdefault(label, name) != name:
            raise InputError(f"{where}: names label {label} '{name}' after '{names[label]}'. Keep one of them.")
    if not names:
        raise InputError(f"{path}: names no label.")
    return names


def find_labels(texts: Iterable[str], names: Mapping[int, str]) -> tuple[int, ...]:
    """The ids that the texts mean, each an id or, in any case, a name of `names` (all ids of that name).

    Raises InputError for a name that there is not; it says the nearest."""
    ids_of: dict[str, list[int]] = {}
    for label, name in names.items():
        ids_of.setdefault(name.lower(), []).append(label)
    found: list[int] = []
    for text in (text.strip() for text in texts):
        if re.fullmatch(r"-?[0-9]+", text):
            found.append(int(text))
        elif text.lower() in ids_of:
            found += ids_of[text.lower()]
        elif text:
            near = difflib.get_close_matches(text.lower(), ids_of, 1)
            hint = (
                f"Did you mean '{names[ids_of[near[0]][0]]}'?" if near else "Give ids, or a table with --label-names."
            )
            raise InputError(f"label '{text}': is neither an id nor a known name. {hint}")
    return tuple(dict.fromkeys(found))


def _from_json(text: str, path: Path) -> list[tuple[str, int, str]]:
    content = parse_json(text, str(path))
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise InputError(f'{path}: is not an object of names by id, such as {{"4": "3rd Ventricle"}}.')
    return [(str(path), _id(key, str(path)), name) for key, name in content.items()]


def _from_columns(text: str, path: Path, separator: str) -> list[tuple[str, int, str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if any(row)]
    except csv.Error as error:
        raise InputError(f"{path}: is not a table ({error}). Export it again.") from error
    columns = [cell.strip().lower() for cell in rows[0]] if rows else []
    of_id = next((columns.index(c) for c in _ID_COLUMNS if c in columns), None)
    of_name = next((columns.index(c) for c in _NAME_COLUMNS if c in columns and columns.index(c) != of_id), None)
    if of_id is None or of_name is None:
        found = ", ".join(columns) or "none"
        raise InputError(f"{path}: needs a column of ids (id, index) and one of names (name); it has {found}.")
    pairs = []
    for line, row in enumerate(rows[1:], 2):
        where = f"{path}, row {line}"
        if len(row) <= max(of_id, of_name):
            raise InputError(
                f"{where}: has {counted(len(row), 'cell')} where {counted(len(columns), 'is', 'are')} expected."
            )
        pairs.append((where, _id(row[of_id], where), row[of_name].strip()))
    return pairs


def _from_lines(text: str, path: Path) -> list[tuple[str, int, str]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        match = _SNAP.fullmatch(line) or _FREESURFER.fullmatch(line)
        if match is None:
            raise InputError(f"{where}: is neither a line of FreeSurfer's colour table nor one of ITK-SNAP's labels.")
        pairs.append((where, _id(match[1], where), match[2]))
    return pairs


def _id(text: str, where: str) -> int:
    if not re.fullmatch(r"[-+]?[0-9]{1,18}", text.strip()):
        raise InputError(f"{where}: '{text}' is not the id of a label, a whole number.")
    return int(text)
