"""Paths for libraries in C++ and Rust, which take names in UTF-8 only; some of them abort at others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepwarp.files.nifti import suffix_of


@contextmanager
def utf8_path(path: Path) -> Iterator[str]:
    """A path in UTF-8 to the file at `path`, to read or to write it: a link in a folder of its own where need be."""
    try:
        text = str(path).encode().decode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="stepwarp-") as folder:
            link = Path(folder) / f"file{suffix_of(path)}"
            link.symlink_to(path.absolute())
            yield str(link)
    else:
        yield text
