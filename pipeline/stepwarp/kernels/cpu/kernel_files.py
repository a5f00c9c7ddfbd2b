"""The files that hold the kernels' machine code: one folder for these sources, this numba and this kind of processor,
which is there whole or not at all."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
from numba.core import config

from stepwarp import limits, system_locks

#: The back end, each file of which may define kernels.
_FOLDER = Path(__file__).parent
_SECONDS_BETWEEN_LINES = 5
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from stepwarp.kernels.cpu import kernel_files; "
_CHILD += "kernel_files.fill(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))"
#: More processes than that gain little: one kernel takes as long as several others.
_MOST_PROCESSES = 4

_log = logging.getLogger("stepwarp")
Content = TypeVar("Content")


def read_from_whole(read: Callable[[Path], Content], processor: tuple[Any, ...]) -> Content | None:
    """What `read` finds in the folder, which is filled before if need be; None where no folder can be.

    processor: numba's name for what it compiles for. Where `read` raises, the files are damaged and made anew."""
    name = _name(processor)
    for _ in range(2):
        folder = _whole(name)
        if folder is None:
            return None
        try:
            return read(folder)
        except Exception as error:  # a damaged pickle raises anything
            _log.debug("damaged", exc_info=error)
            _log.warning("stepwarp: the compiled kernels in %s are damaged and are made anew", folder)
            _whole.cache_clear()
            shutil.rmtree(folder, ignore_errors=True)
    return None


def where() -> tuple[Path | None, bool]:
    """The folder that is or would be used, None where none can be made, and whether it is filled."""
    name = _name(numba.core.registry.cpu_target.target_context.codegen().magic_tuple())
    for place in _places():
        if _trusted(place / name):
            return place / name, True
        if _can_be_made(place):
            return place / name, False
    return None, False


def prepare() -> None:
    """Fill the folder if need be, so that nobody waits for it later."""
    _whole(_name(numba.core.registry.cpu_target.target_context.codegen().magic_tuple()))


def fill(folder: str, part: int, parts: int) -> None:
    """What each of the processes that share the compilation does; on stdout it says a line for each kernel."""
    os.umask(0o022)
    for source in _sources():
        importlib.import_module(".".join((__package__, *source.relative_to(_FOLDER).with_suffix("").parts)))
    from stepwarp.kernels.cpu.compiled import compile_all

    compile_all(Path(folder), part, parts, lambda total: print(total, flush=True))


@cache
def _whole(name: str) -> Path | None:
    """The first place's folder that is filled or can be."""
    reasons: list[str] = []
    for place in _places():
        folder = place / name
        if _trusted(folder):
            return folder
        try:
            place.mkdir(parents=True, exist_ok=True)
            with _lock(place / f"{name}.lock"):
                if not _trusted(folder):
                    _make(folder)
            if _trusted(folder):
                return folder
        except (OSError, subprocess.SubprocessError) as error:
            _log.info("stepwarp: no compiled kernels can be kept in %s (%s)", place, error)
            reasons.append(f"{place}: {getattr(error, 'strerror', None) or 'the compilation fails'}")
    _log.warning(
        "stepwarp: there is no folder for the compiled kernels, so every run compiles them, and its last digits may "
        "differ (%s). Set NUMBA_CACHE_DIR to a folder that you may write to.",
        "; ".join(reasons),
    )
    return None


def _places() -> Iterator[Path]:
    """Where the folder may be, the best place first."""
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR).absolute()
    yield _FOLDER / "__pycache__"
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111  # there may be none
    if home.is_absolute():
        yield home / "stepwarp"
    with suppress(OSError):
        yield _private_temporary()


def _private_temporary() -> Path:
    """A folder for temporary files that nobody else can write to: what lies in it will be run."""
    place = Path(tempfile.gettempdir()) / f"stepwarp-{os.getuid()}"
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    return place if _trusted(place) else Path(tempfile.mkdtemp(prefix="stepwarp-"))


def _trusted(folder: Path) -> bool:
    """Whether it is there, of this user or of the system's, and nobody else can have put anything into it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid in (0, os.getuid()) and not status.st_mode & 0o022


def _can_be_made(place: Path) -> bool:
    existing = next(path for path in (place, *place.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _sources() -> list[Path]:
    return sorted(source for source in _FOLDER.rglob("*.py") if source.name != "__init__.py")


@cache
def _name(processor: tuple[Any, ...]) -> str:
    """One for everything that the machine code depends on."""
    content = hashlib.sha256(repr((numba.__version__, llvmlite.__version__, sys.version, processor)).encode())
    for source in _sources():
        content.update(source.read_bytes())
    return f"stepwarp-kernels-{content.hexdigest()[:20]}"


def _make(folder: Path) -> None:
    """Compile into a folder that gets its name when it is whole. The lock is held: others of this name are of the
    dead."""
    for left in folder.parent.glob(f"{folder.name}.making-*"):
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.making-", dir=folder.parent))
    try:
        work.chmod(0o755)
        _log.warning("stepwarp: compiling the kernels, once; this takes up to a minute (into %s)", folder.parent)
        _compile(work)
        _remove(folder)  # what is there by this name is not to be trusted
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _compile(folder: Path) -> None:
    """Raises CalledProcessError where one of the processes that compile does not end well."""
    command = [sys.executable, "-c", _CHILD, json.dumps([str(Path(entry).absolute()) for entry in sys.path])]
    parts = min(limits.processors(), _MOST_PROCESSES)
    with tempfile.TemporaryFile("w+") as errors:
        receiver, sender = os.pipe()
        children = []
        try:
            with os.fdopen(sender, "w") as stdout:
                for part in range(parts):
                    children.append(
                        subprocess.Popen(
                            [*command, str(folder), str(part), str(parts)],
                            executable=_interpreter(),
                            env=_environment(),
                            cwd=folder,
                            stdout=stdout,
                            stderr=errors,
                        )
                    )
            _say_progress(receiver)
            for child in children:
                if child.wait():
                    errors.seek(0)
                    raise subprocess.CalledProcessError(child.returncode, "compile", stderr=errors.read()[-2000:])
        finally:
            for child in children:
                child.kill()
                child.wait()


def _say_progress(receiver: int) -> None:
    """From time to time, until every process that can write to the pipe has ended."""
    said = time.monotonic()
    with os.fdopen(receiver) as lines:
        for done, total in enumerate(lines, 1):
            if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                _log.warning("stepwarp: compiling the kernels, %d of %s are done", done, total.strip())


def _interpreter() -> str:
    """The running one, also where its file may no longer be reached, as after a change of the user."""
    return sys.executable if os.access(sys.executable or "", os.X_OK) else "/proc/self/exe"


def _environment() -> dict[str, str]:
    """Of the user's, without what changes how numba compiles; what it compiles for stays."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    target = {"CPU_NAME": config.CPU_NAME, "CPU_FEATURES": config.CPU_FEATURES, "ENABLE_AVX": int(config.ENABLE_AVX)}
    return mine | {f"NUMBA_{name}": str(value) for name, value in target.items() if value is not None}


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; where the file system knows no locks several may compile, and the first one counts."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):
            system_locks.take(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
