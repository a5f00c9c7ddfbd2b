"""One writer to a folder: a lock that says who holds it, and that the death of its holder undoes."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stepwarp.errors import OutputError

NAME = ".lock"
#: A holder touches its lock so often (seconds). One on another computer that has not for so long has died.
_BEAT, _DEAD = 10.0, 120.0


@contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Hold the folder, which is made if need be, while the block runs. work: what the holder is, "a benchmark".

    Raises OutputError, which names process and computer, if it is held already, and if it cannot be written to. The
    lock of a process that was killed is none: the system lets go of it, and where the file system does not tell that
    to other computers, it goes stale after two minutes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to, {(error.strerror or str(error)).lower()}.") from error
    with file:
        _take(file, folder)
        _write(file, {"work": work, "process": os.getpid(), "computer": socket.gethostname(), "since": _now()})
        stop = threading.Event()
        beat = threading.Thread(target=_keep_fresh, args=(folder / NAME, stop), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()
            _write(file, {})


def _take(file: IO[str], folder: Path) -> None:
    """The lock of an open file; OutputError if somebody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(_held(folder, _read(file))) from None
    except OSError:
        # A file system without locks: the file's content has to do.
        pass
    holder = _read(file)
    # Some file systems keep locks to one computer. There, only a fresh file shows that another one is at work.
    if holder and holder.get("computer") != socket.gethostname() and _age(folder / NAME) < _DEAD:
        raise OutputError(
            f"{_held(folder, holder)} If that computer has stopped, try again in {_DEAD:.0f} s or remove {NAME}."
        )


def _held(folder: Path, holder: dict[str, Any]) -> str:
    who = f"{holder.get('work', 'another run')} is writing into it"
    if holder:
        who += f" (process {holder.get('process')} on {holder.get('computer')}, since {holder.get('since')})"
    return f"{folder}: {who}. Wait for its end, or choose another --out."


def _read(file: IO[str]) -> dict[str, Any]:
    """Who holds the lock, or held it last and was killed; empty if nobody is known to."""
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
        file.write(json.dumps(content) if content else "")
        file.flush()


def _keep_fresh(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_BEAT):
        with suppress(OSError):
            os.utime(path)


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
