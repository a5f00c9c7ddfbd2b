"""Landmarks: named world points, in CSV files and those of 3D Slicer.

A file that does not say which world its numbers are in is not guessed at: tools disagree, and a wrong guess mirrors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stepwarp.errors import InputError, OutputError
from stepwarp.files import slicer
from stepwarp.files.atomic import write_text
from stepwarp.files.lps import flip_vectors
from stepwarp.files.tables import Space, csv_text, guarded, parse_table, read_text, to_ras
from stepwarp.geometry import Grid

_SUFFIXES = (".mrk.json", ".fcsv", ".csv")
_LARGEST_FILE = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Named points of one image. names: N texts. points: (N, 3) float64, RAS mm."""

    names: tuple[str, ...]
    points: np.ndarray

    def __post_init__(self) -> None:
        points = np.array(self.points, dtype=np.float64)
        if points.shape != (len(self.names), 3):
            raise ValueError(f"{len(self.names)} names do not fit points of shape {points.shape}")
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "points", points)

    def __len__(self) -> int:
        return len(self.names)

    def count_outside(self, grid: Grid) -> int:
        """How many points lie in none of a grid's voxels."""
        index = self.points @ grid.inverse_affine[:3, :3].T + grid.inverse_affine[:3, 3]
        return int(((index < -0.5) | (index > np.array(grid.shape) - 0.5)).any(1).sum())


def read_landmarks(path: str | Path, space: Space | None = None, grid: Grid | None = None) -> Landmarks:
    """The landmarks of a .csv, or of 3D Slicer's .fcsv or .mrk.json, as RAS mm.

    In a .csv the columns say what the numbers are: x_ras, y_ras, z_ras or x_lps, y_lps, z_lps are mm; x, y, z are mm
    in the world that `space` or a first line `# space: LPS` (or RAS) states; i, j, k, used where there is none of
    these, are voxels of `grid`. Names come from the first column there is of name, label, afid and id, else they count
    from 1.

    Raises InputError, naming file, line and problem, for a file that states no world where `space` is None, one that
    contradicts `space`, and one that is malformed or holds no landmark."""
    path = Path(path)
    suffix = _suffix(path)
    if suffix is None:
        raise InputError(f"{path}: landmarks are read from {', '.join(_SUFFIXES)}. Convert it.")
    text, file = read_text(path, _LARGEST_FILE, "list of landmarks"), str(path)
    if suffix == ".csv":
        names, points = _parse_csv(text, file, space, grid)
    elif suffix == ".fcsv":
        names, points = slicer.parse_fcsv(text, file, space)
    else:
        names, points = slicer.parse_markups(text, file, space)
    if not names:
        raise InputError(f"{path}: holds no landmark.")
    return Landmarks(names, points)


def write_landmarks(path: str | Path, landmarks: Landmarks, space: Space = "ras", overwrite: bool = False) -> None:
    """Write a .csv, or 3D Slicer's .fcsv or .mrk.json, atomically.

    A .csv has the columns name, x_ras, y_ras, z_ras; with space="lps" it has x, y, z, t, label, name in LPS mm as
    antsApplyTransformsToPoints wants it (to read it back, state the space). Slicer's files are LPS and say so. A name
    that a spreadsheet would run as a formula gets an apostrophe before it, which `read_landmarks` takes off.

    Raises OutputError for another suffix and as `atomic_path` does."""
    path = Path(path)
    suffix = _suffix(path)
    if suffix is None:
        raise OutputError(f"{path}: landmarks are written as {', '.join(_SUFFIXES)}. Choose such a name.")
    if suffix == ".csv":
        text = _ants_csv(landmarks) if space == "lps" else _plain_csv(landmarks)
    elif suffix == ".fcsv":
        text = slicer.fcsv_text(landmarks.names, landmarks.points)
    else:
        text = slicer.markups_text(landmarks.names, landmarks.points)
    write_text(path, text, overwrite)


def _parse_csv(text: str, file: str, space: Space | None, grid: Grid | None) -> tuple[tuple[str, ...], np.ndarray]:
    table = parse_table(text, file)
    stated: Space
    for stated in ("ras", "lps"):
        columns = [f"{axis}_{stated}" for axis in "xyz"]
        if table.has(columns):
            return table.names(), to_ras(table.numbers(columns), stated, space, file)
    if table.has("xyz"):
        return table.names(), to_ras(table.numbers("xyz"), table.stated_space("space"), space, file)
    if not table.has("ijk"):
        found = ", ".join(table.columns)
        raise InputError(f"{file}: needs columns x_ras, y_ras, z_ras (or x, y, z; or i, j, k), it has {found}.")
    if grid is None:
        raise InputError(f"{file}: has voxel indices (i, j, k) only. Give the image that they belong to.")
    return table.names(), table.numbers("ijk") @ grid.linear.T + grid.affine[:3, 3]


def _plain_csv(landmarks: Landmarks) -> str:
    rows = ((guarded(name), *point) for name, point in zip(landmarks.names, landmarks.points.tolist(), strict=True))
    return csv_text([("name", "x_ras", "y_ras", "z_ras"), *rows])


def _ants_csv(landmarks: Landmarks) -> str:
    """ANTs reads by position: x, y, z and a time, then numbers; names come last."""
    points = flip_vectors(landmarks.points).tolist()
    rows = ((*p, 0, n, guarded(name)) for n, (name, p) in enumerate(zip(landmarks.names, points, strict=True), 1))
    return csv_text([("x", "y", "z", "t", "label", "name"), *rows])


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), None)
