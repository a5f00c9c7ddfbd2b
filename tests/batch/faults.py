"""What goes wrong in a worker: Dask loads this into each before it works. STEPWARP_FAULT names the fault and, after a
colon, a file: the fault happens only as long as this is not there, and leaves it."""

import os
import resource
import signal
import time
from pathlib import Path


def dask_setup(worker) -> None:
    import stepwarp.workflow.search as module

    name, _, once = os.environ["STEPWARP_FAULT"].partition(":")
    find = module.register_linear

    def register_linear(fixed, *arguments, **options):
        if not once or not Path(once).exists():
            if once:
                Path(once).touch()
            FAULTS[name](fixed)
        return find(fixed, *arguments, **options)

    module.register_linear = register_linear


def die(fixed) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(fixed) -> None:
    time.sleep(600)


def full(fixed) -> None:
    """No file may grow beyond 50 kB, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


def memory(fixed) -> None:
    """Hardly any more memory than what is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    bytearray(2**26)


def remove(fixed) -> None:
    Path(fixed.name).unlink()


def truncate(fixed) -> None:
    os.truncate(fixed.name, 1000)


def bug(fixed) -> None:
    raise KeyError("/private/odd")


FAULTS = {fault.__name__: fault for fault in (die, sleep, full, memory, remove, truncate, bug)}
