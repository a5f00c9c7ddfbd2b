"""The results once more under names of BIDS derivatives: hard links, so that they take no room."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwarp.batch.places import BatchPlaces
from stepwarp.batch.plan import BatchCase
from stepwarp.errors import InputError, OutputError
from stepwarp.files.json import write_json
from stepwarp.files.lock import refuse_links
from stepwarp.layout import AFFINE, INVERSE_WARP, JACOBIAN, MOVED, WARP
from stepwarp.version import __version__
from stepwarp.workflow.subjects import ants_options

_ENTITY = re.compile(r"(?:^|_)(sub|ses|acq|run|rec|tpl)-([A-Za-z0-9]+)(?=_|\.)")
_SUFFIX = re.compile(r"_([A-Za-z0-9]+)\.[^/]*$")
#: Says whose a dataset is.
_DESCRIPTION = "dataset_description.json"


@dataclass(frozen=True)
class Names:
    """How BIDS calls a registration. folder: below the tree. stem: the moving scan's entities. kind: its suffix, T1w
    for one that does not say. space: label of the fixed image."""

    folder: str
    stem: str
    kind: str
    space: str

    @classmethod
    def of(cls, case: BatchCase) -> Names:
        """From the entities in the file names where there are some, else from the names themselves."""
        assert case.job is not None
        fixed, moving = (_entities(case.job.images[role].name) for role in ("fixed", "moving"))
        names = {role: _label(path.name) for role, path in case.job.images.items()}
        subject = moving.get("sub") or names["moving"]
        session = f"ses-{moving['ses']}" if "ses" in moving else ""
        folder = "/".join(filter(None, (f"sub-{subject}", session, "anat")))
        kept = [f"{key}-{moving[key]}" for key in ("acq", "rec", "run") if key in moving]
        suffix = _SUFFIX.search(case.job.images["moving"].name) if "sub" in moving else None
        space = fixed.get("tpl") or "".join(fixed[key] for key in ("sub", "ses", "acq", "run") if key in fixed)
        kind = suffix.group(1) if suffix else "T1w"
        stem = "_".join(filter(None, (f"sub-{subject}", session, *kept)))
        return cls(folder, stem, kind, space or names["fixed"])

    def files(self) -> dict[str, str]:
        """File of a result -> its name in the folder."""
        there, back = f"from-{self.kind}_to-{self.space}", f"from-{self.space}_to-{self.kind}"
        return {
            MOVED: f"{self.stem}_space-{self.space}_{self.kind}.nii.gz",
            JACOBIAN: f"{self.stem}_space-{self.space}_desc-jacobian_{self.kind}.nii.gz",
            AFFINE: f"{self.stem}_{there}_mode-image_desc-affine_xfm.mat",
            WARP: f"{self.stem}_{there}_mode-image_desc-warp_xfm.nii.gz",
            INVERSE_WARP: f"{self.stem}_{back}_mode-image_desc-warp_xfm.nii.gz",
        }

    def sidecar(self) -> str:
        """Says from which files, and in which order; the last to be written."""
        return f"{self.stem}_from-{self.kind}_to-{self.space}_mode-image_xfm.json"


def check_names(cases: Iterable[BatchCase]) -> None:
    """InputError if two cases would get the same names."""
    taken: dict[tuple[str, str], str] = {}
    for case in cases:
        if case.job is None:
            continue
        names = Names.of(case)
        place = (names.folder, names.sidecar())
        if place in taken:
            raise InputError(
                f"cases '{taken[place]}' and '{case.id}' would both be {'/'.join(place)}. Leave out --bids, or name "
                "the files with different BIDS entities (sub-, ses-, run-)."
            )
        taken[place] = case.id


def check_target(places: BatchPlaces) -> None:
    """OutputError for a `bids` that holds links, or another's dataset."""
    refuse_links(places.bids)
    if places.bids.is_dir():
        _refuse_foreign(places.bids)


def publish(places: BatchPlaces, cases: Iterable[BatchCase], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Link every finished case of `records` below `bids`, and take away the names of those that are not.

    Raises OutputError if something cannot be written, and for a folder that holds links, or another's dataset."""
    check_target(places)
    places.bids.mkdir(exist_ok=True)
    _describe(places.bids)
    for case in cases:
        if case.job is None:
            continue
        names = Names.of(case)
        folder = places.bids / names.folder
        (folder / names.sidecar()).unlink(missing_ok=True)
        record = records.get(case.id)
        for name, public in names.files().items():
            source = places.case(case.id) / name
            if record is None or not source.exists():
                (folder / public).unlink(missing_ok=True)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            _link(source, folder / public)
        if record is not None:
            write_json(folder / names.sidecar(), _sidecar(names, record))


def _refuse_foreign(folder: Path) -> None:
    """OutputError unless a dataset is empty or says that it is stepwarp's."""
    if not any(folder.iterdir()):
        return
    try:
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        ours = any(by["Name"] == "stepwarp" for by in description["GeneratedBy"])
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise OutputError(
            f"{folder}: is no dataset of stepwarp's by its {_DESCRIPTION}. Move it away, or leave out --bids."
        )


def _entities(name: str) -> dict[str, str]:
    return dict(_ENTITY.findall(name))


def _label(name: str) -> str:
    """A file's name as BIDS takes a label: letters and digits."""
    return re.sub(r"[^A-Za-z0-9]", "", name.split(".")[0]) or "image"


def _describe(folder: Path) -> None:
    description = {
        "Name": "stepwarp registrations",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "stepwarp", "Version": __version__}],
    }
    write_json(folder / _DESCRIPTION, description, overwrite=True)


def _sidecar(names: Names, record: Mapping[str, Any]) -> dict[str, Any]:
    files = names.files()
    order = [files[name] for name in (WARP, AFFINE) if name in record["outputs"]]
    return {
        "Sources": [Path(record["inputs"][role]["path"]).name for role in ("moving", "fixed")],
        "SpatialReference": Path(record["inputs"]["fixed"]["path"]).name,
        "antsApplyTransforms": ants_options(record, order),
        "Verdict": record["verdict"],
        "GeneratedBy": {"Name": "stepwarp", "Version": record["version"]},
    }


def _link(source: Path, target: Path) -> None:
    """Make `target` the very file `source`, or a copy where the file system has no links, complete or not at all."""
    if target.exists() and target.samefile(source):
        return
    temporary = target.with_name(f".partial-{secrets.token_hex(8)}")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written, {(error.strerror or str(error)).lower()}.") from error
    finally:
        temporary.unlink(missing_ok=True)
