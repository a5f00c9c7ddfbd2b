"""A file appears under its name complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepwarp import system_locks
from stepwarp.errors import OutputError

#: What the system says when the disk, the quota or the permitted file size is used up.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: How the names of temporary files begin.
_TEMPORARY = ".partial-stepwarp-"


@contextmanager
def atomic_path(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Lend a temporary path beside `path`, with its suffixes, and move what was written there to `path` at the end.

    The bytes are on the disk before the name is. If the body fails, is interrupted, or the disk is full, nothing is
    left behind and an older file stays as it was; a link at `path` is replaced, not followed. What a writer of the
    same file left when it was killed is removed.

    Raises OutputError if `path` exists and `overwrite` is false, or is no ordinary file, if its folder is missing or
    read-only, and if the disk is full; other errors of the body pass unchanged."""
    path = Path(path)
    _refuse_existing(path, overwrite)
    clear_temporaries(path.parent, _temporary_name(path))
    temporary, descriptor = _created_beside(path)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        yield temporary
        temporary.chmod(mode)  # some writers make a file that only its owner can read
        _flush(temporary)
        _give_name(temporary, path, overwrite)
        flush_folder(path.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise OutputError(f"{path}: cannot be written, {_reason(error)}. Free some space and run again.") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def check_file_target(path: str | Path, overwrite: bool = False) -> None:
    """Raise now, before there is anything to write, what `atomic_path` would raise for `path` as things stand."""
    path = Path(path)
    _refuse_existing(path, overwrite)
    temporary, descriptor = _created_beside(path)
    temporary.unlink()
    os.close(descriptor)


def write_text(path: str | Path, text: str, overwrite: bool = False) -> None:
    """Write UTF-8 text atomically, with its line ends as they are; errors as `atomic_path`.

    A byte of a file's name that is not UTF-8, 0xF6, becomes \\udcf6: what JSON reads as the same name again."""
    with atomic_path(path, overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def clear_temporaries(folder: Path, beginning: str = _TEMPORARY) -> None:
    """Remove the temporary files in a folder whose writers have died."""
    with contextlib.suppress(OSError):
        for each in folder.iterdir():
            if each.name.startswith(beginning):
                _remove_if_dead(each)


def flush_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder as they are now."""
    # The files are in place already: a system that cannot flush a folder is no reason to fail.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_if_dead(path: Path) -> None:
    # Whoever holds the lock is alive; a file system without locks tells nothing, and nothing is removed.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and system_locks.take(descriptor):
                path.unlink()
        finally:
            os.close(descriptor)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: cannot be written, {_reason(error)}. Choose another name.") from error
    if path.is_dir():
        raise OutputError(f"{path}: is a folder. Choose another name.")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is no ordinary file. Choose another name.")
    if not overwrite:
        raise OutputError(f"{path}: exists already. Choose another name, or replace it with --force.")


def _created_beside(path: Path) -> tuple[Path, int]:
    """A new empty file in the folder of `path`, open: made at once, so that a folder that takes none is known early."""
    suffixes = "".join(path.suffixes[-2:])
    while True:
        temporary = path.with_name(f"{_temporary_name(path)}{secrets.token_hex(4)}{suffixes}")
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(f"{path}: cannot be written, {_reason(error)} ({path.parent}).") from error
        if not path.name.lower().endswith((".h5", ".hdf5")):  # HDF5 locks its files itself, and refuses locked ones
            with contextlib.suppress(OSError):  # a file system without locks
                system_locks.take(descriptor)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # taken for one whose writer has died, in the moment before the lock


def _temporary_name(path: Path) -> str:
    """How the names of temporary files of `path` begin. Their writer holds a lock on them as long as it lives."""
    return f"{_TEMPORARY}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}-"


def _give_name(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        _refuse_existing(path, overwrite)
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)  # unlike a renaming, it never replaces what has appeared meanwhile
    except FileExistsError:
        _refuse_existing(path, overwrite)
        raise
    except OSError:  # a file system without hard links
        _refuse_existing(path, overwrite)
        temporary.replace(path)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
