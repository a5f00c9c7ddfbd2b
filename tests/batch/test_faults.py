"""What happens to a batch while it runs. Whatever it is: no wrong or partial file under a final name, what is finished
is kept, the same command does the rest, and nothing is left behind."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.data, pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")]

QUICK = ("--preset", "fast", "--affine-only", "--threads", "1", "--device", "cpu")
CASES = {"1000_1001", "1001_1013", "1013_1019", "1000_1013"}


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.mark.slow
def test_killed_and_started_again(study, out, start, look):
    """A worker killed, then the whole run; and the rest: one story, so that it takes few seconds."""
    cases = CASES - {"1000_1013"}
    command = (study, "--out", out, "--workers", "1", "--only", ",".join(sorted(cases)), *QUICK)
    first = start(*command)
    first.wait_for("] ")
    (worker,) = first.workers()
    worker.kill()  # it is at the second case
    first.wait_for("] ", 2)
    running = [psutil.Process(first.process.pid), *first.workers()]
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    _, alive = psutil.wait_procs(running, timeout=20)
    assert alive == []
    kept = look.finished(out)
    assert kept

    second = start(*command)
    assert second.end() == 0, second.text
    everything = look.finished(out)
    assert set(everything) == cases
    assert kept.items() <= everything.items()
    assert look.leftovers(out) == []
    assert (out / "index.html").exists()
    assert list((out / "failed").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments(study, out, start, look, seed):
    """Workers and whole runs, again and again, until all of the work is done or six lives are over."""
    command = (study, "--out", out, "--workers", "2", *QUICK)
    chance, kept = random.Random(seed), {}
    for attempt in range(6):
        if set(kept) == CASES:
            break
        running = start(*command)
        running.wait_for("to run on")
        time.sleep(chance.uniform(0, 8) if attempt else 0)
        target = chance.choice(["worker", "run"])
        for worker in running.workers()[: 1 if target == "worker" else 0]:
            worker.kill()
        if target == "worker":
            time.sleep(chance.uniform(0, 4))
        processes = running.workers() if running.process.poll() is None else []
        running.process.kill()
        running.process.wait()
        assert psutil.wait_procs(processes, timeout=30)[1] == []
        now = look.finished(out)
        assert kept.items() <= now.items()
        kept = now
    last = start(*command)
    assert last.end() in (0, 7), last.text
    assert set(look.finished(out)) == CASES
    assert kept.items() <= look.finished(out).items()
    assert look.leftovers(out) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_told_to_end(study, out, start, look, number, code, word):
    running = start(study, "--out", out, "--workers", "2", *QUICK)
    running.wait_for("] ")
    workers = running.workers()
    assert running.end(number) == code
    assert running.text.endswith(f"stepwarp: {word}\n")
    assert "Traceback" not in running.text
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert look.leftovers(out) == []
    assert look.finished(out)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["die", "full", "memory"])
def test_a_fault_of_the_machine_that_passes_is_overcome(study, out, start, look, tmp_path, fault):
    """One case meets it once; a limit stays with its worker, so that is killed, as an administrator would."""
    once = tmp_path / "once"
    running = start(study, "--out", out, "--workers", "1", *QUICK, fault=f"{fault}:{once}")
    running.wait_for("Trying again")
    if fault != "die":
        for worker in running.workers():
            worker.kill()
    assert running.end() == 0, running.text
    assert set(look.finished(out)) == CASES
    assert look.leftovers(out) == []
    assert list((out / "failed").iterdir()) == []


@pytest.mark.slow
def test_a_gpu_that_is_lost_costs_no_case(study, out, start, look):
    command = (study, "--out", out, "--workers", "1", "--only", "1000_1001,1013_1019", *QUICK[:-2])
    running = start(*command, fault="gpu")
    assert running.end() == 0, running.text
    assert running.text.count("the GPU failed, and the processor computed it: CUDA error: unspecified launch") == 2
    for case in look.finished(out):
        record = json.loads((out / "cases" / case / "registration.json").read_text())
        assert record["device"] == "the cpu"
        assert record["gpu_failure"]["device"] == "the cuda"
    assert (out / "cases.csv").read_text().count("the GPU (the cuda) failed, and the processor computed this") == 2


REASONS = {
    "die": "its worker died",
    "full": "cannot be written, file too large",
    # It ran out in the first case; for the second the plan knows how little there is.
    "memory": "Free some, give it more (--max-memory",
    "remove": "does not exist",
    "truncate": "changed while the batch was running",
    "bug": "this is a bug in stepwarp",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", REASONS)
def test_a_fault_that_stays_leaves_its_reason_and_the_next_run_does_the_rest(study, out, start, look, fault):
    command = (study, "--out", out, "--workers", "1", "--only", "1000_1001,1013_1019", *QUICK)
    originals = {path: path.read_bytes() for path in study.parent.glob("*.nii.gz")}
    broken = start(*command, "--retries", "0", fault=fault)
    assert broken.end() == 6, broken.text
    assert look.finished(out) == {}
    assert look.leftovers(out) == []
    failures = {path.stem: json.loads(path.read_text()) for path in (out / "failed").glob("*.json")}
    assert set(failures) == {"1000_1001", "1013_1019"}
    assert all(REASONS[fault] in failure["reason"] for failure in failures.values()), failures
    assert REASONS[fault] in (out / "index.html").read_text()
    assert "Traceback" not in broken.text

    for path, content in originals.items():
        path.write_bytes(content)
    mended = start(*command)
    assert mended.end() == 0, mended.text
    assert set(look.finished(out)) == {"1000_1001", "1013_1019"}
    assert list((out / "failed").iterdir()) == []


@pytest.mark.slow
def test_a_real_full_disk(study, start, look, tmp_path):
    """A file system of 3 MB: what fits is kept, the rest is done when there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    command = (study, "--out", disk / "out", "--workers", "1", "--preset", "fast", "--threads", "1")
    try:
        full = start(*command, "--retries", "0")
        assert full.end() in (4, 6), full.text
        assert "space" in full.text or "are free" in full.text
        kept = look.finished(disk / "out")
        assert len(kept) < len(CASES)
        assert look.leftovers(disk / "out") == []
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        room = start(*command)
        assert room.end() in (0, 7), room.text
        assert set(look.finished(disk / "out")) == CASES
        assert kept.items() <= look.finished(disk / "out").items()

        # And one that cannot be written to at all.
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        refused = start(*command)
        assert refused.end() == 4
        assert "cannot be written to, read-only file system" in refused.text
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_two_runs_on_one_folder(study, out, start, look):
    command = (study, "--out", out, "--workers", "1", *QUICK)
    first = start(*command)
    first.wait_for("to run on")
    second = start(*command)
    assert second.end() == 4
    assert re.search(rf"another batch is writing into it \(process {first.process.pid} on ", second.text)
    assert first.end() == 0, first.text
    assert set(look.finished(out)) == CASES


@pytest.fixture
def dask_cluster(tmp_path):
    """A scheduler and a worker as users start them; (address, processes)."""
    file, processes = tmp_path / "scheduler.json", []
    program = [sys.executable, "-P", "-m"]
    options = ["--scheduler-file", str(file)]
    with (tmp_path / "dask.log").open("wb") as log:
        streams = {"stdout": log, "stderr": log, "cwd": tmp_path}
        scheduler = [*program, "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1"]
        processes.append(subprocess.Popen([*scheduler, *options], **streams))
        _wait(lambda: file.exists() and file.read_text().strip())
        worker = [*program, "distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard", "--death-timeout", "20"]
        processes.append(subprocess.Popen([*worker, *options], **streams))
    yield json.loads(file.read_text())["address"], processes
    for process in processes:
        process.kill()
        process.wait()


def _wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_the_scheduler_is_killed(study, out, start, look, dask_cluster):
    address, (scheduler, _) = dask_cluster
    running = start(study, "--out", out, "--scheduler", address, *QUICK)
    running.wait_for("] ")
    scheduler.kill()
    assert running.end() == 6, running.text
    assert "the Dask scheduler is lost" in running.text
    assert "Traceback" not in running.text
    kept = look.finished(out)
    assert kept
    again = start(study, "--out", out, "--scheduler", address, *QUICK)
    assert again.end() == 3
    assert f"{address}: no Dask scheduler answers there" in again.text
    here = start(study, "--out", out, "--workers", "1", *QUICK)
    assert here.end() == 0, here.text
    assert set(look.finished(out)) == CASES
    assert kept.items() <= look.finished(out).items()
    assert look.leftovers(out) == []


SBATCH = """#!{python}
import subprocess, sys
job = subprocess.Popen(["bash", sys.argv[-1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       start_new_session=True)
print("Submitted batch job", job.pid)
open("{log}", "a").write(open(sys.argv[-1]).read())
"""
SCANCEL = """#!{python}
import os, signal, sys
try:
    os.killpg(int(sys.argv[-1]), signal.SIGTERM)
except ProcessLookupError:
    pass
"""


@pytest.mark.slow
def test_jobs_of_slurm(study, out, start, look, tmp_path):
    """With an sbatch that runs the job's script here: what Slurm gets to see, and that the work is done."""
    programs, log = tmp_path / "bin", tmp_path / "jobs"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (programs / name).write_text(text.format(python=sys.executable, log=log))
        (programs / name).chmod(0o755)
    options = ("--cluster", "slurm", "--workers", "2", "--cluster-option", "queue=long", "--preset", "fast")
    more = ("--cluster-option", "walltime=04:00:00", "--cluster-option", "interface=lo", "--affine-only")
    running = start(
        study, "--out", out, "--threads", "1", *options, *more, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}"
    )
    assert running.end() == 0, running.text
    script = log.read_text()
    assert "#SBATCH -p long" in script
    assert "#SBATCH -t 04:00:00" in script
    assert set(look.finished(out)) == CASES
    assert look.leftovers(out) == []


@pytest.mark.slow
def test_bad_inputs_stop_no_other_case(study, out, start, look):
    folder = study.parent
    shutil.copy(folder / "1001.nii.gz", folder / "cut.nii.gz")
    os.truncate(folder / "cut.nii.gz", 3000)
    pairs = [("1000", "gone"), ("1000", "cut"), ("1000", "1001"), ("1019", "1001")]
    look.write_manifest(folder, (*look.SCANS, "gone", "cut"), pairs)
    shutil.copy(folder / "1013.nii.gz", folder / "1019.nii.gz")  # not that of the checksum any more
    running = start(study, "--out", out, *QUICK)
    assert running.end() == 6, running.text
    assert "Trying again" not in running.text
    assert set(look.finished(out)) == {"1000_1001"}
    reasons = {path.stem: json.loads(path.read_text())["reason"] for path in (out / "failed").glob("*.json")}
    assert "gone.nii.gz: does not exist" in reasons["1000_gone"]
    assert "cut.nii.gz: is cut off" in reasons["1000_cut"]
    assert "1019.nii.gz: is not the file that the manifest describes" in reasons["1019_1001"]
    page = (out / "index.html").read_text()
    assert all(reason.split(": ", 1)[1][:20] in page for reason in reasons.values())
