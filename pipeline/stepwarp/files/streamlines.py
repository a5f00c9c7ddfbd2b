"""Streamlines of tractography (.trk, .tck): their points move, all else that their file holds stays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.streamlines.tractogram import LazyTractogram
from nibabel.streamlines.tractogram_file import HeaderWarning

from stepwarp.errors import InputError
from stepwarp.files.atomic import atomic_path
from stepwarp.presence import check_present

STREAMLINE_SUFFIXES = (".trk", ".tck")
#: Streamlines are held in memory and moved together until they have so many points.
_AT_ONCE = 2**17


@dataclass(frozen=True, eq=False)
class Streamlines:
    """The streamlines of a file, which stay in it until they are asked for. Their points are RAS mm."""

    path: Path

    def points(self) -> Iterator[np.ndarray]:
        """The points (N, 3) float64 of some streamlines at a time; to go through them all is to check the file.

        Raises InputError for a file that is cut off or damaged, or holds no streamlines or points that are none."""
        for lines in self._batches():
            points = _joined(lines)
            if not np.isfinite(points).all():
                raise InputError(f"{self.path}: some of its points are not finite. Write it again.")
            yield points

    def write_moved(self, path: str | Path, move: Callable[[np.ndarray], np.ndarray], overwrite: bool = False) -> None:
        """Write a file of the same kind with the points (float32) where `move` brings them, (N, 3) -> (N, 3) RAS mm,
        atomically. Header, numbers of points and numbers of streamlines stay.

        Raises InputError as `points` does, except for points, and OutputError as `atomic_path` does."""

        def moved() -> Iterator[np.ndarray]:
            for lines in self._batches():
                ends = np.cumsum([len(line) for line in lines])[:-1]
                yield from np.split(move(_joined(lines)).astype(np.float32), ends)

        # Not from items that hold all of a streamline: nibabel does not bring the points of those to the file's space.
        file, _ = _opened(self.path)
        lazy = LazyTractogram(
            moved,
            {name: partial(self._read, "data_per_streamline", name) for name in file.tractogram.data_per_streamline},
            {name: partial(self._read, "data_per_point", name) for name in file.tractogram.data_per_point},
            affine_to_rasmm=np.eye(4),
        )
        with atomic_path(path, overwrite) as temporary:
            type(file)(lazy, _writable(file.header)).save(str(temporary))

    def remarks(self) -> tuple[str, ...]:
        """What of the file is no longer what it was."""
        if self.path.suffix.lower() == ".trk":
            return ("its header is kept, and names the grid of the image that the streamlines come from",)
        header = _opened(self.path)[0].header
        renamed = any(isinstance(value, str) and _writable(header)[key] != value for key, value in header.items())
        return ("colons in its header are written as semicolons",) if renamed else ()

    def _batches(self) -> Iterator[list[np.ndarray]]:
        batch: list[np.ndarray] = []
        waiting = 0
        for line in self._read("streamlines"):
            batch.append(line)
            waiting += len(line)
            if waiting >= _AT_ONCE:
                yield batch
                batch, waiting = [], 0
        if batch:
            yield batch

    def _read(self, what: str, name: str | None = None) -> Iterator[np.ndarray]:
        """The points of each streamline (RAS mm), or what it has under a name."""
        file, declared = _opened(self.path)
        count = 0
        try:
            each = getattr(file.tractogram, what)
            for values in each if name is None else each[name]:
                yield values
                count += 1
        except Exception as error:  # nibabel raises whatever its parsers run into
            raise _unreadable(self.path, error) from error
        if declared and count != declared:
            raise InputError(f"{self.path}: holds {count} of {declared} streamlines. Fetch or write it again.")
        if not count:
            raise InputError(f"{self.path}: holds no streamlines. Give another file.")


def read_streamlines(path: str | Path) -> Streamlines:
    """The streamlines of a .trk or .tck.

    Raises InputError, naming file and problem, for a header that cannot be read or does not say where they lie; the
    rest of the file is read, and checked, when it is needed."""
    path = Path(path)
    check_present(path)
    _opened(path)
    return Streamlines(path)


def _opened(path: Path) -> tuple[Any, int]:
    """nibabel's file, read as it is iterated over, and how many streamlines it says it has (0 if it does not)."""
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", HeaderWarning)
            file = nib.streamlines.load(str(path), lazy_load=True)
    except Exception as error:  # nibabel raises whatever its parsers run into
        raise _unreadable(path, error) from error
    if any("vox_to_ras" in str(warning.message) for warning in said):
        raise InputError(f"{path}: its header does not say where the streamlines lie (vox_to_ras). Save it as .tck.")
    return file, int(file.header.get("count") or file.header.get("nb_streamlines") or 0)


def _writable(header: dict[str, Any]) -> dict[str, Any]:
    """A header as nibabel writes it: in the texts of a .tck it takes no colons."""
    own = ("count", "datatype", "file")
    return {k: v.replace(":", ";") if isinstance(v, str) and k not in own else v for k, v in header.items()}


def _joined(lines: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(lines).astype(np.float64)


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{path}: cannot be read as streamlines ({reason}). Fetch or write it again.")
