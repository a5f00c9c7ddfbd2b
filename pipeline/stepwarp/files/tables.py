"""Text tables of points: cells with line numbers, the world that numbers are in, and names safe for spreadsheets."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from stepwarp.errors import InputError
from stepwarp.files.lps import flip_vectors
from stepwarp.presence import check_present

Space = Literal["ras", "lps"]

#: What to do about a file that does not state its world.
STATE_IN_CSV = (
    "Files of ITK and ANTs are LPS: add a line '# space: LPS' (or RAS), or name the columns x_ras, y_ras, z_ras"
)
#: How files state their world; the digits are those of 3D Slicer.
_STATEMENTS: dict[str, Space] = {"ras": "ras", "0": "ras", "lps": "lps", "1": "lps"}
_NAME_COLUMNS = ("name", "label", "afid", "id")
#: A cell that starts so is run by spreadsheets as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """Rows of cells by lower-case column, each row with its line in the file, and the comments at the file's head."""

    file: str
    comments: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]

    def has(self, columns: Iterable[str]) -> bool:
        return set(columns) <= set(self.columns)

    def numbers(self, columns: Iterable[str]) -> np.ndarray:
        """(rows, columns) float64; InputError names the line of the first cell that is no finite number."""
        columns = list(columns)
        cells = [[number(row[c], f"{self.file}, line {line}, {c}") for c in columns] for line, row in self.rows]
        return np.array(cells, dtype=np.float64).reshape(-1, len(columns))

    def names(self) -> tuple[str, ...]:
        """From the first column there is of name, label, afid and id; without one, 1, 2, 3 ..."""
        column = next((c for c in _NAME_COLUMNS if c in self.columns), None)
        if column is None:
            return tuple(str(n + 1) for n in range(len(self.rows)))
        return tuple(_unguarded(row[column]) for _, row in self.rows)

    def stated_space(self, key: str) -> Space | None:
        """The world that a comment such as `space: LPS` or `CoordinateSystem = LPS` states."""
        for comment in self.comments:
            found, _, value = comment.replace("=", ":", 1).partition(":")
            if found.strip().lower() == key:
                return space_named(value, f"{self.file}, '# {comment}'")
        return None


def read_text(path: Path, largest: int, what: str) -> str:
    """The text of a file that should be a `what`. InputError if it is larger than `largest` bytes, or not UTF-8."""
    if check_present(path) > largest:
        raise InputError(f"{path}: is larger than {largest >> 20} MiB, which no {what} is.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text in UTF-8. Export it again.") from None


def parse_table(text: str, file: str) -> Table:
    """Comments (lines that start with #), a line of column names, rows of as many cells."""
    comments, body = _split_comments(text)
    lines = _rows(body, len(comments), file)
    if not lines:
        raise InputError(f"{file}: has no line of column names.")
    (line, header), *rows = lines
    columns = tuple(cell.lower() for cell in header)
    _refuse_twice(columns, f"{file}, line {line}")
    for line, cells in rows:
        if len(cells) != len(columns):
            raise InputError(f"{file}, line {line}: has {len(cells)} cells where {len(columns)} are expected.")
    return Table(file, _texts(comments), columns, _by_column(columns, rows))


def parse_headless(text: str, file: str, default_columns: str) -> Table:
    """As `parse_table`, but a comment `columns = ...` names the columns, and further cells may follow them."""
    comments, body = _split_comments(text)
    stated = (c.partition("=") for c in _texts(comments))
    named = next((value for key, _, value in stated if key.strip().lower() == "columns"), default_columns)
    columns = tuple(cell.strip().lower() for cell in named.split(","))
    _refuse_twice(columns, file)
    rows = _rows(body, len(comments), file)
    for line, cells in rows:
        if len(cells) < len(columns):
            raise InputError(f"{file}, line {line}: has {len(cells)} cells where {len(columns)} are expected.")
    return Table(file, _texts(comments), columns, _by_column(columns, rows))


def number(value: object, where: str) -> float:
    """A finite number from a cell or a JSON value; InputError with `where` otherwise."""
    try:
        parsed = float(value)  # type: ignore[arg-type]  # what does not convert is the error sought
    except (TypeError, ValueError):
        parsed = math.nan
    if not math.isfinite(parsed):
        raise InputError(f"{where}: {value!r} is not a finite number.")
    return parsed


def space_named(value: str, where: str) -> Space:
    """The world that a file calls `value`; InputError if that is neither RAS nor LPS."""
    space = _STATEMENTS.get(value.strip().lower())
    if space is None:
        raise InputError(f"{where}: states neither RAS nor LPS. Export it in one of them.")
    return space


def to_ras(
    points: np.ndarray, stated: Space | None, given: Space | None, where: str, remedy: str = STATE_IN_CSV
) -> np.ndarray:
    """Points (N, 3) mm as RAS mm. The file or the caller says which world they are in; if both do, they must agree.

    remedy: how a file of this kind says it."""
    if stated is None and given is None:
        raise InputError(
            f"{where}: does not say in which world its x, y, z are. {remedy}, or give the space as an option."
        )
    if stated and given and stated != given:
        raise InputError(f"{where}: says that it is {stated.upper()}, but {given.upper()} was asked for.")
    return flip_vectors(points) if (stated or given) == "lps" else points


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Lines of comma-separated cells, quoted where needed; floats in the digits that restore them exactly."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def guarded(name: str) -> str:
    """A name that no spreadsheet runs as a formula: with an apostrophe before it where it looks like one."""
    return f"'{name}" if name.startswith(_FORMULA_STARTS) else name


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA_STARTS) else cell


def _split_comments(text: str) -> tuple[list[str], str]:
    """The lines at the head that start with # or are blank, and the rest: a name in the rest may start with #."""
    lines = text.splitlines(keepends=True)
    end = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return lines[:end], "".join(lines[end:])


def _rows(body: str, first: int, file: str) -> list[tuple[int, list[str]]]:
    """Cells of each line that is not blank, with its number in a file whose `first` lines came before."""
    reader = csv.reader(io.StringIO(body, newline=""), strict=True)
    try:
        return [(first + reader.line_num, [c.strip() for c in cells]) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise InputError(f"{file}, line {first + reader.line_num}: is not a line of cells ({error}).") from error


def _texts(comments: list[str]) -> tuple[str, ...]:
    return tuple(comment[1:].strip() for comment in comments if comment.strip())


def _refuse_twice(columns: tuple[str, ...], where: str) -> None:
    twice = {column for column in columns if column and columns.count(column) > 1}
    if twice:
        raise InputError(f"{where}: names the column {', '.join(sorted(twice))} twice.")


def _by_column(columns: tuple[str, ...], rows: list[tuple[int, list[str]]]) -> tuple[tuple[int, dict[str, str]], ...]:
    return tuple((line, dict(zip(columns, cells, strict=False))) for line, cells in rows)
