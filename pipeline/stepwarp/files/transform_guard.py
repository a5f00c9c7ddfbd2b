"""Is a transform file all there? ITK reads a file that lost its end, and keeps what it has not read at identity."""

from __future__ import annotations

import struct
from pathlib import Path

from stepwarp.errors import InputError
from stepwarp.files import nifti

TEXT_SUFFIXES = (".tfm", ".txt")
_FIRST_LINE = "#Insight Transform File V1"
_MAT_NUMBER_BYTES = {0: 8, 10: 4}
_FIELDS = ["Parameters", "FixedParameters"]


def check_complete(path: Path) -> None:
    """InputError unless the file is readable and, where it is text or MATLAB 4, whole and of one transform.

    HDF5 knows its own length and is left to ITK."""
    nifti.check_readable(path)
    suffix = nifti.suffix_of(path)
    if suffix in TEXT_SUFFIXES:
        _check_text(path)
    elif suffix == ".mat":
        _check_mat(path)


def _check_text(path: Path) -> None:
    """A first line, then `Transform`, `Parameters` and `FixedParameters` of each transform, the last line ended.

    A composite has no parameters and comes first."""
    try:
        text = path.read_text(encoding="ascii")
    except ValueError:
        raise _not_a_transform(path) from None
    lines = text.splitlines()
    if not text.startswith(_FIRST_LINE):
        raise _not_a_transform(path)
    tags = [line.split(":", 1)[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    composite = any(line.startswith("Transform: CompositeTransform") for line in lines)
    members = tags[1:] if composite else tags
    count = members.count("Transform")
    if not text.endswith("\n") or not count or members != ["Transform", *_FIELDS] * count:
        raise _cut_off(path)
    _refuse_several(path, 1 if composite else count)


def _check_mat(path: Path) -> None:
    """Records of MATLAB 4: five int32 (type, rows, columns, imaginary, length of the name), the name, the numbers."""
    data = path.read_bytes()
    names = []
    start = 0
    while start < len(data):
        if start + 20 > len(data):
            raise _cut_off(path)
        kind, rows, columns, imaginary, name_length = struct.unpack_from("<5i", data, start)
        if kind not in _MAT_NUMBER_BYTES or imaginary or min(rows, columns) < 0 or name_length < 1:
            raise _not_a_transform(path)
        end = start + 20 + name_length + rows * columns * _MAT_NUMBER_BYTES[kind]
        if end > len(data):
            raise _cut_off(path)
        names.append(data[start + 20 : start + 20 + name_length].rstrip(b"\0"))
        start = end
    if len(names) == 1:
        raise _cut_off(path)
    _refuse_several(path, len(names) // 2)


def _refuse_several(path: Path, count: int) -> None:
    if count > 1:
        raise InputError(
            f"{path}: holds {count} transforms without saying how they follow each other. Give one file for each, or a "
            "composite."
        )


def _not_a_transform(path: Path) -> InputError:
    return InputError(f"{path}: is not a transform of ITK, whatever its name says. Convert it to ITK's format.")


def _cut_off(path: Path) -> InputError:
    return InputError(f"{path}: is not a complete transform of ITK, its end seems cut off. Fetch or write it again.")
