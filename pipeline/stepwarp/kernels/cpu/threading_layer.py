"""The threads that the kernels run on: numba's, started once, whatever the user's environment says of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

from numba.core import config
from numba.np.ufunc import parallel

from stepwarp.errors import ForkedError

_started_in: int | None = None


def start() -> None:
    """Start them, or do nothing if they run.

    A layer that NUMBA_THREADING_LAYER asks for and that is not here is replaced by the one there is, with a warning.
    Raises ForkedError in a process that was forked from one where they ran: there, what they wait for never comes."""
    global _started_in
    if _started_in is not None and _started_in != os.getpid() and not _survives_fork():
        raise ForkedError(
            "this process was forked from one that had computed with stepwarp, and the threads of that one are not in "
            "it. Start it afresh: multiprocessing.get_context('spawn') or 'forkserver' for Pool, Process and "
            "ProcessPoolExecutor, multiprocessing_context='spawn' for torch's DataLoader."
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

    os.register_at_fork(after_in_child=in_child)


def _survives_fork() -> bool:
    return parallel.threading_layer() != "omp"
