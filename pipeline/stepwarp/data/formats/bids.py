"""Folders of BIDS derivatives: sub-*/[ses-*/]anat/*_T1w.nii.gz with *_dseg and *_mask beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stepwarp.data.formats.draft import Draft
from stepwarp.errors import InputError

_IMAGE, _ENDING = "T1w", ".nii.gz"
#: Of several files that differ in `desc` only, the first of these is taken, else one with another or without desc.
_IMAGES, _LABELS, _MASKS = ("preproc", "brain"), ("aparcaseg", "aseg"), ("brain",)


def is_bids(folder: Path) -> bool:
    """Whether a folder has people in it."""
    return any(folder.glob("sub-*/"))


def read_bids(folder: Path, draft: Draft) -> None:
    """Collect each T1-weighted image, once for each session, run and space, with its label map and brain mask.

    With one template (tpl-*) in the folder, it is the fixed image of every pair."""
    files = sorted(folder.glob(f"sub-*/**/anat/*{_ENDING}"))
    images = _distinct([path for path in files if _suffix(path) == _IMAGE], _IMAGES)
    if not images:
        raise InputError(f"{folder}: holds no sub-*/[ses-*/]anat/*_{_IMAGE}{_ENDING}. Name the folder of derivatives.")
    for image in images:
        _scan(image, [path for path in files if path.parent == image.parent], draft)
    templates = _distinct(sorted(folder.glob(f"tpl-*/**/*_{_IMAGE}{_ENDING}")), _IMAGES)
    if len(templates) == 1:
        fixed = _scan(templates[0], sorted(templates[0].parent.glob(f"*{_ENDING}")), draft)
        draft.pairs = [{"fixed": fixed, "moving": image} for image in draft.scans if image != fixed]


def _scan(image: Path, beside: list[Path], draft: Draft) -> str:
    alike = [path for path in beside if _identity(path) == _identity(image)]
    companions = {
        "labels": _preferred([path for path in alike if _suffix(path) == "dseg"], _LABELS),
        "mask": _preferred([path for path in alike if _suffix(path) == "mask"], _MASKS),
    }
    facts = {role: draft.path(str(path.absolute()), str(path)) for role, path in companions.items() if path}
    subject = _entities(image).get("sub")
    if subject:
        facts["subject"] = f"sub-{subject}"
    return draft.scan(draft.path(str(image.absolute()), str(image)), str(image), **facts)


def _distinct(paths: list[Path], preferred: tuple[str, ...]) -> list[Path]:
    """One file for each identity."""
    groups: dict[tuple[object, ...], list[Path]] = {}
    for path in paths:
        groups.setdefault(_identity(path), []).append(path)
    chosen = (_preferred(group, preferred) for group in groups.values())
    return [path for path in chosen if path is not None]


def _preferred(paths: list[Path], order: tuple[str, ...]) -> Path | None:
    ranks = {desc: rank for rank, desc in enumerate(order)}
    return min(paths, key=lambda path: ranks.get(_entities(path).get("desc", ""), len(order)), default=None)


def _identity(path: Path) -> tuple[object, ...]:
    """Which image it is or belongs to: its folder and all entities but the description and the kind of labels."""
    entities = _entities(path)
    return path.parent, *((key, value) for key, value in entities.items() if key not in ("desc", "atlas", "seg"))


def _entities(path: Path) -> Mapping[str, str]:
    parts = path.name.removesuffix(_ENDING).split("_")[:-1]
    return {key: value for key, dash, value in (part.partition("-") for part in parts) if dash}


def _suffix(path: Path) -> str:
    return path.name.removesuffix(_ENDING).rpartition("_")[2]
