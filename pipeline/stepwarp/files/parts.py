"""The files that make up what one path names, and a checksum of all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nibabel.filename_parser import types_filenames

from stepwarp.files.nifti import suffix_of
from stepwarp.presence import check_present

_PAIRED = (".hdr", ".img", ".hdr.gz", ".img.gz")


def parts_of(path: Path) -> tuple[Path, ...]:
    """All files that are read where `path` is named: header and voxels of a pair, in this order, else the file."""
    if suffix_of(path) not in _PAIRED:
        return (path,)
    names = types_filenames(str(path), (("hdr", ".hdr"), ("img", ".img")))
    return Path(names["hdr"]), Path(names["img"])


def sha256(path: str | Path) -> str:
    """The SHA-256 of the bytes as stored, in hexadecimal; InputError if they cannot be read.

    Of a pair .hdr and .img, whichever is named, it is that of the two lines `hdr DIGEST` and `img DIGEST`, each ended
    by a line feed, with the SHA-256 of either file."""
    parts = parts_of(Path(path))
    if len(parts) == 1:
        return _digest(parts[0])
    lines = (f"{name} {_digest(part)}\n" for name, part in zip(("hdr", "img"), parts, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(path: Path) -> str:
    check_present(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
