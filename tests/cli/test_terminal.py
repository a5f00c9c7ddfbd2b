import io
import os
import pty
import subprocess
import sys
import warnings

import pytest
from rich.table import Table

from stepwarp.cli.progress import shown_progress
from stepwarp.cli.terminal import cell, console, guarded_streams, say, say_json, tell
from stepwarp.progress import ProgressReport

EVIL = "\x1b]0;title\x1b\\\x1b[2J\x9b\u202e\nverdict pass [bold]"
SHOWN = "\\x1b]0;title\\x1b\\\\x1b[2J\\x9b\\u202e\\nverdict pass [bold]"


def test_a_line_is_one_line(capsys):
    say(EVIL)
    tell(EVIL)
    assert capsys.readouterr() == (SHOWN + "\n", SHOWN + "\n")


def test_json_stays_json(capsys):
    import json

    say_json({EVIL + "\x7f": "\udcf6"})
    text = capsys.readouterr().out
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == {EVIL + "\x7f": "\udcf6"}


def test_whatever_else_prints_is_shown(capsys):
    with guarded_streams():
        print(EVIL)
        warnings.warn(EVIL, stacklevel=1)
        sys.stderr.write(EVIL)
    text = "".join(capsys.readouterr())
    assert "\\x1b" in text
    assert not set("\x1b\x9b\u202e") & set(text)


def test_tables_and_bars_keep_their_own_colours_only(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with guarded_streams():
        table = Table("name")
        table.add_row(cell(EVIL))
        table.add_row("[red]\x1b]0;no cell\x1b\\[/]")
        console(width=200).print(table)
        with shown_progress() as show:
            show(ProgressReport(EVIL, 0, 2))
            print(EVIL, file=sys.stderr)
            show(ProgressReport(EVIL, 2, 2))
    text = terminal.getvalue()
    assert SHOWN in text
    assert "\x1b[31m" in text
    assert not any(part in text for part in ("\x1b]0", "\x1b[2J", "\x9b", "\u202e"))


NAME = "\x1b]0;title\x1b\\\n.json"


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_command_on_a_terminal_and_in_a_pipe(on_terminal):
    command = [sys.executable, "-c", "from stepwarp.cli import main; main()", "manifest", "list", NAME]
    if not on_terminal:
        seen = subprocess.run(command, capture_output=True).stderr
    else:
        ours, theirs = pty.openpty()
        subprocess.run(command, stdout=theirs, stderr=theirs)
        os.close(theirs)
        seen = os.read(ours, 10_000)
        os.close(ours)
    assert b"title" in seen
    assert b"\n.json" not in seen
    assert b"\x1b]0" not in seen


@pytest.mark.parametrize(
    ("streams", "code"),
    [("2>&-", 0), (">&- 2>&-", 0), ("<&- >&- 2>&-", 0), (">/dev/full", 4), (">/dev/full 2>&1", 4), ("2>/dev/full", 0)],
)
def test_streams_that_are_closed_or_full(streams, code, tmp_path):
    script = (
        "import typer; from stepwarp.cli import main as m; from stepwarp.cli.main import app\n"
        "@app.command()\n"
        "def write():\n"
        " with open('data', 'wb') as file:\n"
        "  m.__globals__['say']('out'); import sys; print('err', file=sys.stderr, flush=True); sys.stdout.flush()\n"
        "  file.write(b'voxels')\n"
        "m()"
    )
    command = f'"$PYTHON" -c "$SCRIPT" write {streams}'
    environment = {**os.environ, "PYTHON": sys.executable, "SCRIPT": script}
    assert subprocess.run(["bash", "-c", command], env=environment, cwd=tmp_path).returncode == code
    assert (tmp_path / "data").read_bytes() == b"voxels"


def test_a_reader_who_goes_is_no_error():
    command = f"set -o pipefail; {sys.executable} -c 'from stepwarp.cli import main; main()' register --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
