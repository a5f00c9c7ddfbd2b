"""A file appears under its name complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepwarp.errors import OutputError

#: What the system says when the disk, the quota or the permitted file size is used up.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_path(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Lend a temporary path beside `path`, with its suffixes, and move what was written there to `path` at the end.

    The bytes are on the disk before the name is. If the body fails, is interrupted, or the disk is full, nothing is
    left behind and an older file stays as it was; a link at `path` is replaced, not followed.

    Raises OutputError if `path` exists and `overwrite` is false, if its folder is missing or read-only, and if the
    disk is full; other errors of the body pass unchanged."""
    path = Path(path)
    _refuse_existing(path, overwrite)
    temporary = _created_beside(path)
    try:
        yield temporary
        _flush(temporary)
        _refuse_existing(path, overwrite)
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise OutputError(f"{path}: cannot be written, {_reason(error)}. Free some space and run again.") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, overwrite: bool = False) -> None:
    """Write UTF-8 text atomically, with its line ends as they are; errors as `atomic_path`.

    A byte of a file's name that is not UTF-8, 0xF6, becomes \\udcf6: what JSON reads as the same name again."""
    with atomic_path(path, overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputError(f"{path}: is a folder. Choose another name.")
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path}: exists already. Choose another name, or replace it with --force.")


def _created_beside(path: Path) -> Path:
    """A new empty file in the folder of `path`: made at once, so that a folder that takes no file is known early."""
    suffixes = "".join(path.suffixes[-2:])
    temporary = path.with_name(f".partial-{secrets.token_hex(8)}{suffixes}")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written, {_reason(error)} ({path.parent}).") from error
    return temporary


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    # The file is in place already: a system that cannot flush a folder is no reason to fail.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
