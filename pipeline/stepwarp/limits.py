"""How many processors and how much memory this process may use: what is here, or less where a job, a container or the
shell allows less. The one place that knows.

Limits of control groups (v1 and v2, as Slurm, systemd, Docker and Kubernetes set them) hold for a group and all groups
within it, so the least of a group and its ancestors counts."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from stepwarp.errors import InputError

_MIB = 2**20
#: Where control groups are, and which of them this process is in.
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
#: A number and its unit: K, M, G or T, with or without iB or B.
_AMOUNT = re.compile(r"\s*(\d{1,9}(?:\.\d*)?)\s*([KMGT])(?:i?B)?\s*", re.IGNORECASE)
#: From here on, what a control group or the shell says is no limit: v1 writes a very large number for none.
_NO_LIMIT = 2**60


def processors() -> int:
    """How many this process may use at once, at least 1: by its affinity, by quotas, and by Slurm where a job's
    processes are not bound. A quota of two and a half is two: what goes beyond a quota is held up."""
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    counts += [max(1, math.floor(quota + 1e-6)) for quota in _quotas()]
    if "SLURM_JOB_ID" in os.environ:
        counts += _numbers("SLURM_CPUS_PER_TASK")
    return min(counts)


def memory() -> int:
    """Bytes that this process may hold at most."""
    return min([*_memory_limits(), psutil.virtual_memory().total])


def free_memory() -> int:
    """Bytes that new work may take without another process being pushed out or the work killed. What files occupy of a
    group's memory is given back when it is needed, and counts as free."""
    known = [limit - _used(folder) for folder, limit in _memory_groups()]
    known += [limit - _mapped() for limit in _shell_limits()]
    known += _job_memory()
    return max(0, min([*known, psutil.virtual_memory().available]))


def held_memory() -> int:
    """Bytes of memory that this process holds."""
    return psutil.Process().memory_info().rss


def as_bytes(given: object) -> int:
    """An amount of memory: bytes, or a text with a unit such as 6G, 6 GiB or 800M, of 1024 to the next.

    Raises InputError for what is none, and for nothing."""
    if isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given) and given >= 1:
        return int(given)
    found = _AMOUNT.fullmatch(str(given))
    number = float(found[1]) if found else 0.0
    if found is None or not number:
        raise InputError(f"'{given}' is no amount of memory; write a number with its unit, such as 6G or 800M")
    return max(1, int(number * 2 ** (10 * (1 + "KMGT".index(found[2].upper())))))


def in_words(size: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / _MIB:.0f} MiB"


def _memory_limits() -> list[int]:
    return [limit for _, limit in _memory_groups()] + _shell_limits() + _job_memory()


def _memory_groups() -> Iterator[tuple[Path, int]]:
    """Groups that this process is in, with the limit of each that has one."""
    for controller in ("", "memory"):
        for folder in _groups(controller):
            for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
                limit = _number(folder / name)
                if limit is not None and limit < _NO_LIMIT:
                    yield folder, int(limit)


def _used(folder: Path) -> int:
    """What a group holds and cannot give back."""
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
    counts = dict(line.split(None, 1) for line in _lines(folder / "memory.stat") if " " in line)
    files = [counts.get(f"{kind}{name}") for kind in ("total_", "") for name in ("inactive_file", "active_file")]
    reclaimable = files[:2] if files[0] is not None else files[2:]
    return max(0, int(used) - sum(int(count) for count in reclaimable if count is not None))


def _quotas() -> Iterator[float]:
    """Processors' time per time that groups of this process may use."""
    for folder in _groups(""):
        quota, _, period = "".join(_lines(folder / "cpu.max")[:1]).partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)
    for folder in _groups("cpu"):
        share, of = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if share is not None and share > 0 and of:
            yield share / of


def _groups(controller: str) -> list[Path]:
    """The folder of this process's group of a controller, "" for v2's one tree, and of all groups around it.

    In a container the path that the kernel names may lie outside of what is mounted; what there is of it counts."""
    found: list[Path] = []
    for line in _lines(_OWN_GROUPS):
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller not in names.split(",") or (not controller and number != "0"):
            continue
        for mount in (_GROUPS, _GROUPS / "unified") if not controller else (_GROUPS / controller, _GROUPS / names):
            if ".." in Path(path).parts:
                path = "/"
            group = mount / path.lstrip("/")
            found += [folder for folder in (group, *group.parents) if folder.is_relative_to(mount) and folder.is_dir()]
    return list(dict.fromkeys(found))


def _shell_limits() -> list[int]:
    """Of the address space, as `ulimit -v` sets it, and of data."""
    if not hasattr(psutil, "RLIMIT_AS"):  # systems that do not keep to it, or that have none
        return []
    values = [psutil.Process().rlimit(kind)[0] for kind in (psutil.RLIMIT_AS, psutil.RLIMIT_DATA)]
    return [value for value in values if 0 <= value < _NO_LIMIT]


def _mapped() -> int:
    """Bytes of this process's address space in use."""
    return psutil.Process().memory_info().vms


def _job_memory() -> list[int]:
    """What Slurm has given a job on this computer, which it may enforce by counting, without a control group."""
    if "SLURM_JOB_ID" not in os.environ:
        return []
    each = [mib * processors() for mib in _numbers("SLURM_MEM_PER_CPU")]
    return [mib * _MIB for mib in (*_numbers("SLURM_MEM_PER_NODE"), *each)]


def _numbers(variable: str) -> list[int]:
    value = os.environ.get(variable, "")
    return [int(value)] if value.isdigit() and int(value) > 0 else []


def _number(path: Path) -> float | None:
    text = "".join(_lines(path)[:1])
    return float(text) if text.lstrip("-").isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
