"""What is added as one file is found wherever choices are listed: in a copy of the package, nothing else is touched.

The recipes are those of CONTRIBUTING.md."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ADDED = {
    "stepwarp/losses/similarities/cubed.py": '''"""Cubed differences: made up."""

from typing import Annotated

from pydantic import Field

from stepwarp.kernels.means import mean
from stepwarp.losses.similarity import Similarity


class Cubed(Similarity):
    """Mean cubed difference, times a factor."""

    def __init__(self, factor: Annotated[float, Field(gt=0)] = 1.0) -> None:
        self.factor = factor

    def _values(self, fixed, moved, weight):
        return self.factor * mean((fixed - moved).abs() ** 3, weight)
''',
    "stepwarp/baselines/sloth.py": '''"""A sloth: made up."""

from stepwarp.baselines._method import Outcome
from stepwarp.geometry import Affine


class Sloth:
    name, title = "sloth", "A sloth"

    def missing(self):
        return "its feet are not installed; pip install feet"

    def __call__(self, fixed, moving, *, threads, seed):
        return Outcome(Affine.identity(3), None, {"command": "wait", "versions": {}})


METHODS = (Sloth(),)
''',
    "stepwarp/registrar/steps/types/again.py": '''"""Another step, twice: made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stepwarp.registrar.steps.sequences import TwoStep
from stepwarp.registrar.steps.settings import StepSettings

if TYPE_CHECKING:
    from stepwarp.registrar.steps.config import StepConfig


class AgainConfig(StepSettings):
    """`TwoStep` of two that are alike."""

    step: Literal["again"] = "again"
    inner: StepConfig

    def build(self, dims):
        return TwoStep(self.inner.build(dims), self.inner.build(dims))

    @property
    def parts(self):
        return (self.inner,)

    @property
    def count(self):
        return 2 * self.inner.count
''',
    "stepwarp/configs/presets/hasty.yaml": """# A glance: made up.
deformable:
  similarity: cubed
  levels:
    - {across: 20, iterations: 2}
""",
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A folder with the package as in a wheel, and the new files."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc", "weights")
    shutil.copytree(ROOT / "pipeline" / "stepwarp", folder / "stepwarp", ignore=ignored)
    shutil.copytree(ROOT / "pipeline/stepwarp/registrar/weights", folder / "stepwarp/registrar/weights")
    shutil.copytree(ROOT / "configs", folder / "stepwarp" / "configs")
    shutil.copytree(ROOT / "data_manifests", folder / "stepwarp" / "data_manifests")
    for name, text in ADDED.items():
        (folder / name).write_text(text)
    images, pair = {name: {"image": f"{name}.nii"} for name in "ab"}, {"id": "a_b", "fixed": "a", "moving": "b"}
    (folder / "study.json").write_text(json.dumps({"name": "study", "images": images, "pairs": [pair]}))
    return folder


@pytest.fixture
def python(copy):
    """Runs code there -> what it printed, both streams, in one line."""

    def run(code):
        environment = os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "10000"}
        done = subprocess.run([sys.executable, "-c", code], cwd=copy, env=environment, capture_output=True, text=True)
        return " ".join((done.stdout + done.stderr).split())

    return run


@pytest.fixture
def command(python):
    """Runs commands there, one after the other."""
    head = "import sys\nfrom stepwarp.cli import main\n"
    each = "sys.argv = {}\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    return lambda *lines: python(head + "".join(each.format(["stepwarp", *line.split()]) for line in lines))


def test_the_copy_is_what_is_asked(python, copy):
    assert python("import stepwarp; print(stepwarp.__file__)") == str(copy / "stepwarp" / "__init__.py")


@pytest.mark.parametrize("name", ["register", "batch"])
def test_a_similarity_and_a_preset_are_in_the_help(command, name):
    said = command(f"{name} --help")
    assert "cubed|" in said
    assert "cubed (Cubed differences: made up)" in said
    assert "hasty (A glance: made up)" in said


def test_all_are_in_lists_refusals_and_plans(command):
    pair, out = "register --fixed a --moving b --out c", "--out c --data ."
    said = command(
        "benchmark --help",
        "benchmark --list-methods study.json",
        f"benchmark study.json --methods slot {out}",
        f"{pair} --similarity cubing",
        f"{pair} --preset hasti",
        f"batch study.json --preset hasty --similarity cubed --dry-run {out}",
    )
    assert "sloth (A sloth: made up)" in said
    assert "sloth A sloth cannot run here: its feet are not installed" in said
    assert "stepwarp-hasty stepwarp hasty" in said
    assert "method 'slot' does not exist; did you mean 'sloth'?" in said
    assert "'cubing' is not one of 'auto', 'cubed', " in said
    assert "preset 'hasti' does not exist; did you mean 'hasty'?" in said
    assert "0 to run, 0 done, 1 that cannot be run" in said


def test_a_similarity_and_a_step_are_trained_within_their_limits(python):
    code = """
from stepwarp.config import preset
from stepwarp.losses.similarity import find_similarity
from stepwarp.training.config import read_config
trained = read_config("tiny", ["loss.similarity={kind: cubed, factor: 2}"]).loss.similarity.build()
print(trained.factor, find_similarity(preset("hasty").deformable.similarity).__name__)
step = read_config("tiny", ["steps={step: again, inner: {step: repeat, n: 3, inner: {step: matrix}}}"]).steps
print(step.count, type(step.build(3)).__name__)
for change in ("loss.similarity={kind: cubed, factor: -2}", "steps={step: agian}"):
    try:
        read_config("tiny", [change])
    except Exception as error:
        print(error)
"""
    said = python(code)
    assert said.startswith("2.0 Cubed 6 TwoStep ")
    assert "expected tags: 'again', " in said
    assert "loss.similarity.cubed.factor: Input should be greater than 0" in said
