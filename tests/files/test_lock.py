import json
import os
import socket
import subprocess
import sys
import time

import pytest

from stepwarp.errors import OutputError
from stepwarp.files.lock import NAME, locked

HOLD = "import sys; from pathlib import Path; from stepwarp.files.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1]), 'a test'): print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_held_folder_names_its_holder(tmp_path, holder):
    said = rf"a test is writing into it \(process {holder.pid} on {socket.gethostname()}, since "
    with pytest.raises(OutputError, match=said), locked(tmp_path, "another test"):
        pytest.fail("it was held")


def test_the_lock_of_a_killed_process_is_none(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / NAME).read_text())["process"] == holder.pid
    with locked(tmp_path, "another test"):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
    assert (tmp_path / NAME).read_text() == ""


@pytest.mark.parametrize(("age", "stale"), [(5, False), (1000, True)])
def test_another_computer_whose_lock_the_file_system_does_not_show(tmp_path, age, stale):
    path = tmp_path / NAME
    path.write_text(json.dumps({"work": "a test", "process": 7, "computer": "elsewhere", "since": "today"}))
    os.utime(path, (time.time() - age,) * 2)
    if stale:
        with locked(tmp_path, "another test"):
            pass
        return
    with pytest.raises(OutputError, match=r"process 7 on elsewhere.*has stopped"), locked(tmp_path, "another test"):
        pass
    assert json.loads(path.read_text())["computer"] == "elsewhere"


@pytest.mark.parametrize("content", ["", "{", "[1]", "\0" * 100])
def test_whatever_a_lock_holds_it_can_be_taken(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with locked(tmp_path, "a test"):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"), locked(tmp_path / "file" / "out", "a test"):
        pass
