"""Is a file there, and is it the file itself? Asked before it is opened, so that the remedy is that of the cause."""

from __future__ import annotations

import os
import shlex
from itertools import islice
from pathlib import Path

from stepwarp.errors import InputError

#: What stands in place of a file's content that was not fetched.
_LFS, _ANNEX = b"version https://git-lfs.github.com/spec/", b"/annex/objects/"
_LONGEST_POINTER = 32 * 1024
#: DICOM's mark, and where it is.
_DICOM, _DICOM_AT = b"DICM", 128
_DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
#: So many entries of a folder are looked at.
_ENTRIES = 200


def check_present(path: Path) -> int:
    """The size of a file in bytes; InputError if it is absent, empty, no regular file, may not be read, is in DICOM, or
    only stands for content that was not fetched (DataLad, git-annex, git-lfs)."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: {dicom_in(path) or 'is a folder. Name a file in it.'}")
        if not path.exists():
            raise InputError(f"{path}: {why_absent(path)}")
        if not path.is_file():
            raise InputError(f"{path}: is not a regular file. Copy its content into one.")
        if not os.access(path, os.R_OK):
            raise InputError(f"{path}: may not be read. Change its permissions.")
        with path.open("rb") as file:
            size, head = path.stat().st_size, file.read(_DICOM_AT + len(_DICOM))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if size == 0:
        raise InputError(f"{path}: is empty. Fetch or write it again.")
    if size < _LONGEST_POINTER and head.startswith(_LFS):
        raise InputError(f"{path}: is a pointer of git-lfs, its content was not fetched. {_in_its_folder(path, 'lfs')}")
    if size < _LONGEST_POINTER and head.startswith(_ANNEX):
        raise InputError(f"{path}: is a pointer of git-annex, its content was not fetched. {_in_its_folder(path)}")
    if _is_dicom(path, head):
        folder = shlex.quote(str(path.parent))
        raise InputError(f"{path}: is in DICOM. Convert its series to NIfTI: dcm2niix -z y -o NIFTI_FOLDER {folder}")
    return size


def why_absent(path: Path) -> str:
    """Why there is nothing under a name, and what to do."""
    if not path.is_symlink():
        return "does not exist. Check the name and the folder."
    target = str(path.readlink())
    if "annex/objects" in target:
        return f"is a link to content that was not fetched (DataLad, git-annex). {_in_its_folder(path)}"
    return f"is a link to {target}, which does not exist. Make it anew."


def dicom_in(folder: Path) -> str | None:
    """What to do with a folder that holds files in DICOM, at most one folder deep; None for others."""
    found = islice((path for pattern in ("*", "*/*") for path in folder.glob(pattern)), _ENTRIES)
    if not any(_is_dicom_file(path) for path in found):
        return None
    return f"is a folder of DICOM files. Convert it to NIfTI: dcm2niix -z y -o NIFTI_FOLDER {shlex.quote(str(folder))}"


def _is_dicom_file(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return path.is_file() and _is_dicom(path, file.read(_DICOM_AT + len(_DICOM)))
    except OSError:
        return False


def _is_dicom(path: Path, head: bytes) -> bool:
    return head[_DICOM_AT:] == _DICOM or path.suffix.lower() in _DICOM_SUFFIXES


def _in_its_folder(path: Path, kind: str = "annex") -> str:
    folder, name = shlex.quote(str(path.parent)), shlex.quote(path.name)
    if kind == "lfs":
        return f"Fetch it: cd {folder} && git lfs pull --include {name}"
    return f"Fetch it: cd {folder} && datalad get {name} (or git annex get {name})"
