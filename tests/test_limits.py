"""What a job, a container or the shell allows, from files as the kernel writes them."""

import psutil
import pytest

from stepwarp import limits
from stepwarp.errors import InputError

GIB = 2**30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Lays out control groups in place of this machine's: the lines of /proc/self/cgroup, and files by path."""
    monkeypatch.setattr(limits, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(psutil.Process, "rlimit", lambda *_: (psutil.RLIM_INFINITY,) * 2)
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)

    def lay_out(own, files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return lay_out


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/job/step", {"job/cpu.max": "200000 100000", "job/step/cpu.max": "max 100000"}, 2),
        ("0::/job/step", {"job/cpu.max": "800000 100000", "job/step/cpu.max": "250000 100000"}, 2),
        ("0::/job", {"job/cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "300000 100000"}, 3),
        ("0::/../outside", {"cpu.max": "300000 100000"}, 3),
        ("4:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": 300000, "cpu,cpuacct/a/cpu.cfs_period_us": 100000}, 3),
        ("4:cpu:/not/here", {"cpu/cpu.cfs_quota_us": 100000, "cpu/cpu.cfs_period_us": 100000}, 1),
        ("4:cpu:/a", {"cpu/a/cpu.cfs_quota_us": -1, "cpu/a/cpu.cfs_period_us": 100000}, 64),
        ("", {}, 64),
    ],
)
def test_processors_of_nested_groups(groups, own, files, expected):
    groups(own, files)
    assert limits.processors() == expected


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/job/step", {"job/memory.max": GIB, "job/step/memory.max": "max"}, GIB),
        ("0::/job/step", {"job/memory.max": 3 * GIB, "job/step/memory.high": 2 * GIB}, 2 * GIB),
        (
            "5:memory:/a/b",
            {"memory/a/memory.limit_in_bytes": GIB, "memory/a/b/memory.limit_in_bytes": 2**63 - 4096},
            GIB,
        ),
    ],
)
def test_memory_of_nested_groups(groups, own, files, expected):
    groups(own, files)
    assert limits.memory() == expected
    assert limits.free_memory() <= expected


def test_memory_in_use_is_not_free_and_files_in_memory_are(groups):
    stat = f"anon {GIB // 2}\ninactive_file {GIB // 8}\nactive_file {GIB // 8}"
    groups("0::/a", {"a/memory.max": GIB, "a/memory.current": 3 * GIB // 4, "a/memory.stat": stat})
    assert limits.free_memory() == GIB // 2


def test_slurm_and_the_shell(groups, monkeypatch):
    groups("", {})
    unlimited = limits.memory()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    assert (limits.processors(), limits.memory()) == (64, unlimited), "not in a job"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert (limits.processors(), limits.memory()) == (4, 400 * 2**20)
    monkeypatch.setattr(psutil.Process, "rlimit", lambda *_: (2**26, 2**26))
    assert limits.memory() == 2**26
    assert limits.free_memory() == 0, "this process holds more than that already"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("6G", 6 * GIB),
        ("6 GiB", 6 * GIB),
        ("1.5gb", 3 * GIB // 2),
        ("800M", 800 * 2**20),
        ("2t", 2048 * GIB),
        (4096, 4096),
    ],
)
def test_an_amount_of_memory_has_a_unit(given, expected):
    assert limits.as_bytes(given) == expected


@pytest.mark.parametrize("given", ["6", "G", "-1G", "0M", "6 GB of it", "", "nan", 0, -5, float("nan"), True])
def test_what_is_no_amount_of_memory_is_refused_with_one_that_is(given):
    with pytest.raises(InputError, match="such as 6G or 800M"):
        limits.as_bytes(given)
