"""Stages on a GPU are timed from when it is done to when it is done."""

import time

import pytest
import torch

from stepwarp.progress import silent
from stepwarp.workflow.clock import Clock


@pytest.fixture
def lagging(monkeypatch):
    """Stands for a GPU that works only while somebody waits for it; what it was told to do, and its memory."""
    queued, memory = [], {"peak": 700 * 2**20}

    def synchronize(device):
        while queued:
            clock["now"] += queued.pop()

    clock = {"now": 0.0}
    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: memory.update(peak=0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: memory["peak"])
    return queued, memory


def test_a_stage_has_the_seconds_and_the_memory_of_what_it_told_the_gpu(lagging):
    queued, memory = lagging
    clock = Clock(silent, device=torch.device("cuda"))
    queued.append(5.0)  # of before
    with clock.stage("affine"):
        queued.append(2.0)
        memory["peak"] = 300 * 2**20
    with clock.stage("deformable"):
        queued.append(1.0)
    assert [(each["name"], each["seconds"], each["gpu_peak_mib"]) for each in clock.stages] == [
        ("affine", 2.0, 300),
        ("deformable", 1.0, 0),
    ]


def test_on_the_processor_no_gpu_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("there may be none"))
    clock = Clock(silent)
    with clock.stage("read"):
        pass
    assert set(clock.stages[0]) == {"name", "seconds", "peak_mib"}


@pytest.mark.gpu
def test_a_real_gpus_work_and_memory_are_in_its_stage():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    large = torch.rand(4096, 4096, device=device)
    clock = Clock(silent, device=device)
    with clock.stage("much"):
        for _ in range(20):
            large @ large
    with clock.stage("nothing"):
        pass
    much, nothing = clock.stages
    assert much["seconds"] > 10 * nothing["seconds"]
    assert much["gpu_peak_mib"] >= 128 > nothing["gpu_peak_mib"] >= 64
