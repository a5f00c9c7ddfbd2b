"""What is told to the machine."""

import platform
import subprocess
import sys

import pytest

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
