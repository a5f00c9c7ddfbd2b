"""The kernels' threads: in a forked process, and where the user's environment asks for what there is not."""

import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from stepwarp.errors import ForkedError
from stepwarp.files.voxels import Voxels
from stepwarp.kernels import smoothing


def smooth(_: int = 0) -> float:
    return float(smoothing.gaussian(torch.ones(1, 1, 4, 4, 4), 1.0).mean())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP is that of Linux")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_says_how_to_start_it_instead():
    assert smooth() == pytest.approx(1)
    with (
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(ForkedError, match=r"get_context\('spawn'\)"),
    ):
        pool.apply_async(smooth, (0,)).get(timeout=60)
    assert smooth() == pytest.approx(1), "here nothing has changed"


def constant_volume_read(_: int = 0) -> int:
    Voxels(np.ones((64, 64, 64), np.float32), 1, 0, "ones").mask().sum()
    return torch.get_num_threads()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP is that of Linux")
def test_where_torch_had_computed_before_a_fork_one_thread_is_left():
    script = f"""
import multiprocessing, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import torch
from stepwarp.kernels.cpu import threading_layer
from stepwarp.workflow.device import use_threads
from test_threading_layer import constant_volume_read

def left():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        for job, argument in (constant_volume_read, 0), (use_threads, 2):
            print(pool.apply_async(job, (argument,)).get(timeout=60))

torch.set_num_threads(2)
threading_layer._PATIENCE = 60.0
left()
print("before", file=sys.stderr)
threading_layer._PATIENCE = 1.0
torch.ones(2**20).exp_()
left()
"""  # noqa: PTH120
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["2", "2", "1", "1"], done.stderr
    before, after = done.stderr.split("before\n")
    assert "computes on one thread" not in before
    assert "computes on one thread" in after


def test_settings_that_cannot_be_met_are_named_and_left_out():
    script = "import sys; sys.path.insert(0, sys.argv[1]); from test_threading_layer import smooth; print(smooth())"
    environment = os.environ | {"NUMBA_THREADING_LAYER": "nonsense", "NUMBA_NUM_THREADS": "0"}
    command = [sys.executable, "-c", script, os.path.dirname(__file__)]  # noqa: PTH120
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert float(done.stdout) == pytest.approx(1)
    assert "NUMBA_THREADING_LAYER=nonsense" in done.stderr
    assert "NUMBA_NUM_THREADS=0" in done.stderr
