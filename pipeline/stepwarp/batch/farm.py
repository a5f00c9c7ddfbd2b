"""Where the workers are: processes of this computer, a Dask cluster that runs already, or jobs of a batch system."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import dask
from distributed import Client, LocalCluster, WorkerPlugin

from stepwarp import limits
from stepwarp.batch.places import BatchPlaces
from stepwarp.errors import InputError
from stepwarp.files.utf8 import utf8_path
from stepwarp.printable import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepwarp.batch.plan import BatchCase

System = Literal["slurm", "sge", "pbs"]
_CLUSTERS = {"slurm": "SLURMCluster", "sge": "SGECluster", "pbs": "PBSCluster"}

#: Of the free memory, what workers may plan with; and how much more than planned a job asks of a batch system.
_SHARE, _RESERVE = 0.8, 1.3
#: Workers that share a GPU, if nothing is said: an H200 works a tenth of the time that a pair takes, so that more would
#: find it busy. And the cores that each should have, one of them for telling it what to do.
_ON_A_GPU, _CORES_BESIDE_IT = 8, 2
#: What CUDA takes of a GPU for each process, before torch takes anything, MiB.
_CONTEXT_MIB = 600
#: How many jobs a batch system is asked for at a time, if nothing is said.
_JOBS = 16
_CONNECT_SECONDS, _CLOSE_SECONDS, _REFILL_SECONDS = 15, 20, 30

_CONFIG = {
    # A worker that dies takes its case along, and that is tried again from here, after a while.
    "distributed.scheduler.allowed-failures": 0,
    # On a busy computer the successor of a worker takes a minute to come.
    "distributed.deploy.lost-worker-timeout": "3 minutes",
    # Cases return a few numbers, so nothing of a worker's memory could be moved to its disk, and one that paused would
    # wait for ever.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.use-file-locking": False,
    # It keeps call stacks of the last hour, and grows with every case.
    "distributed.worker.profile.enabled": False,
}


@dataclass(frozen=True)
class Farm:
    """What is asked for. workers: cases at a time. threads: of each. scheduler: the address of one that runs. system:
    a batch system to start workers through, with `options` for dask-jobqueue. At most one of the last two."""

    workers: int | None = None
    threads: int | None = None
    scheduler: str | None = None
    system: System | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scheduler and self.system:
            raise InputError("--scheduler and --cluster name two places to work at. Leave one out.")
        if self.options and not self.system:
            raise InputError("--cluster-option says something about a batch system; name it with --cluster.")

    @property
    def here(self) -> bool:
        """Whether the workers are processes of this computer."""
        return not (self.scheduler or self.system)

    def size(self, cases: Sequence[BatchCase], gpu_free_mib: int | None = None) -> FarmSize:
        """How many workers there will be, as far as it is decided here.

        gpu_free_mib: memory that is free on the GPU that workers of this computer compute on; None without one. They
        are no more than find room there side by side, however many are asked for."""
        memory = max((case.memory_mib for case in cases), default=0)
        count = max(1, len(cases))
        if self.scheduler:
            return FarmSize(None, self.threads, memory, None)
        if self.system:
            return FarmSize(min(self.workers or _JOBS, count), self.threads or 1, memory, None)
        free = available_mib()
        fitting = max(1, int(free * _SHARE / max(memory, 1)))
        if gpu_free_mib is None:
            at_once = min(limits.processors() // (self.threads or 1), fitting) or 1
            workers = min(self.workers or at_once, count)
            return FarmSize(workers, self.threads or max(1, limits.processors() // workers), memory, free)
        each = max((case.gpu_mib for case in cases), default=0) + _CONTEXT_MIB
        side_by_side = max(1, int(gpu_free_mib * _SHARE / each))
        at_once = min(limits.processors() // (self.threads or _CORES_BESIDE_IT), fitting, _ON_A_GPU) or 1
        workers = min(self.workers or at_once, side_by_side, count)
        share = int(gpu_free_mib * _SHARE / workers) - _CONTEXT_MIB if workers > 1 else None
        return FarmSize(workers, self.threads or max(1, limits.processors() // workers), memory, free, share)


@dataclass(frozen=True)
class FarmSize:
    """workers: how many, None if others decide. threads: of each, None for all that a worker may use. memory_mib: what
    the largest case takes. free_mib: memory of this computer that is free, if the workers are here. gpu_mib: of a GPU
    that several of them share, what each may take."""

    workers: int | None
    threads: int | None
    memory_mib: int
    free_mib: int | None
    gpu_mib: int | None = None

    def __str__(self) -> str:
        who = "the workers of the scheduler" if self.workers is None else counted(self.workers, "worker")
        threads = "" if self.threads is None else f", {counted(self.threads, 'thread')} each"
        free = "" if self.free_mib is None else f" of {self.free_mib} MiB that are free"
        gpu = "" if self.gpu_mib is None else f", and at most {self.gpu_mib} MiB of the GPU that they share"
        return f"{who}{threads}, about {self.memory_mib} MiB a case{free}{gpu}"


def available_mib() -> int:
    """Memory that is free, or as much as this process may use if that is less."""
    return limits.free_memory() // 2**20


class Crew:
    """Workers at work. client: what they are told through."""

    def __init__(self, client: Client, cluster: Any = None, count: int | None = None) -> None:
        self.client, self._cluster, self._count = client, cluster, count
        self._filled = self._asked = time.monotonic()
        self._present = 0

    def present(self) -> int:
        """How many there are, as of a second ago; as many cases can be handed out."""
        now = time.monotonic()
        if self._cluster is not None and now - self._filled > _REFILL_SECONDS:
            # Jobs end with their time, and a worker that does not come back is given up: others take their place.
            self._filled = now
            self._cluster.scale(self._count)
        if self._present == 0 or now - self._asked > 1:
            self._asked = now
            try:
                self._present = len(self.client.nthreads())
            except (OSError, TimeoutError):
                self._present = 0
        return self._present

    @property
    def lost(self) -> bool:
        """Whether the scheduler has gone."""
        return self.client.status != "running"

    @property
    def dashboard(self) -> str | None:
        """Where the live dashboard is; None without bokeh, which draws it."""
        return self.client.dashboard_link or None if _has("bokeh") else None


@contextmanager
def workers(farm: Farm, size: FarmSize, places: BatchPlaces) -> Iterator[Crew]:
    """The workers, which end with the block if they were started here.

    places: on a file system that all workers see. Raises InputError for a scheduler that does not answer, a missing
    package, and options that dask-jobqueue does not take."""
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters of it becomes a case's reason
    with dask.config.set(_CONFIG):
        if farm.scheduler:
            with _connected(farm.scheduler) as client:
                yield Crew(client)
            return
        places.scratch.mkdir(parents=True, exist_ok=True)
        with utf8_path(places.scratch) as scratch:
            cluster = _local(size, scratch) if farm.system is None else _queued(farm.system, farm.options, size, places)
            try:
                with Client(cluster) as client:
                    if farm.system is None:
                        client.register_plugin(_IgnoreInterrupts())
                    yield Crew(client, cluster, size.workers)
            finally:
                _end(cluster)


class _IgnoreInterrupts(WorkerPlugin):
    """Ctrl-C reaches every process of a terminal; what a worker does then is for the one that started it to say."""

    name = "ignore-interrupts"

    def setup(self, worker: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{address}: no Dask scheduler answers there ({' '.join(str(error).split())[:200]}). Start one with "
            "`dask scheduler`, and give the address that it prints."
        ) from error
    with client:
        yield client


def _local(size: FarmSize, scratch: str) -> LocalCluster:
    assert size.workers is not None
    assert size.free_mib is not None
    return LocalCluster(
        n_workers=size.workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=f"{max(size.free_mib // size.workers, size.memory_mib)}MiB",
        local_directory=scratch,
        dashboard_address=f"127.0.0.1:{_dashboard_port()}" if _has("bokeh") else None,
        security=_has("cryptography"),
        silence_logs=logging.CRITICAL,
    )


def _dashboard_port() -> int:
    """The port that Dask's users know, or 0 for any if another run has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8787))
        except OSError:
            return 0
    return 8787


def _queued(system: System, options: Mapping[str, Any], size: FarmSize, places: BatchPlaces) -> Any:
    """Jobs of a batch system, one worker each."""
    if not _has("dask_jobqueue"):
        raise InputError("--cluster needs dask-jobqueue: pip install 'stepwarp[cluster]'")
    import dask_jobqueue

    kind = getattr(dask_jobqueue, _CLUSTERS[system])
    arguments: dict[str, Any] = {
        "cores": size.threads,
        "processes": 1,
        "memory": f"{round(size.memory_mib * _RESERVE)}MiB",
        "python": sys.executable,
        "log_directory": str(places.logs),
        "shared_temp_directory": str(places.scratch),
        "local_directory": str(places.scratch),
        "worker_extra_args": ["--nthreads", "1"],  # one case at a time, on all the threads that the job has
        "security": _has("cryptography"),
        "job_name": "stepwarp",
        "scheduler_options": {"dashboard_address": f"127.0.0.1:{_dashboard_port()}" if _has("bokeh") else None},
        **options,
    }
    try:
        cluster = kind(**arguments)
    except (TypeError, ValueError) as error:
        said = str(error).split(". ")[0]
        raise InputError(f"--cluster-option: dask-jobqueue does not take it ({said}).") from error
    cluster.scale(size.workers)
    return cluster


def _end(cluster: Any) -> None:
    """End the workers at once, whatever they are at: what is finished is on the disk, the rest is done again."""
    if isinstance(cluster, LocalCluster):
        for nanny in list(cluster.workers.values()):
            nanny.auto_restart = False
            with suppress(ProcessLookupError, TypeError):  # it is just being started, or has ended
                os.kill(nanny.pid, signal.SIGKILL)
    with suppress(TimeoutError, OSError):
        cluster.close(timeout=_CLOSE_SECONDS)


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
