"""The kernels' machine code: loaded by every process, compiled by none that computes, and only ever from safe files."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from stepwarp.kernels import jacobian, sampling, smoothing
from stepwarp.kernels.cpu import compiled, kernel_files
from stepwarp.losses.similarities.lncc import LNCC

_HASH = """
import hashlib, torch
from stepwarp.kernels import sampling
random = torch.Generator().manual_seed(0)
u, v = (2 * torch.randn(1, 3, 24, 25, 26, generator=random) for _ in range(2))
print(hashlib.sha256(sampling.compose_step(u, v, 0.7, 0.9).numpy().tobytes()).hexdigest())
"""


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the compiled kernels that is the only place for them; to compile is to copy again."""
    smoothing.gaussian(torch.zeros(1, 1, 3, 3, 3), 1.0)  # so that there are some
    whole, filled = kernel_files.where()
    assert filled
    monkeypatch.setattr(kernel_files, "_places", lambda: iter([tmp_path / "cache"]))
    monkeypatch.setattr(kernel_files, "_make", lambda folder: shutil.copytree(whole, folder))
    kernel_files._whole.cache_clear()
    yield tmp_path / "cache" / whole.name
    kernel_files._whole.cache_clear()


def read(kernel="_compose_step"):
    """What is read of a kernel, its damage answered."""
    found = next(k for k, _ in compiled._KERNELS if k.py_func.__name__ == kernel)
    processor = found.targetctx.codegen().magic_tuple()
    return kernel_files.read_from_whole(
        lambda folder: found._cache._read(folder, found._cache.signatures[0]), processor
    )


def test_no_kernel_is_compiled_by_a_process_that_uses_it():
    one, three, batch = torch.rand(1, 1, 6, 7, 8), torch.rand(1, 3, 6, 7, 8), torch.rand(2, 1, 6, 7, 8)
    with torch.enable_grad():
        image, displacement = one.clone().requires_grad_(), three.clone().requires_grad_()
        sampling.warp(image, displacement, torch.eye(4)).sum().backward()
        plane, flat = (torch.rand(1, c, 6, 7, requires_grad=True) for c in (1, 2))
        sampling.warp(plane, flat, torch.eye(3)).sum().backward()
        matrices = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1).requires_grad_()
        sampling.warp_linear(one, matrices, (4, 5, 6)).sum().backward()
    sampling.compose_step(three, three, 0.5, 1.0)
    sampling.scaled_gradient(one, one)
    jacobian.determinant(three), jacobian.smallest_corner_determinant(three), jacobian.invert(three)
    jacobian.volume_change_gradient(three)
    LNCC(1, 1e-4).value_and_gradients(one, one + 0.1, one)
    LNCC(1, 1e-4)(batch.requires_grad_(), torch.rand(2, 1, 6, 7, 8, requires_grad=True)).sum().backward()
    used = [(kernel, signatures) for kernel, signatures in compiled._KERNELS if kernel.overloads]
    assert len(used) > 12
    for kernel, signatures in used:
        assert set(kernel.overloads) <= set(signatures), kernel
        assert not kernel._cache_misses, f"{kernel} was compiled here"


@pytest.mark.parametrize(("ending", "size"), [("nbi", 0), ("nbc", 100), ("nbc", None)])
def test_damaged_files_are_made_anew_and_it_is_said(copy, caplog, ending, size):
    good = read()
    for path in copy.glob(f"*_compose_step*.{ending}"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content if size is None else content[:size])
    assert repr(read()) == repr(good)
    assert [line for line in caplog.messages if "damaged" in line] == [caplog.messages[0]]
    caplog.clear()
    read()
    assert not caplog.messages


def test_a_missing_file_is_damage(copy):
    read()
    for path in copy.glob("*_compose_step*.nbi"):
        path.unlink()
    assert read() is not None


def test_where_a_place_takes_no_files_the_next_one_does(copy, monkeypatch):
    (copy.parent.parent / "file").touch()
    monkeypatch.setattr(kernel_files, "_places", lambda: iter([copy.parent.parent / "file" / "in it", copy.parent]))
    assert read() is not None
    assert copy.is_dir()


def test_without_any_place_it_is_said_once(copy, monkeypatch, caplog):
    monkeypatch.setattr(kernel_files, "_places", lambda: iter([]))
    assert read() is read() is None
    assert len(caplog.messages) == 1
    assert "NUMBA_CACHE_DIR" in caplog.messages[0]


def test_what_others_could_have_written_is_not_run(tmp_path, monkeypatch):
    mine, link, open_to_all = (tmp_path / name for name in ("mine", "link", "open"))
    mine.mkdir(mode=0o700)
    link.symlink_to(mine)
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert [kernel_files._trusted(path) for path in (mine, link, open_to_all, tmp_path / "none")] == [True] + [
        False
    ] * 3
    monkeypatch.setattr(kernel_files.os, "getuid", lambda: 12345)
    monkeypatch.setattr(kernel_files.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(kernel_files.tempfile, "tempdir", str(tmp_path))
    planted = tmp_path / "stepwarp-12345"
    planted.mkdir()
    planted.chmod(0o777)
    private = kernel_files._private_temporary()
    assert private != planted
    assert private.stat().st_mode & 0o777 == 0o700


def test_settings_of_the_users_numba_do_not_reach_the_code(monkeypatch):
    monkeypatch.setenv("NUMBA_OPT", "0")
    monkeypatch.setenv("NUMBA_DEBUGINFO", "1")
    assert not {"NUMBA_OPT", "NUMBA_DEBUGINFO"} & set(kernel_files._environment())


@pytest.mark.slow
def test_first_runs_at_once_have_the_bits_of_later_ones(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _HASH]
    first = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in "ab"]
    said = [run.communicate() for run in first]
    later = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert said[0][0] == said[1][0] == later.stdout
    assert b"once" not in later.stderr
    assert sum(b"compiling the kernels, once" in errors for _, errors in said) == 1
    assert len(list(tmp_path.glob("stepwarp-kernels-*/"))) == 1
