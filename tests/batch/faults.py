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
    if name == "gpu":
        lose_gpu()
        return
    find = module.register_linear

    def register_linear(fixed, *arguments, **options):
        if not once or not Path(once).exists():
            if once:
                Path(once).touch()
            FAULTS[name](fixed)
        return find(fixed, *arguments, **options)

    module.register_linear = register_linear


def lose_gpu() -> None:
    """A GPU that is found, and gone when it shall compute."""
    import torch

    from stepwarp.kernels import backend
    from stepwarp.workflow import device, fallback, fitting, register

    for module in (device, fallback, register):
        module.chosen_device = lambda name: torch.device("cuda" if name == "auto" else name)
    fallback.device_name = register.device_name = lambda place: f"the {place.type}"
    for name, value in (("synchronize", None), ("reset_peak_memory_stats", None), ("max_memory_allocated", 0)):
        setattr(torch.cuda, name, lambda place, value=value: value)
    torch.cuda.mem_get_info = lambda place: (2**34, 2**34)
    backend.name_for = lambda place: "reference"
    search = fitting.search

    def searched(plan, *given):
        if plan.device.type == "cuda":
            raise RuntimeError("CUDA error: unspecified launch failure")
        return search(plan, *given)

    fitting.search = searched


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
