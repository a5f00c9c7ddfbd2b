"""What is told to the machine."""

import platform
import subprocess
import sys
import warnings

import pytest
import torch

from stepwarp.errors import InputError
from stepwarp.workflow import device
from stepwarp.workflow.device import chosen_device, determinism, same_bits

#: Prints how many pages the system hands out while 100 MiB are asked for and freed, after it was done many times; as it
#: is, and once it was told.
FAULTS = """
import resource
import torch
from stepwarp.workflow.device import reuse_memory

def faults():
    for _ in range(20):
        torch.ones(25 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(25 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
reuse_memory()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells glibc alone")
def test_memory_that_was_freed_is_used_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < 0.1 * before


OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to ..."
)


@pytest.fixture
def old_driver(monkeypatch):
    """As torch finds one: it warns, sees no GPU, and says why when it is told to begin."""

    def none() -> bool:
        warnings.warn(f"CUDA initialization: {OLD} (Triggered internally at ...)", stacklevel=1)
        return False

    def begin() -> None:
        raise RuntimeError(OLD)

    device._say_once.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", none)
    monkeypatch.setattr(torch.cuda, "init", begin)
    monkeypatch.setattr(torch.version, "cuda", "13.2")


@pytest.mark.filterwarnings("error")
def test_a_driver_that_is_too_old_is_named_with_the_remedy(old_driver):
    with pytest.raises(InputError) as caught:
        chosen_device("cuda")
    said = str(caught.value)
    assert "the NVIDIA driver is too old (it serves CUDA 11.4, torch" in said
    assert "is made for CUDA 13.2): update the driver, or install a build of torch for an older CUDA" in said
    assert said.endswith("use --device cpu")


def test_where_the_device_is_not_chosen_an_old_driver_is_said_once(old_driver):
    with pytest.warns(UserWarning, match="too old") as caught:
        assert {chosen_device("auto").type for _ in range(3)} == {"cpu"}
    (said,) = [str(each.message) for each in caught]
    assert said.startswith("the processor computes, because the NVIDIA driver is too old")


UNSURE = "grid_sampler_3d_backward_cuda does not have a deterministic implementation, but you set ..."


def test_a_record_says_which_operations_add_up_in_any_order():
    gpu = torch.device("cuda")
    with same_bits() as unsure:
        assert determinism(gpu) == {"deterministic": True, "any_order": []}
        for _ in range(2):
            warnings.warn(UNSURE, stacklevel=1)
        named = ["grid_sampler_3d_backward_cuda"]
        assert determinism(gpu) == {"deterministic": False, "any_order": named}
        assert determinism(torch.device("cpu")) == {"deterministic": True, "any_order": []}
    assert unsure == named
    assert determinism(gpu) == {"deterministic": False, "any_order": []}, "nobody has asked for it"


@pytest.mark.parametrize(("warn_only", "sure"), [(False, True), (True, False)])
def test_somebody_elses_order_counts_where_torch_would_stop(warn_only, sure):
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        assert determinism(torch.device("cuda"))["deterministic"] is sure
    finally:
        torch.use_deterministic_algorithms(False)
