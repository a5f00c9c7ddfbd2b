"""What can be found wrong in a moment, before torch is imported and minutes are spent."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from stepwarp.errors import InputError, OutputError
from stepwarp.layout import NAMES
from stepwarp.presence import check_present

#: What a trace writes into its folder, as far as it can be known before.
TRACE = ("trace.json", "step01_Warp.nii.gz")
_IMAGE_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh", ".img", ".hdr", ".nrrd", ".mha")


def check_files(paths: Iterable[Path | None]) -> None:
    """InputError for the first path that is given and cannot be read."""
    for path in paths:
        if path is not None:
            check_present(path)


def check_out(
    folder: Path, names: Iterable[str] = NAMES, *, overwrite: bool, option: str = "--out", default: str = "result"
) -> None:
    """InputError for a folder that is named like an image; OutputError if it cannot take the files `names`.

    They may be there already only with `overwrite`. option, default: what gave the folder, and a name for it."""
    suffix = next((s for s in sorted(_IMAGE_SUFFIXES, key=len, reverse=True) if folder.name.lower().endswith(s)), None)
    if suffix:
        better = folder.with_name(folder.name[: -len(suffix)] or default)
        raise InputError(
            f"{folder}: {option} is a folder, and this is the name of an image. Use, say, {option} {better}."
        )
    present = [name for name in names if os.path.lexists(folder / name)]
    if present and not overwrite:
        raise OutputError(
            f"{folder / present[0]}: exists already. Choose another {option}, or replace it with --force."
        )
    existing = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not existing.is_dir():
        raise OutputError(f"{existing}: is a file, so {folder} cannot be made in it. Choose another {option}.")
    try:
        os.lstat(existing.joinpath(*folder.absolute().relative_to(existing.absolute()).parts[:1]))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made, {(error.strerror or str(error)).lower()}.") from error
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{existing}: may not be written to. Choose another {option}, or change its permissions.")
