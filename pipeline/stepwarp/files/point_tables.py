"""Tables of points (.csv, .tsv, .fcsv): when their points move, everything but the positions is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepwarp.errors import InputError
from stepwarp.files.lps import flip_vectors
from stepwarp.files.tables import STATE_IN_CSV, Space, Table, csv_text, guarded, is_number, to_ras
from stepwarp.geometry import Grid

#: Columns that hold a position and say in which world (mm); the last two are of 3D Slicer's tables.
_FRAMES: tuple[tuple[tuple[str, str, str], Space], ...] = (
    (("x_ras", "y_ras", "z_ras"), "ras"),
    (("x_lps", "y_lps", "z_lps"), "lps"),
    (("r", "a", "s"), "ras"),
    (("l", "p", "s"), "lps"),
)
_BARE, _VOXELS = ("x", "y", "z"), ("i", "j", "k")
_POSITIONS = (*(columns for columns, _ in _FRAMES), _BARE, _VOXELS)
#: After the named cells of an .fcsv: the position's status, of which these mean that there is none, and one more.
_NOT_PLACED = ("0", "1", "3")
#: What to do about an .fcsv that does not state its world.
_STATE_IN_FCSV = "Add a line '# CoordinateSystem = LPS' (or RAS) at its head"


@dataclass(frozen=True, eq=False)
class PointTable:
    """A table as it was read. points: (N, 3) RAS mm, NaN without a position, a row per row of the table.

    frames: the columns that hold positions, with their world. voxels: those that held them as indices of an image."""

    table: Table
    points: np.ndarray
    frames: tuple[tuple[tuple[str, ...], Space], ...]
    voxels: tuple[str, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Columns that place the points where they were and cannot be renewed."""
        known = {column for columns, _ in self.frames for column in columns} | set(self.voxels)
        old = [c for columns in (_BARE, _VOXELS) if self.table.has(columns) for c in columns if c not in known]
        return tuple(old) if self.table.header is not None else ()

    def text(self, points: np.ndarray, delimiter: str | None = None) -> str:
        """The table with new positions (N, 3) RAS mm in the rows that have one.

        Indices become x_ras, y_ras, z_ras: they would be those of another image. delimiter: as it was by default."""
        table = self.table
        comma = delimiter is None and any(table.has_decimal_commas(columns) for columns, _ in self.frames)
        rows = [list(cells) for cells in table.cells]
        renamed = dict(zip(self.voxels, ("x_ras", "y_ras", "z_ras"), strict=bool(self.voxels)))
        for columns, space in (*self.frames, *([(self.voxels, "ras")] if self.voxels else [])):
            values = (flip_vectors(points) if space == "lps" else points) + 0.0  # no minus zeros
            at = [table.columns.index(column) for column in columns]
            for n in np.flatnonzero(np.isfinite(points).all(1)):
                for place, value in zip(at, values[n].tolist(), strict=True):
                    rows[n][place] = repr(value).replace(".", ",") if comma else repr(value)
        kept = [
            n for n in range(max(map(len, rows))) if n >= len(table.columns) or table.columns[n] not in self.left_out
        ]
        lines = [[_safe(row[n]) for n in kept if n < len(row)] for row in rows]
        if table.header is not None:
            lines.insert(0, [renamed.get(table.columns[n], _safe(table.header[n])) for n in kept])
        return table.head + csv_text(lines, delimiter or table.delimiter)


def point_table(table: Table, space: Space | None, grid: Grid | None, of: str | None = None) -> PointTable:
    """What `read_landmarks` says of a .csv or .tsv. One without names of columns holds x, y, z."""
    if table.header is None:
        _check_bare_rows(table, space)
    prefix = _prefix(table, of)
    bare, voxels = _prefixed(prefix, _BARE), _prefixed(prefix, _VOXELS)
    named = ((_prefixed(prefix, columns), world) for columns, world in _FRAMES)
    frames = tuple((columns, world) for columns, world in named if table.has(columns))
    if frames:
        columns, world = frames[0]
        return PointTable(table, to_ras(table.points(columns), world, space, table.file), frames)
    stated = table.stated_space("space")
    in_voxels = table.has(bare) and space == "voxel" and stated is None
    if table.has(bare) and not in_voxels:
        return _in_mm(table, bare, stated, space)
    if not in_voxels and not table.has(voxels):
        found, begins = ", ".join(table.columns), f", or these with {of}_ before them" if of else ""
        raise InputError(
            f"{table.file}: needs columns x_ras, y_ras, z_ras (or x, y, z; or i, j, k){begins}, it has {found}."
        )
    if grid is None:
        raise InputError(
            f"{table.file}: is in voxels, and nothing says of which image. Give the folder of the registration, whose "
            "record says it, or the points in mm."
        )
    columns = bare if in_voxels else voxels
    return PointTable(table, grid.world(table.points(columns)), (), columns)


def fcsv_table(table: Table, space: Space | None) -> PointTable:
    """What 3D Slicer says of a list of points, whose first line of comments names the columns."""
    if not table.has(_BARE):
        raise InputError(f"{table.file}: its line '# columns' names no x, y, z. Export it again.")
    found = _in_mm(table, _BARE, table.stated_space("coordinatesystem"), space, _STATE_IN_FCSV)
    width = len(table.columns)
    unplaced = [len(cells) == width + 2 and cells[width].strip() in _NOT_PLACED for cells in table.cells]
    found.points[unplaced] = np.nan
    return found


def _prefix(table: Table, of: str | None) -> str:
    """What stands before the names of an image's columns in a table of several images; nothing in any other."""
    prefix = "" if of is None else f"{of}_".lower()
    return prefix if any(table.has(_prefixed(prefix, columns)) for columns in _POSITIONS) else ""


def _prefixed(prefix: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(prefix + column for column in columns)


def _in_mm(
    table: Table, columns: tuple[str, ...], stated: Space | None, space: Space | None, remedy: str = STATE_IN_CSV
) -> PointTable:
    points = to_ras(table.points(columns), stated, space, table.file, remedy)
    world = stated or space
    return PointTable(table, points, ((columns, world),) if world else ())


def _check_bare_rows(table: Table, space: Space | None) -> None:
    """InputError unless rows without names of columns are x, y, z, and somebody says in which space."""
    if any(len(cells) != 3 for cells in table.cells):
        raise InputError(
            f"{table.file}: has no line of column names, and not three numbers in every row. Add the names."
        )
    if space is None and table.stated_space("space") is None:
        raise InputError(
            f"{table.file}: has no line of column names. If its rows are x, y, z in voxels, as those of Learn2Reg, say "
            "--landmark-space voxel (of apply: --space voxel); if they are mm, ras or lps."
        )


def _safe(cell: str) -> str:
    return cell if is_number(cell) else guarded(cell)
