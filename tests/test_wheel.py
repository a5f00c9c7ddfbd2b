"""What users install: a wheel, in an environment of its own, away from the checkout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
UV = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(UV is None, reason="needs uv")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the commands of an environment that holds the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = [str(UV), "--quiet"]
    index = subprocess.run([*uv, "pip", "compile", "--refresh", "-"], input=b"hatchling", capture_output=True)
    if index.returncode:
        pytest.skip("no package index answers: " + index.stderr.decode(errors="replace").splitlines()[0])
    subprocess.run([*uv, "build", "--wheel", "--out-dir", folder / "dist", REPOSITORY], check=True)
    subprocess.run([*uv, "venv", "--python", sys.executable, folder / "env"], check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([*uv, "pip", "install", "--python", folder / "env" / "bin" / "python", wheel], check=True)
    return folder / "env" / "bin"


def test_the_wheel_registers_away_from_the_checkout(installed, tmp_path):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "LANG": "C.UTF-8"}

    def run(*arguments):
        command = [installed / "stepwarp", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "home").mkdir()
    run("demo", "--out", "demo", "--preset", "fast")
    record = json.loads((tmp_path / "demo" / "result" / "registration.json").read_text())
    assert record["verdict"]["status"] == "pass"
    images = ("--fixed", "demo/fixed.nii.gz", "--moving", "demo/moving.nii.gz")
    shown = run("register", *images, "--out", "again", "--preset", "fast", "--weights", "brain-t1-labels", "--json")
    assert json.loads(shown)["network"]["name"] == "brain-t1-labels"
    where = "import stepwarp; print(stepwarp.__file__)"
    done = subprocess.run([installed / "python", "-c", where], cwd=tmp_path, capture_output=True, text=True)
    assert str(installed.parent) in done.stdout
    assert "stepwarp-fast" in run("benchmark", "--list-methods")
    assert "oasis" in run("manifest", "list")
