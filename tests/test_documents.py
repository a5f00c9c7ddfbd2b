"""The documents name what there is: results, files, commands with their options, tests."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from stepwarp.cli.main import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "docs/guide.md", "docs/reliability.md", "docs/design.md", "benchmarks/README.md"),
    *("data_manifests/README.md", "pipeline/stepwarp/weights/README.md"),
)


def test_the_tables_are_those_of_the_results() -> None:
    checked = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_linked_to_exists(name: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_and_their_options_are_there(name: str) -> None:
    text = (ROOT / name).read_text()
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = re.findall(r"^(?:\.venv/bin/)?stepwarp (.+)", blocks, re.MULTILINE) + re.findall(
        r"`stepwarp ([^`]+)`", text
    )
    for line in lines:
        command = typer.main.get_command(app)
        words = shlex.split(line, comments=True)
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            command = command.commands[words.pop(0)]
        known = {option for each in command.params for option in each.opts} | {"--help"}
        assert {word for word in words if re.match(r"-\D", word)} <= known, line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tests_that_are_named_are_there(name: str) -> None:
    files = list((ROOT / "tests").rglob("test_*.py"))
    known = {file.stem for file in files}
    known.update(*(re.findall(r"def (test_\w+)", file.read_text()) for file in files))
    assert set(re.findall(r"\btest_\w+", (ROOT / name).read_text())) <= known
