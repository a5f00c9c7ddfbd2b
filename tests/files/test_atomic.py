import errno
import os
import resource
from pathlib import Path

import pytest

from stepwarp.errors import OutputError
from stepwarp.files import atomic_path, write_text
from stepwarp.files.atomic import clear_temporaries


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_complete_with_ordinary_permissions(tmp_path):
    target = tmp_path / "sub-1.5_T1w.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"content")
        assert not target.exists()
    assert target.read_bytes() == b"content"
    plain = tmp_path / "plain"
    plain.touch()
    assert target.stat().st_mode == plain.stat().st_mode
    assert names_in(tmp_path) == ["plain", target.name]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_by_a_failure_and_the_old_file_stays(tmp_path, failure):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail(temporary):
        temporary.write_text("half of the n")
        raise failure

    with pytest.raises(failure), atomic_path(target, overwrite=True) as temporary:
        fail(temporary)
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_an_existing_file_is_replaced_only_when_asked(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "first")
    with pytest.raises(OutputError, match=r"a\.txt.*--force"):
        write_text(target, "second")
    assert target.read_text() == "first"
    write_text(target, "second", overwrite=True)
    assert target.read_text() == "second"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    target = tmp_path / "a.txt"
    with pytest.raises(OutputError, match="exists"), atomic_path(target):
        target.write_text("theirs")
    assert target.read_text() == "theirs"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("precious")
    target = tmp_path / "link"
    target.symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="exists"):
        write_text(target, "new")
    write_text(target, "new", overwrite=True)
    assert (tmp_path / "precious").read_text() == "precious"
    assert target.read_text() == "new"
    assert not target.is_symlink()


def test_a_missing_folder_a_folder_and_a_file_as_folder_are_named(tmp_path):
    (tmp_path / "file").touch()
    for target in (tmp_path / "missing" / "a.txt", tmp_path, tmp_path / "file" / "a.txt"):
        with pytest.raises(OutputError, match=str(target)):
            write_text(target, "text", overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_an_output_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission"):
        write_text(tmp_path / "a.txt", "text")
    tmp_path.chmod(0o700)


def test_a_file_above_the_permitted_size_is_an_output_error(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match=r"a\.txt.*space"):
            write_text(tmp_path / "a.txt", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path) == []


def test_a_full_disk_is_an_output_error_and_other_errors_pass(tmp_path):
    with pytest.raises(OutputError, match="no space"), atomic_path(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ConnectionError), atomic_path(tmp_path / "a"):
        raise ConnectionError
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch, overwrite):
    """What a loss of power leaves: an old file or none, or the new one with all its bytes."""
    told = []

    def watched(name, said):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, **kwargs: (told.append(said(*args)), real(*args, **kwargs))[1])

    def flushed(descriptor):
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        return "folder" if place.is_dir() else f"{place.stat().st_size} bytes"

    watched("fsync", flushed)
    for name in ("link", "replace", "rename"):
        watched(name, lambda _source, target: f"named {Path(target).name}")
    write_text(tmp_path / "a.txt", "content", overwrite=overwrite)
    assert told == ["7 bytes", "named a.txt", "folder"]


def test_what_a_dead_writer_left_is_removed_and_a_living_ones_is_not(tmp_path):
    with atomic_path(tmp_path / "a.txt") as other, atomic_path(tmp_path / "b.txt") as temporary:
        dead = temporary.with_name(f"{temporary.stem}-dead.txt")
        dead.write_text("half")
        write_text(tmp_path / "b.txt", "of a second writer")
        assert names_in(tmp_path) == sorted(["b.txt", other.name, temporary.name])
        dead.write_text("half")
        clear_temporaries(tmp_path)
        assert names_in(tmp_path) == sorted(["b.txt", other.name, temporary.name])
        (tmp_path / "b.txt").unlink()
    assert names_in(tmp_path) == ["a.txt", "b.txt"]


def test_a_file_that_its_writer_made_for_itself_alone_is_for_all(tmp_path):
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.chmod(0o600)
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode
