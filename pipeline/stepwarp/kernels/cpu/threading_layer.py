"""The threads that the kernels run on: numba's, started once, whatever the user's environment says of them; and what
is left of torch's in a process that was forked."""

from __future__ import annotations

import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numba
import torch
from numba.core import config
from numba.np.ufunc import parallel

from stepwarp.errors import ForkedError

_started_in: int | None = None
#: Of Linux's sched.h: the process was forked and runs the program of its parent.
_FORKED_AND_NOT_EXECUTED = 0x40
#: Threads that have not done a millisecond's work within so many seconds are not there.
_PATIENCE = 10.0
#: Fewer voxels are done by one thread before another one has been woken.
_VOXELS_OF_A_THREAD = 25_000


def start() -> None:
    """Start them, or do nothing if they run.

    A layer that NUMBA_THREADING_LAYER asks for and that is not here is replaced by the one there is, with a warning.
    Raises ForkedError in a process that was forked from one where they ran: there, what they wait for never comes."""
    global _started_in
    if _started_in is not None and _started_in != os.getpid() and not _survives_fork():
        raise ForkedError(
            "this process was forked from one that had computed with stepwarp, and the threads of that one are not in "
            "it. Start it afresh: multiprocessing.get_context('spawn'), or 'forkserver', has Pool and Process and is "
            "the mp_context of ProcessPoolExecutor; torch's DataLoader takes multiprocessing_context='spawn'."
        )
    try:
        parallel._launch_threads()
    except ValueError as error:
        asked, order = config.THREADING_LAYER, " ".join(config.THREADING_LAYER_PRIORITY)
        config.THREADING_LAYER, config.THREADING_LAYER_PRIORITY = "default", ["tbb", "omp", "workqueue"]
        parallel._launch_threads()
        said = " ".join(str(error).split())
        warnings.warn(
            f"NUMBA_THREADING_LAYER={asked} and NUMBA_THREADING_LAYER_PRIORITY={order} cannot be met ({said}); "
            f"{parallel.threading_layer()} is used. Unset them.",
            stacklevel=2,
        )
    _started_in = os.getpid()


def on_fork(forget: Callable[[], None]) -> None:
    """Call `forget` in every process that is forked from one where the threads run."""

    def in_child() -> None:
        if _started_in is not None and not _survives_fork():
            forget()

    if hasattr(os, "register_at_fork"):  # Windows does not fork
        os.register_at_fork(after_in_child=in_child)


def slab(planes: int, least: int = 1, volumes: int = 1) -> int:
    """How many planes in a row make a share of the work where each of so many volumes has `planes`: for every thread
    one, of `least` planes or more."""
    start()
    return max(least, math.ceil(planes / math.ceil(numba.get_num_threads() / max(1, volumes))))


@contextmanager
def fitting_threads(voxels: int) -> Iterator[None]:
    """Within it, work on a grid of so many voxels is shared by no more threads than have something to do."""
    start()
    pools = (numba.get_num_threads, numba.set_num_threads), (torch.get_num_threads, torch.set_num_threads)
    before = [number() for number, _ in pools]
    most = max(1, voxels // _VOXELS_OF_A_THREAD)
    for (_, use), number in zip(pools, before, strict=True):
        if number > most:
            use(most)
    try:
        yield
    finally:
        for (_, use), number in zip(pools, before, strict=True):
            if number > most:
                use(number)


def _survives_fork() -> bool:
    return parallel.threading_layer() != "omp"


def leave_dead_threads(wanted: int | None = None) -> int:
    """Have torch use so many threads, by default as many as before, and return their number: 1, with a warning, in a
    process that was forked from one where torch's threads ran. There, torch would wait for them for ever."""
    wanted = torch.get_num_threads() if wanted is None else wanted
    if wanted > 1 and not _threads_answer(os.getpid()):
        warnings.warn(
            "this process was forked from one that had computed with torch, whose threads are not in it: it computes "
            "on one thread. Start it by 'spawn' or 'forkserver' to have more.",
            stacklevel=2,
        )
        wanted = 1
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)
    return wanted


@cache
def _threads_answer(process: int) -> bool:
    """Whether torch's threads work in this process. One that was forked has another one try it out, which as its copy
    finds what it would find itself, and can be given up."""
    if not _was_forked():
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, that to fork beside threads may go wrong
        child = os.fork()
    if not child:
        torch.set_num_threads(2)
        torch.ones(2**18).exp_()
        os._exit(0)
    end = time.monotonic() + _PATIENCE
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.005)
    return True


def _was_forked() -> bool:
    """Whether this process runs on from where its parent was; as far as the system tells, which is that of Linux."""
    with suppress(OSError):
        flags = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6]
        return bool(int(flags) & _FORKED_AND_NOT_EXECUTED)
    return False
