"""Work in a process of its own, which ends when the one that waits for it ends, however that happens."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stepwarp.errors import StepwarpError
from stepwarp.files.lock import open_own

#: How libraries are told the number of threads before they are loaded.
_THREADS = (
    *("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
_POLL_SECONDS = 1.0
#: What runs a module. -P: a folder named like a package, where the user happens to be, is not imported instead of it.
PYTHON = (sys.executable, "-P", "-m")
_SHOWN = 400
#: The folders of an absolute path; not those of a web address.
_FOLDERS = re.compile(r"(?<![\w:/.])/(?:[^\s/'\":]+/)+")


class ChildError(Exception):
    """The process did not do its work; says why in one line, without the folders of this machine."""


def run(
    module: str, job: Mapping[str, Any], log: Path, *, threads: int, use_gpu: bool, tick: Callable[[], None]
) -> None:
    """Run `main` of a module in this Python with a job that it `receive`s; what it prints goes to `log`.

    threads: told to every library that asks. use_gpu: if false, no GPU is to be seen. tick: called each second.
    Raises ChildError if it fails. It has a temporary folder of its own, which is removed with whatever it left there,
    and it and whatever it started are killed if this process is interrupted or killed."""
    with tempfile.TemporaryDirectory(prefix="stepwarp-benchmark-") as scratch:
        environment = os.environ | dict.fromkeys(_THREADS, str(threads)) | {"TMPDIR": scratch}
        if not use_gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        code = _wait([*PYTHON, module], json.dumps(job) + "\n", log, environment, tick)
    if code != 0:
        raise ChildError(_reason(code, log))


def receive() -> dict[str, Any]:
    """In the child, before anything large is imported: the job.

    From here on a second process waits for the parent to let go of its end of the pipe, which the system does for one
    that was killed, and ends the whole group: a thread could not while compiled code holds Python's lock."""
    wire = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    job = json.loads(wire.readline())
    if os.fork() == 0:
        wire.read()
        os.killpg(os.getpgrp(), signal.SIGKILL)
    wire.close()
    return job


def report_errors(work: Callable[[dict[str, Any]], None]) -> None:
    """In the child: do the work of the received job; its error becomes the last line printed, and exit code 1."""
    try:
        work(receive())
    except Exception as error:
        traceback.print_exc()
        kind = "" if isinstance(error, StepwarpError) else f"{type(error).__name__}: "
        print(kind + " ".join(str(error).split()), file=sys.stderr, flush=True)
        sys.exit(1)


def without_folders(value: Any) -> Any:
    """Text, and text inside lists and dictionaries, with the names of files only: results are shown to others."""
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    return [without_folders(item) for item in value] if isinstance(value, (list, tuple)) else value


def _wait(command: list[str], job: str, log: Path, environment: Mapping[str, str], tick: Callable[[], None]) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open_own(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a group of its own, which can be ended as a whole
        )
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it ended at once: its exit code and its log say why
            process.stdin.write(job.encode())
            process.stdin.flush()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL_SECONDS)
            tick()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _reason(code: int, log: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{why}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = without_folders(lines[-1].strip()) if lines else "it printed nothing"
    return said if len(said) <= _SHOWN else said[:_SHOWN] + " ..."
