"""Text tables of points: cells with line numbers, the world that numbers are in, and names safe for spreadsheets."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from stepwarp.errors import InputError
from stepwarp.files.lps import flip_vectors
from stepwarp.presence import check_present
from stepwarp.printable import counted

#: What the numbers of a list are said to be: mm in one of two worlds, or voxels of the image that it belongs to.
Space = Literal["ras", "lps", "voxel"]

#: What to do about a file that does not state its world.
STATE_IN_CSV = (
    "Files of ITK and ANTs are LPS: add a line '# space: LPS' (or RAS), or name the columns x_ras, y_ras, z_ras"
)
#: How files state their world; the digits are those of 3D Slicer.
_STATEMENTS: dict[str, Space] = {"ras": "ras", "0": "ras", "lps": "lps", "1": "lps"}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
#: What stands where there is no position (n/a: BIDS).
_NOTHING = ("", "n/a", "na", "nan")
_DELIMITERS = (",", ";", "\t")
_NAME_COLUMNS = ("name", "label", "afid", "id")
#: A cell that starts so is run by spreadsheets as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """Rows of cells by lower-case column, each row with its line in the file, and the comments at the file's head.

    As the file has them, to write it again: head, its lines of comments; header, the names of the columns, None where a
    comment names them; cells, those of each row; and what separates them."""

    file: str
    comments: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]
    head: str
    header: tuple[str, ...] | None
    cells: tuple[tuple[str, ...], ...]
    delimiter: str

    def has(self, columns: Iterable[str]) -> bool:
        return set(columns) <= set(self.columns)

    def points(self, columns: Iterable[str]) -> np.ndarray:
        """(rows, 3) float64 of three columns. A row without a position, where all three cells are empty or n/a, or
        that says so in Slicer's column `defined`, is NaN; InputError names the line of another that is no number."""
        columns = list(columns)
        comma = self.has_decimal_commas(columns)
        result = np.full((len(self.rows), len(columns)), np.nan)
        for n, (line, row) in enumerate(self.rows):
            if not (all(row[c].lower() in _NOTHING for c in columns) or row.get("defined", "1") in ("0", "false")):
                where = f"{self.file}, line {line}"
                result[n] = [number(_with_point(row[c]) if comma else row[c], f"{where}, {c}") for c in columns]
        return result

    def has_decimal_commas(self, columns: Iterable[str]) -> bool:
        """Whether fractions in these columns begin with a comma, which then is no separator; never both."""
        texts = [row[c] for _, row in self.rows for c in columns]
        return self.delimiter != "," and any("," in text for text in texts) and not any("." in text for text in texts)

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
    """Comments (lines that start with #), a line of column names, rows of as many cells.

    Cells are separated by commas, semicolons or tabs, whatever there is most of in the line of names."""
    comments, body = _split_comments(text)
    delimiter = _delimiter(body.partition("\n")[0])
    lines = _rows(body, delimiter, len(comments), file)
    if not lines:
        raise InputError(f"{file}: has no line of column names.")
    (line, header), *rows = lines
    columns = tuple(cell.strip().lower() for cell in header)
    _refuse_twice(columns, f"{file}, line {line}")
    for line, cells in rows:
        if len(cells) != len(columns):
            raise InputError(
                f"{file}, line {line}: has {counted(len(cells), 'cell')} where "
                f"{counted(len(columns), 'is', 'are')} expected."
            )
    return _table(file, comments, columns, tuple(header), rows, delimiter)


def names_columns(text: str) -> bool:
    """Whether the first line that is no comment holds anything but numbers."""
    _, body = _split_comments(text)
    line = body.partition("\n")[0]
    return not all(map(is_number, line.split(_delimiter(line)))) or not line.strip()


def parse_headless(text: str, file: str, default_columns: str, delimiter: str | None = ",") -> Table:
    """As `parse_table`, but a comment `columns = ...` names the columns, and further cells may follow them.

    delimiter: what separates cells; None for what there is most of in the first line."""
    comments, body = _split_comments(text)
    delimiter = delimiter or _delimiter(body.partition("\n")[0])
    stated = (c.partition("=") for c in _texts(comments))
    named = next((value for key, _, value in stated if key.strip().lower() == "columns"), default_columns)
    columns = tuple(cell.strip().lower() for cell in named.split(","))
    _refuse_twice(columns, file)
    rows = _rows(body, delimiter, len(comments), file)
    for line, cells in rows:
        if len(cells) < len(columns):
            raise InputError(
                f"{file}, line {line}: has {counted(len(cells), 'cell')} where "
                f"{counted(len(columns), 'is', 'are')} expected."
            )
    return _table(file, comments, columns, None, rows, delimiter)


def number(value: object, where: str) -> float:
    """A finite number from a cell or a JSON value; InputError with `where` otherwise.

    Digits are 0 to 9: what else Python takes for a number (1_0, infinity, digits of other scripts) is none here."""
    is_text = isinstance(value, str) and _NUMBER.fullmatch(value) is not None
    is_plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    parsed = _as_float(value) if is_text or is_plain else math.nan
    if not math.isfinite(parsed):
        raise InputError(f"{where}: {value!r} is not a finite number.")
    return parsed


def is_number(cell: str) -> bool:
    """Whether a cell is a number, with a decimal point or comma."""
    return _NUMBER.fullmatch(_with_point(cell.strip())) is not None


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
    if given == "voxel" and not stated:
        raise InputError(f"{where}: is a list in mm, not in voxels. Say which world they are in, ras or lps.")
    if stated is None and given is None:
        raise InputError(
            f"{where}: does not say in which world its x, y, z are. {remedy}, or give the space as an option."
        )
    if stated and given and stated != given:
        raise InputError(f"{where}: says that it is {stated.upper()}, but {given.upper()} was asked for.")
    return flip_vectors(points) if (stated or given) == "lps" else points


def csv_text(rows: Iterable[Iterable[object]], delimiter: str = ",") -> str:
    """Lines of separated cells, quoted where needed; floats in the digits that restore them exactly."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", delimiter=delimiter).writerows(rows)
    return text.getvalue()


def guarded(name: str) -> str:
    """A name that no spreadsheet runs as a formula: with an apostrophe before it where it looks like one."""
    return f"'{name}" if name.startswith(_FORMULA_STARTS) else name


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA_STARTS) else cell


def _delimiter(line: str) -> str:
    return max(_DELIMITERS, key=line.count)


def _split_comments(text: str) -> tuple[list[str], str]:
    """The lines at the head that start with # or are blank, and the rest: a name in the rest may start with #."""
    lines = text.splitlines(keepends=True)
    end = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return lines[:end], "".join(lines[end:])


def _rows(body: str, delimiter: str, first: int, file: str) -> list[tuple[int, list[str]]]:
    """Cells of each line that is not blank, with its number in a file whose `first` lines came before."""
    reader = csv.reader(io.StringIO(body, newline=""), strict=True, delimiter=delimiter)
    try:
        return [(first + reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise InputError(f"{file}, line {first + reader.line_num}: is not a line of cells ({error}).") from error


def _table(
    file: str,
    comments: list[str],
    columns: tuple[str, ...],
    header: tuple[str, ...] | None,
    rows: list[tuple[int, list[str]]],
    delimiter: str,
) -> Table:
    by_column = tuple((n, {c: cell.strip() for c, cell in zip(columns, cells, strict=False)}) for n, cells in rows)
    cells = tuple(tuple(cells) for _, cells in rows)
    return Table(file, _texts(comments), columns, by_column, "".join(comments), header, cells, delimiter)


def _as_float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # numbers and their texts only
    except OverflowError:  # an integer of JSON beyond all floats
        return math.inf


def _with_point(cell: str) -> str:
    return cell.replace(",", ".")


def _texts(comments: list[str]) -> tuple[str, ...]:
    return tuple(comment[1:].strip() for comment in comments if comment.strip())


def _refuse_twice(columns: tuple[str, ...], where: str) -> None:
    twice = {column for column in columns if column and columns.count(column) > 1}
    if twice:
        raise InputError(f"{where}: names the column {', '.join(sorted(twice))} twice.")
