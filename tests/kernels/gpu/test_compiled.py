"""That every kernel compiles. Where there is a GPU, the contract shows that and more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parent / "compile_for_h100.py"


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100(tmp_path: Path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONWARNINGS": "error::UserWarning"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiled = set(done.stdout.split())
    assert {"read_values", "sum_for_matrix", "_invert", "_count", "_neighbours_back", "_use_coefficients"} <= compiled
