"""What is told to the machine."""

import platform
import subprocess
import sys

import pytest

#: Prints how many pages the system hands out while 100 MiB are asked for and freed, after it was done many times.
FAULTS = """
import resource, sys
import torch
from stepwarp.workflow.device import reuse_memory
if sys.argv[1] == "reuse":
    reuse_memory()
for _ in range(20):
    torch.ones(25 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(25 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells glibc alone")
def test_memory_that_was_freed_is_used_again():
    def faults(how):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("reuse") < 0.1 * faults("as it is")
