"""One writer to a folder: a lock that says who holds it, and that the death of its holder undoes.

The lock stays behind as the mark by which a command knows a folder of its own: what a folder without it holds is
somebody else's, and is neither replaced nor removed."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stepwarp import system_locks
from stepwarp.errors import ForeignError, OutputError

NAME = ".lock"
_MARK = "stepwarp"
#: A holder touches its lock so often (seconds). One on another computer that has not for so long has died.
_BEAT, _DEAD = 10.0, 120.0


@contextmanager
def locked(folder: Path, kind: str, names: Collection[str] | None = (), *, known: bool = False) -> Iterator[None]:
    """Hold the folder, which is made if need be, while the block runs. kind: what the holder is, "benchmark".

    names: what it writes there, None for everything. Unless the folder is marked as one of this kind, or `known` as
    one by other means, none of it may be there already.

    Raises OutputError, which names process and computer, if it is held already, if it cannot be written to, and for a
    link or special file among all this. The lock of a process that was killed is none: the system lets go of it, and
    where the file system does not tell that to other computers, it goes stale after two minutes."""
    with _taken(folder, kind) as file:
        if not known and _read(file).get(_MARK) != kind:
            _refuse_foreign(file, folder, kind, names)
        for name in names or ():
            refuse_links(folder / name)
        who = {"process": os.getpid(), "computer": socket.gethostname(), "since": _now()}
        _write(file, {_MARK: kind, **who})
        stop = threading.Event()
        beat = threading.Thread(target=_keep_fresh, args=(file, stop), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()
            _write(file, {_MARK: kind})


def open_own(path: Path, mode: str) -> IO[Any]:
    """Open a file of an output folder to write in place ("a", "a+", "w", "wb"), UTF-8 if it is text.

    Raises OutputError for a link, a special file and a file with a second name: what is written would be elsewhere."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | (os.O_APPEND if "a" in mode else 0), 0o666)
    except OSError as error:
        _refuse_unusual(path)
        raise OutputError(f"{path}: cannot be written to, {(error.strerror or str(error)).lower()}.") from error
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
        os.close(descriptor)
        _refuse_unusual(path)
        raise OutputError(f"{path}: has a second name elsewhere (a hard link). Remove it, or choose another --out.")
    if "w" in mode:
        os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8")


def refuse_links(path: Path) -> None:
    """OutputError for a link or special file at or below `path`: what is read and written would be elsewhere."""
    _refuse_unusual(path)
    if not path.is_dir():
        return
    waiting = [path]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    _refuse_unusual(Path(entry.path))


def _refuse_unusual(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISLNK(mode):
        raise ForeignError(f"{path}: is a link, and nothing is written through links. Remove it.")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ForeignError(f"{path}: is no ordinary file. Remove it.")


def _refuse_foreign(file: IO[str], folder: Path, kind: str, names: Collection[str] | None) -> None:
    present = {path.name for path in folder.iterdir()} - {NAME}
    there = sorted(present if names is None else present.intersection(names))
    if not there:
        return
    if not os.fstat(file.fileno()).st_size:  # made a moment ago
        (folder / NAME).unlink(missing_ok=True)
    raise ForeignError(
        f"{folder / there[0]}: is there already, and no {kind} of stepwarp is known to have made it. "
        "Choose another --out, or move it away."
    )


@contextmanager
def _taken(folder: Path, kind: str) -> Iterator[IO[str]]:
    """The lock's file, open and held."""
    path = folder / NAME
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written to, {(error.strerror or str(error)).lower()}.") from error
        with open_own(path, "a+") as file:
            _take(file, folder, kind)
            # Another run may have ended, and taken it away, between the opening and the lock.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                yield file
                return


def _take(file: IO[str], folder: Path, kind: str) -> None:
    """The lock of an open file; OutputError if somebody has it, or it is another program's file."""
    with suppress(OSError):  # a file system without locks: the file's content has to do
        if not system_locks.take(file):
            raise OutputError(_held(folder, kind, _read(file)))
    file.seek(0)
    if not _is_ours(file.read(10_000)):
        raise OutputError(f"{folder / NAME}: is not a lock of stepwarp. Move it away, or choose another --out.")
    holder = _read(file)
    # Some file systems keep locks to one computer. There, only a fresh file shows that another one is at work.
    if "process" in holder and holder.get("computer") != socket.gethostname() and _age(file) < _DEAD:
        held = _held(folder, kind, holder)
        raise OutputError(f"{held} If that computer has stopped, try again in {_DEAD:.0f} s.")


def _held(folder: Path, kind: str, holder: dict[str, Any]) -> str:
    who = f"another {holder.get(_MARK, kind)} is writing into it"
    if "process" in holder:
        who += f" (process {holder['process']} on {holder.get('computer')}, since {holder.get('since')})"
    return f"{folder}: {who}. Wait for its end, or choose another --out."


def _is_ours(text: str) -> bool:
    """Whether this can be what a lock holds: also of a process or a computer that died while it wrote, and of versions
    that said what was at work under another key."""
    said = text.strip("\0 \n")
    beginnings = [f'{{"{key}"' for key in (_MARK, "work")]
    return any(said.startswith(beginning) or beginning.startswith(said) for beginning in beginnings)


def _read(file: IO[str]) -> dict[str, Any]:
    """Who holds the lock, or held it last; empty if nobody is known to."""
    file.seek(0)
    try:
        content = json.loads(file.read(10_000))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: IO[str], content: dict[str, Any]) -> None:
    # On a full disk the lock itself still holds.
    with suppress(OSError):
        file.seek(0)
        file.truncate()
        file.write(json.dumps(content))
        file.flush()


def _keep_fresh(file: IO[str], stop: threading.Event) -> None:
    while not stop.wait(_BEAT):
        with suppress(OSError):
            os.utime(file.fileno())


def _age(file: IO[str]) -> float:
    return time.time() - os.fstat(file.fileno()).st_mtime


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
