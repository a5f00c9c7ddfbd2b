"""Locks on open files, which the system takes back when their holder ends, however that happens.

The one place that asks the system for them; Windows has others than POSIX, and portalocker knows both."""

from __future__ import annotations

from typing import IO, Any

import portalocker
from portalocker import LockFlags


def take(file: IO[Any] | int, wait: bool = False) -> bool:
    """Whether this process, by this open file or descriptor, now holds the file's lock alone; False if another does.

    wait: until the other lets go. Raises OSError for a file system without locks."""
    try:
        portalocker.lock(file, LockFlags.EXCLUSIVE if wait else LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked:
        return False
    except portalocker.LockException as error:
        raise OSError(str(error)) from error
    return True
