"""What `import stepwarp` gives, and what it does not make one wait for."""

import subprocess
import sys

import pytest

import stepwarp


def test_the_import_alone_waits_for_nothing_heavy():
    heavy = ["torch", "numba", "numpy", "nibabel", "SimpleITK", "monai", "matplotlib", "nilearn"]
    code = f"import stepwarp, sys; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_what_is_promised_is_there():
    from stepwarp.workflow import register as module

    assert stepwarp.register is module.register
    assert stepwarp.Registration is module.Registration
    assert stepwarp.__version__.count(".") == 2
    for name in stepwarp.__all__:
        assert callable(getattr(stepwarp, name))


def test_dir_shows_what_a_user_needs_and_nothing_else():
    code = "import stepwarp; stepwarp.StepwarpError; print([name for name in dir(stepwarp) if name[0] != '_'])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(sorted(stepwarp.__all__))


def test_what_is_not_there_is_said_as_python_says_it():
    with pytest.raises(AttributeError, match="module 'stepwarp' has no attribute 'regsiter'"):
        _ = stepwarp.regsiter
