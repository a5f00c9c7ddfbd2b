"""Where a command works until its results get their names."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepwarp.errors import OutputError
from stepwarp.files.lock import NAME, locked, refuse_links

_NAME = "partial-stepwarp"
#: Longer names are abbreviated in that of the hidden folder, which has to stay within the file system's limit.
_LONGEST = 48


class KeptError(OutputError):
    """Finished work that could not be given its name; it stays where it was made."""


@contextmanager
def workspace(out: Path, kind: str) -> Iterator[Path]:
    """Lend an empty, hidden folder on the file system of the folder `out`, which no other run of that `out` has as long
    as the block lasts. kind: what works there, "registration".

    It lies beside `out` where that is new, so that results can appear in one step, and within `out` where that is there
    already, perhaps as a mount or as a link to another disk. What a run left that was killed is cleared.

    Raises OutputError if another run has it, if it cannot be made, and if it holds what no run of ours has made."""
    place = place_for(out)
    refuse_links(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be created, {(error.strerror or str(error)).lower()}.") from error
    with locked(place, kind, None):
        try:
            for left in place.iterdir():
                if left.name != NAME:
                    _remove(left)
            work = place / "work"
            work.mkdir()
            yield work
        except KeptError:
            raise
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        shutil.rmtree(place, ignore_errors=True)


def place_for(out: Path) -> Path:
    """The hidden folder of `workspace`."""
    try:
        return out / f".{_NAME}" if out.is_dir() else out.with_name(f".{_abbreviated(out.name)}.{_NAME}")
    except OSError as error:
        raise OutputError(f"{out}: cannot be made, {(error.strerror or str(error)).lower()}.") from error


def _abbreviated(name: str) -> str:
    """A name, or its beginning and what tells it from others with that beginning."""
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 16]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}"


def move(source: Path, target: Path) -> None:
    """Give a file its name, also on another file system; a link of that name is replaced, not followed."""
    try:
        source.replace(target)
    except OSError:
        if target.is_dir() and not target.is_symlink():
            raise
        target.unlink(missing_ok=True)
        shutil.move(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
