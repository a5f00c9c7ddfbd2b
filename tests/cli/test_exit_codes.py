import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from stepwarp.cli.command import Terminated
from stepwarp.errors import InputError, OutputError, RegistrationError, StepwarpError, VerificationError


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (StepwarpError("something"), 1, "something"),
        (InputError("A.nii.gz: is flat."), 3, "A.nii.gz: is flat."),
        (OutputError("out: is full."), 4, "out: is full."),
        (VerificationError("out: differs."), 5, "out: differs."),
        (RegistrationError("it diverged."), 6, "it diverged."),
        (MemoryError(), 8, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 8, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 8, "out of memory"),
        (RuntimeError("CUDA error: it timed out\nCompile with"), 6, "the GPU failed (CUDA error: it timed out)"),
        (OSError(errno.ENOSPC, "No space left on device", "/full/Warped.nii.gz"), 4, "/full/Warped.nii.gz"),
        (
            ValueError("shapes (3,)\nand (4,)"),
            1,
            "bug in stepwarp, please report it (ValueError: shapes (3,) and (4,))",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "inner.yaml"), 1, "bug in stepwarp"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
    ],
)
@pytest.mark.parametrize("json", [[], ["--json"]])
def test_every_error_is_one_line_and_a_code(run, fake_register, two_files, tmp_path, error, code, text, json):
    fake_register.error = error
    result = run("register", "--fixed", two_files[0], "--moving", two_files[1], "--out", tmp_path / "out", *json)
    assert result.code == code
    assert result.out == ""
    last = result.err.splitlines()[-1]
    assert last.startswith("stepwarp: ")
    assert text in last
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) == 1 if json else True


def test_verbose_shows_where_an_unexpected_error_comes_from(run, fake_register, two_files, tmp_path):
    fake_register.error = ValueError("odd")
    files = ("--fixed", two_files[0], "--moving", two_files[1], "--out", tmp_path / "out")
    result = run("register", *files, "--verbose")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "ValueError: odd" in result.err


SLEEPER = """
import sys, time, types
module = types.ModuleType("stepwarp.workflow.register")
def register(*arguments, **options):
    print("at work", flush=True)
    time.sleep(60)
module.register_pair = register
sys.modules[module.__name__] = module
sys.argv = ["stepwarp", "register", "--fixed", __file__, "--moving", __file__, "--out", "out"]
from stepwarp.cli import main
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),
        (signal.SIGXCPU, 152, "terminated"),
        (signal.SIGUSR1, 138, "terminated"),
    ],
)
def test_a_signal_ends_the_work_cleanly(run, two_files, tmp_path, monkeypatch, number, code, word):
    monkeypatch.setattr("stepwarp.workflow.register.register_pair", lambda *_, **__: signal.raise_signal(number))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    result = run("register", "--fixed", two_files[0], "--moving", two_files[1], "--out", tmp_path / "out")
    assert result.code == code
    assert result.err.splitlines()[-1] == f"stepwarp: {word}"
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_from_elsewhere_ends_the_process(tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    process = subprocess.Popen(
        [sys.executable, script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "at work\n"
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert err == "stepwarp: terminated\n"
