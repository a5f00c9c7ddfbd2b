import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_each_layer_imports_only_from_those_below():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
