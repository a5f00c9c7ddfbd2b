"""The folder in which a command works until its results get their names."""

import os
from contextlib import contextmanager

import pytest

from stepwarp.errors import OutputError
from stepwarp.files import write_text
from stepwarp.files.workspace import move, place_for, workspace

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@contextmanager
def at_work(out):
    with workspace(out, "a test") as place:
        (place / "half").write_text("x")
        yield


@pytest.fixture
def worker(tmp_path, held_elsewhere):
    """Another process that works on `out`."""
    return held_elsewhere(at_work(tmp_path / "out"))


def test_one_run_of_a_folder_at_a_time(tmp_path, worker):
    with pytest.raises(OutputError, match=f"process {worker.pid}"), workspace(tmp_path / "out", "a test"):
        pytest.fail("it was taken")
    with workspace(tmp_path / "other", "a test"):
        pass
    worker.leave()
    with workspace(tmp_path / "out", "a test"):
        pass


def test_what_a_killed_run_left_is_cleared_by_the_next(tmp_path, worker):
    worker.kill()
    assert place_for(tmp_path / "out").exists()
    with workspace(tmp_path / "out", "a test") as place:
        assert list(place.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_it_lies_within_a_folder_that_is_there_and_beside_one_that_is_not(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with workspace(tmp_path / "link", "a test") as place:
        assert place.resolve().is_relative_to(tmp_path / "disk")
    with workspace(tmp_path / "new", "a test") as place:
        assert not (tmp_path / "new").exists()
        assert place.stat().st_dev == tmp_path.stat().st_dev
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert list((tmp_path / "disk").iterdir()) == []


def test_what_is_not_ours_is_refused_and_stays(tmp_path):
    place = place_for(tmp_path / "out")
    place.mkdir()
    (place / "notes").write_text("mine")
    with pytest.raises(OutputError, match="notes: is there already"), workspace(tmp_path / "out", "a test"):
        pass
    assert (place / "notes").read_text() == "mine"
    target = place_for(tmp_path / "linked")
    target.symlink_to(tmp_path)
    with pytest.raises(OutputError, match="is a link"), workspace(tmp_path / "linked", "a test"):
        pass


def test_long_names_that_begin_alike_are_apart(tmp_path):
    first, second = (tmp_path / ("x" * 240 + end) for end in "ab")
    with workspace(first, "a test") as one, workspace(second, "a test") as other:
        assert one != other


def test_a_name_that_is_too_long_is_known_before_the_work(tmp_path):
    with pytest.raises(OutputError, match="too long"), workspace(tmp_path / ("x" * 260), "a test"):
        pass


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_folders_and_files_are_as_the_umask_says(tmp_path, mask):
    before = os.umask(mask)
    try:
        with workspace(tmp_path / "out", "a test") as place:
            write_text(place / "a.txt", "a")
            place.replace(tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "out" / "a.txt").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_file_replaces_a_link_and_leaves_its_target(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    (tmp_path / "new").write_text("new")
    move(tmp_path / "new", tmp_path / "link")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "link").read_text() == "new"
