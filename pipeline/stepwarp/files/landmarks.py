"""Landmarks: named world points, in tables (.csv, .tsv) and in the files of 3D Slicer.

A file that does not say which world its numbers are in is not guessed at: tools disagree, and a wrong guess mirrors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stepwarp.errors import InputError, OutputError
from stepwarp.files import slicer
from stepwarp.files.atomic import write_text
from stepwarp.files.lps import flip_vectors
from stepwarp.files.point_tables import PointTable, point_table
from stepwarp.files.slicer import Markups
from stepwarp.files.tables import Space, csv_text, guarded, names_columns, parse_headless, parse_table, read_text
from stepwarp.geometry import Grid

LANDMARK_SUFFIXES = (".mrk.json", ".fcsv", ".csv", ".tsv")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LARGEST_FILE = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Named points of one image. names: N texts. points: (N, 3) float64, RAS mm.

    missing: place among all, and name, of each that its file lists without a position. source: what else the file held,
    which is written again with the points."""

    names: tuple[str, ...]
    points: np.ndarray
    missing: tuple[tuple[int, str], ...] = ()
    source: PointTable | Markups | None = None

    def __post_init__(self) -> None:
        points = np.array(self.points, dtype=np.float64)
        if points.shape != (len(self.names), 3):
            raise ValueError(f"{len(self.names)} names do not fit points of shape {points.shape}")
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "points", points)

    def __len__(self) -> int:
        return len(self.names)

    def listed(self) -> tuple[tuple[str, ...], np.ndarray]:
        """All names and points (M, 3) in the file's order, NaN for those that are missing."""
        names, points = list(self.names), list(self.points)
        for place, name in self.missing:
            names.insert(place, name)
            points.insert(place, np.full(3, np.nan))
        return tuple(names), np.reshape(points, (-1, 3))

    def moved(self, points: np.ndarray) -> Landmarks:
        """The same landmarks at other points (N, 3), RAS mm."""
        return replace(self, points=points)

    def count_outside(self, grid: Grid) -> int:
        """How many points lie in none of a grid's voxels."""
        return grid.count_outside(self.points)


def read_landmarks(
    path: str | Path, space: Space | None = None, grid: Grid | None = None, of: str | None = None
) -> Landmarks:
    """The landmarks of a .csv or .tsv, or of 3D Slicer's .fcsv or .mrk.json, as RAS mm.

    Cells are separated by commas, semicolons or tabs; with the latter two a fraction may begin with a comma. The
    columns say what the numbers are: x_ras, y_ras, z_ras or x_lps, y_lps, z_lps (r, a, s or l, p, s in Slicer's tables)
    are mm; x, y, z are mm in the world that `space` or a first line `# space: LPS` (or RAS) states; i, j, k, used where
    there is none of these, are voxels of `grid`; with space="voxel" x, y, z are that. Without a line of names the cells
    are x, y, z, as in Learn2Reg's lists. A table may hold the positions of several images, told apart by what stands
    before these names: with of="fixed" those of fixed_x_ras are read where there are such. Landmarks' names come from
    the first column there is of name, label, afid and id, else they count from 1. One without a position (empty or n/a;
    Slicer's undefined and missing) is in `missing`.

    Raises InputError, naming file, line and problem, for a file that states no world where `space` is None, one that
    contradicts `space`, and one that is malformed or holds no landmark."""
    path = Path(path)
    suffix = _suffix(path)
    if suffix is None:
        raise InputError(f"{path}: landmarks are read from {', '.join(LANDMARK_SUFFIXES)}. Convert it.")
    text, file = read_text(path, _LARGEST_FILE, "list of landmarks"), str(path)
    source: PointTable | Markups
    if suffix == ".mrk.json":
        names, points, source = slicer.parse_markups(text, file, space)
    else:
        source = slicer.parse_fcsv(text, file, space) if suffix == ".fcsv" else _table(text, file, space, grid, of)
        names, points = source.table.names(), source.points
    placed = np.isfinite(points).all(1)
    if not placed.any():
        raise InputError(f"{path}: holds no landmark{' that is placed' if names else ''}.")
    missing = tuple((n, name) for n, name in enumerate(names) if not placed[n])
    kept = source if not isinstance(source, PointTable) or source.table.header or suffix == ".fcsv" else None
    return Landmarks(tuple(n for n, there in zip(names, placed, strict=True) if there), points[placed], missing, kept)


def write_landmarks(path: str | Path, landmarks: Landmarks, space: Space = "ras", overwrite: bool = False) -> None:
    """Write a .csv or .tsv, or 3D Slicer's .fcsv or .mrk.json, atomically.

    Landmarks that were read from a file of the same kind are written as that file with other positions: its columns and
    their order, its comments, its world. Others: a table has the columns name, x_ras, y_ras, z_ras; a .csv with
    space="lps" has x, y, z, t, label, name in LPS mm as antsApplyTransformsToPoints wants it (to read it back, state
    the space), without those that are missing. Slicer's files are LPS and say so. A name that a spreadsheet would run
    as a formula gets an apostrophe before it, which `read_landmarks` takes off.

    Raises OutputError for another suffix and as `atomic_path` does."""
    path = Path(path)
    suffix = _suffix(path)
    if suffix is None:
        raise OutputError(f"{path}: landmarks are written as {', '.join(LANDMARK_SUFFIXES)}. Choose such a name.")
    names, points = landmarks.listed()
    if keeps_source(path, landmarks):
        text = _as_read(suffix, landmarks.source, points)
    elif suffix == ".csv" and space == "lps":
        text = _ants_csv(landmarks)
    elif suffix in _DELIMITERS:
        text = _plain_table(names, points, _DELIMITERS[suffix])
    elif suffix == ".fcsv":
        text = slicer.fcsv_text(names, points)
    else:
        text = slicer.markups_text(names, points)
    write_text(path, text, overwrite)


def keeps_source(path: str | Path, landmarks: Landmarks) -> bool:
    """Whether what else the landmarks' file held is written to a file of this name: it is of the same kind."""
    suffix, source = _suffix(Path(path)), landmarks.source
    if isinstance(source, PointTable):
        return suffix == ".fcsv" if source.table.header is None else suffix in _DELIMITERS
    return isinstance(source, Markups) and suffix == ".mrk.json"


def _table(text: str, file: str, space: Space | None, grid: Grid | None, of: str | None) -> PointTable:
    table = parse_table(text, file) if names_columns(text) else parse_headless(text, file, "x,y,z", None)
    return point_table(table, space, grid, of)


def _as_read(suffix: str, source: PointTable | Markups | None, points: np.ndarray) -> str:
    if isinstance(source, PointTable):
        same = _suffix(Path(source.table.file)) == suffix
        return source.text(points, None if same else _DELIMITERS[suffix])
    assert source is not None
    return source.text(points)


def _plain_table(names: Sequence[str], points: np.ndarray, delimiter: str) -> str:
    positions = [p.tolist() if np.isfinite(p).all() else ("n/a",) * 3 for p in points]
    rows = ((guarded(name), *position) for name, position in zip(names, positions, strict=True))
    return csv_text([("name", "x_ras", "y_ras", "z_ras"), *rows], delimiter)


def _ants_csv(landmarks: Landmarks) -> str:
    """ANTs reads by position: x, y, z and a time, then numbers; names come last."""
    points = flip_vectors(landmarks.points).tolist()
    rows = ((*p, 0, n, guarded(name)) for n, (name, p) in enumerate(zip(landmarks.names, points, strict=True), 1))
    return csv_text([("x", "y", "z", "t", "label", "name"), *rows])


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in LANDMARK_SUFFIXES if path.name.lower().endswith(suffix)), None)
