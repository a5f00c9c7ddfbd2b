"""A GPU that fails under a pair."""

import re

import pytest
import torch

from stepwarp.kernels import backend
from stepwarp.workflow import device, fallback, fitting, register

LOST = "CUDA error: unspecified launch failure"
FAILURES = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError(f"{LOST}\nCompile ...")]
if hasattr(torch, "AcceleratorError"):
    FAILURES.append(torch.AcceleratorError(LOST))


@pytest.fixture
def failing_gpu(monkeypatch):
    """error -> a GPU that is found and named, and raises that in the search; where searches were made."""

    def choose(name: str) -> torch.device:
        return torch.device("cuda" if name == "auto" else name)

    def make(error: Exception) -> list[str]:
        tried, search = [], fitting.search

        def searched(plan, *given):
            tried.append(plan.device.type)
            if plan.device.type == "cuda":
                raise error
            return search(plan, *given)

        monkeypatch.setattr(fitting, "search", searched)
        return tried

    for module in (fallback, register):
        monkeypatch.setattr(module, "chosen_device", choose)
        monkeypatch.setattr(module, "device_name", lambda place: "a GPU" if place.type == "cuda" else "cpu (ours)")
    for name, value in (("synchronize", None), ("reset_peak_memory_stats", None), ("max_memory_allocated", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**34, 2**34))
    monkeypatch.setattr(backend, "name_for", lambda place: "reference")
    return make


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_the_processor_computes_what_a_failing_gpu_does_not_and_the_record_says_so(brains, recipe, failing_gpu, error):
    tried = failing_gpu(error)
    full = isinstance(error, torch.OutOfMemoryError)
    reason = "memory ran out" if full else str(error).splitlines()[0]
    with pytest.warns(UserWarning, match=re.escape(reason)):
        found = register.register(brains.fixed, brains.moving, preset=recipe, threads=1, affine_only=True)
    assert tried == ["cuda", "cpu"]
    assert found.record["device"] == "cpu (ours)"
    assert found.record["gpu_failure"]["device"] == "a GPU"
    assert found.record["gpu_failure"]["reason"].startswith(reason)
    assert found.record["verdict"]["reasons"][-1].startswith("the GPU (a GPU) failed, and the processor computed this")


def test_a_pair_that_does_not_fit_the_gpu_is_the_processors(brains, recipe, failing_gpu, monkeypatch):
    tried = failing_gpu(RuntimeError(LOST))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 2**34))
    with pytest.warns(UserWarning, match="of the GPU's memory"):
        found = register.register(brains.fixed, brains.moving, preset=recipe, threads=1, affine_only=True)
    assert tried == ["cpu"]
    assert "of the GPU's memory" in found.record["gpu_failure"]["reason"]


def test_a_process_that_shares_a_gpu_keeps_to_its_share(brains, recipe, failing_gpu, monkeypatch):
    """What torch holds for the process already is not taken from it once more."""
    gpu, given = torch.device("cuda"), []
    failing_gpu(RuntimeError(LOST))
    monkeypatch.setattr(device, "_share", None)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, place: given.append(share))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda place: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda place: 2**30)
    assert fitting.Room.now(None, gpu).gpu == 2**34 + 2 * 2**30
    device.share_gpu(gpu, 2**32)
    assert given == [0.25]
    assert fitting.Room.now(None, gpu).gpu == 3 * 2**30
    assert fitting.Room.now(2**30, gpu).gpu == 2**30
    device.share_gpu(gpu, 2**30 + 2**20)
    with pytest.warns(UserWarning, match="of the GPU's memory, and there are 1 MiB"):
        found = register.register(brains.fixed, brains.moving, preset=recipe, threads=1, affine_only=True)
    assert found.record["gpu_failure"]["device"] == "a GPU"


def test_another_error_is_not_hidden_behind_a_second_try(brains, recipe, failing_gpu):
    tried = failing_gpu(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        register.register(brains.fixed, brains.moving, preset=recipe, threads=1, affine_only=True)
    assert tried == ["cuda"]


def test_the_second_try_has_the_time_that_is_left(failing_gpu, monkeypatch):
    budgets = []

    def run(options):
        budgets.append(options.time_budget)
        raise RuntimeError(LOST)

    clock = iter([100.0, 107.0])
    monkeypatch.setattr(fallback.time, "monotonic", lambda: next(clock))
    with pytest.warns(UserWarning, match=LOST), pytest.raises(RuntimeError):
        fallback.with_the_processor_left(run, register.RegisterOptions(time_budget=20, device="cuda"))
    assert budgets == [20, 13]
