import fcntl
import json
import os
import socket
import threading
import time

import pytest

from stepwarp.errors import OutputError
from stepwarp.files import lock
from stepwarp.files.lock import NAME, locked

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def holder(tmp_path, held_elsewhere):
    """Another process that holds the folder."""
    return held_elsewhere(locked(tmp_path, "a test"))


def test_a_held_folder_names_its_holder(tmp_path, holder):
    said = rf"a test is writing into it \(process {holder.pid} on {socket.gethostname()}, since "
    with pytest.raises(OutputError, match=said), locked(tmp_path, "another test"):
        pytest.fail("it was held")


def test_it_is_held_from_the_first_line_to_the_last(tmp_path):
    """By the system, not by what the file says: another process may be about to write the same."""

    def is_free():
        with (tmp_path / NAME).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    with locked(tmp_path, "a test"):
        assert not is_free()
        with pytest.raises(OutputError, match="another a test is writing into it"), locked(tmp_path, "a test"):
            pytest.fail("it was held")
        assert not is_free()
    assert is_free()


def test_one_that_was_taken_away_while_it_was_opened_is_no_lock(tmp_path, monkeypatch):
    """A run that ends removes its folder: a lock on a file without a name would keep nobody out."""
    take = lock._take

    def late(file, folder, kind):
        monkeypatch.setattr(lock, "_take", take)
        (folder / NAME).unlink()
        take(file, folder, kind)

    monkeypatch.setattr(lock, "_take", late)
    with locked(tmp_path, "a test"):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


def test_a_holder_shows_other_computers_that_it_lives(tmp_path, monkeypatch):
    """Where the file system does not tell them of the lock, they look at the age of its file."""
    assert lock._BEAT < lock._DEAD / 2
    monkeypatch.setattr(lock, "_BEAT", 0.001)
    touched = threading.Event()
    monkeypatch.setattr(os, "utime", lambda _: touched.set())
    with locked(tmp_path, "a test"):
        assert touched.wait(10)


def test_the_lock_of_a_killed_process_is_none(tmp_path, holder):
    holder.kill()
    assert json.loads((tmp_path / NAME).read_text())["process"] == holder.pid
    with locked(tmp_path, "another test"):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
    assert json.loads((tmp_path / NAME).read_text()) == {"stepwarp": "another test"}


@pytest.mark.parametrize(("age", "stale"), [(5, False), (100, False), (140, True), (1000, True)])
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


@pytest.mark.parametrize("content", ["", "{", '{"stepw', '{"work": "a ba', "\0" * 100])
def test_a_lock_that_was_cut_off_can_be_taken(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with locked(tmp_path, "a test"):
        pass


def test_a_file_of_that_name_that_is_no_lock_is_left_alone(tmp_path):
    (tmp_path / NAME).write_text("my only copy")
    with pytest.raises(OutputError, match="not a lock of stepwarp"), locked(tmp_path, "a test"):
        pass
    assert (tmp_path / NAME).read_text() == "my only copy"


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "fifo", "folder"])
def test_nothing_is_opened_through_a_link_or_a_special_file(tmp_path, kind):
    victim, lock = tmp_path / "victim", tmp_path / "out" / NAME
    lock.parent.mkdir()
    victim.write_text("precious")
    if kind == "fifo":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    elif kind == "hard link":
        lock.hardlink_to(victim)
    else:
        lock.symlink_to(victim if kind == "link" else tmp_path / "nowhere")
    before = victim.stat().st_mtime_ns
    with pytest.raises(OutputError, match=r"\.lock"), locked(lock.parent, "a test"):
        pass
    assert victim.read_text() == "precious"
    assert victim.stat().st_mtime_ns == before
    assert not (tmp_path / "nowhere").exists()


def test_what_no_run_has_made_is_refused_and_stays(tmp_path):
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / ".env").write_text("x")
    with pytest.raises(OutputError, match="cases: is there already"), locked(tmp_path, "batch", ["cases"]):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".env", "cases"]
    with locked(tmp_path, "batch", ["cases"], known=True):
        pass
    with locked(tmp_path, "batch", ["cases"]):  # now it is marked
        pass
    with pytest.raises(OutputError, match="no benchmark of stepwarp"), locked(tmp_path, "benchmark", ["cases"]):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"), locked(tmp_path / "file" / "out", "a test"):
        pass
