"""The contract once more for the back end for GPUs, without one: Triton interprets its kernels on the processor.

Triton has to be told before it is imported, so this is done in a process of its own. What passes here has still to
pass on a GPU: the compiler has been wrong where the interpreter was right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CONTRACT = Path(__file__).parents[1] / "test_contract.py"


def interpreted(*options: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *options, CONTRACT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=CONTRACT.parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout


def test_every_primitive_on_several_blocks_of_odd_sizes():
    interpreted("-k", "more_than_a_program or (forces and True and 7)")


@pytest.mark.slow
def test_the_whole_contract():
    interpreted()
