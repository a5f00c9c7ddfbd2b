"""How other programs are given the images and kept quiet: through NIfTI files in a folder that vanishes afterwards.

Each program then reads what its own users would give it: on the brains in use here ANTs gets the same numbers to the
last bit. An oblique header rounds its sform, its qform and its voxel sizes each in its own way, and the file written
here agrees with the user's to the seventh digit only; ANTs' criteria for stopping can make tenths of a millimetre of
that, in either direction."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from stepwarp.errors import RegistrationError
from stepwarp.files import write_volume
from stepwarp.geometry import Image

#: Read by ITK once, when it first needs it: whoever loads ITK first in a process decides.
ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"


@contextlib.contextmanager
def as_files(fixed: Image, moving: Image) -> Iterator[tuple[Path, Path, Path]]:
    """A private folder, and in it the fixed and the moving image as uncompressed NIfTI; removed on the way out."""
    with tempfile.TemporaryDirectory(prefix="stepwarp-") as name:
        folder = Path(name)
        files = folder / "fixed.nii", folder / "moving.nii"
        write_volume(files[0], fixed)
        write_volume(files[1], moving)
        yield folder, *files


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Whatever is printed meanwhile, by Python or by compiled code, goes to standard error: standard output is ours."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def run(command: Sequence[str | Path], threads: int) -> str:
    """Run a program and return what it printed; RegistrationError with the end of that where it fails."""
    words = [str(word) for word in command]
    environment = os.environ | {ITK_THREADS: str(threads), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        words, env=environment, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != 0:
        end = " ".join(done.stdout[-1000:].split())
        raise RegistrationError(f"{words[0]}: ended with code {done.returncode} ({end}).")
    return done.stdout
