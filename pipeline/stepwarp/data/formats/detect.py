"""Which format a source has, known by its content."""

from __future__ import annotations

from pathlib import Path

from stepwarp.data.formats.bids import is_bids, read_bids
from stepwarp.data.formats.csv_pairs import read_csv
from stepwarp.data.formats.draft import Draft
from stepwarp.data.formats.lists import is_list, read_list
from stepwarp.data.manifest import Manifest, read_manifest
from stepwarp.errors import InputError
from stepwarp.files.json import parse_json
from stepwarp.presence import check_present

_LARGEST_FILE = 256 * 2**20
_KNOWN = "Learn2Reg's *_dataset.json, a MONAI datalist, a folder of BIDS derivatives, or a CSV with fixed and moving"


def read_foreign(
    source: Path, root: Path, *, fixed: str | None = None, name: str | None = None, split: str | None = None
) -> Manifest:
    """A list of scans or pairs as a manifest whose paths are below `root`; a manifest is read as it is.

    Paths in the list begin at its own folder if that is inside `root`, else at `root`. fixed: the id of the scan that
    all others are registered to, for a list that has no pairs. split: of scans for which the list gives none.

    Raises InputError, one line that names the source and the place in it, for what is none of the known formats."""
    folder = source if source.is_dir() else source.parent
    inside = folder.resolve().is_relative_to(root.resolve())
    draft = Draft(source, root, folder if inside else root)
    if source.is_dir():
        if not is_bids(source):
            raise InputError(f"{source}: has no folder sub-*. A manifest is made from {_KNOWN}.")
        read_bids(source, draft)
    else:
        text = _text(source)
        if not text.lstrip().startswith(("{", "[")):
            read_csv(text, draft)
        elif is_list(content := parse_json(text, str(source))):
            read_list(content, draft)
        elif isinstance(content, dict) and "images" in content:
            return read_manifest(source)
        else:
            raise InputError(f"{source}: has none of the known sections. A manifest is made from {_KNOWN}.")
    if fixed is not None:
        draft.pair_all_with(fixed)
    return draft.manifest(name, split)


def _text(source: Path) -> str:
    if check_present(source) > _LARGEST_FILE:
        raise InputError(f"{source}: is larger than {_LARGEST_FILE >> 20} MiB, which no list is.")
    try:
        return source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{source}: is not text in UTF-8. A manifest is made from {_KNOWN}.") from None
