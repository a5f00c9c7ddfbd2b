"""What `import stepwarp` gives, and what it does not make one wait for."""

import inspect
import re
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


def sections(called) -> dict[str, str]:
    """Heading -> what stands under it, of numpydoc; a class that says nothing of its own is what it is a kind of."""
    found: dict[str, str] = {}
    for each in reversed(called.__mro__) if inspect.isclass(called) else [called]:
        _, *parts = re.split(r"^(\w+)\n-{3,}$", inspect.cleandoc(each.__doc__ or ""), flags=re.MULTILINE)
        found |= dict(zip(parts[::2], parts[1::2], strict=True))
    return found


def assert_says_all(called) -> None:
    said, signature = sections(called), inspect.signature(called)
    stated = re.findall(r"^(\w[\w, ]*) : ", said.get("Parameters", ""), flags=re.MULTILINE)
    assert ", ".join(stated).split(", ") == ([name for name in signature.parameters if name != "self"] or [""])
    returns = not inspect.isclass(called) and signature.return_annotation not in (None, "None")
    assert ("Returns" in said) == returns


@pytest.mark.parametrize("name", stepwarp.__all__)
def test_what_a_user_calls_says_under_headings_what_it_takes_and_returns(name):
    assert_says_all(getattr(stepwarp, name))


def test_so_do_the_methods_of_what_register_gives_back():
    for name, method in inspect.getmembers(stepwarp.Registration, inspect.isfunction):
        if not name.startswith("_"):
            assert_says_all(method)


def test_dir_shows_what_a_user_needs_and_nothing_else():
    code = "import stepwarp; stepwarp.StepwarpError; print([name for name in dir(stepwarp) if name[0] != '_'])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(sorted(stepwarp.__all__))


def test_what_is_not_there_is_said_as_python_says_it():
    with pytest.raises(AttributeError, match="module 'stepwarp' has no attribute 'regsiter'"):
        _ = stepwarp.regsiter
