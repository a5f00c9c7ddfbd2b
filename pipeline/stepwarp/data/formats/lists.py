"""JSON lists: Learn2Reg's *_dataset.json, and the datalists of MONAI and the Medical Segmentation Decathlon.

Learn2Reg lists its validation images among those for training too, and some of its validation pairs; and it names
keypoint files after the images, .nii.gz, although they are .csv, in voxels. Both are put right here."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from stepwarp.data.formats.draft import Draft
from stepwarp.errors import InputError

#: Section -> split. A scan that several sections name is in the split that comes last here.
SECTIONS = {
    "training": "training",
    "train": "training",
    "training_paired_images": "training",
    "validation": "validation",
    "val": "validation",
    "registration_val": "validation",
    "test": "test",
    "testing": "test",
    "test_paired_images": "test",
    "registration_test": "test",
}
_RANK = {"training": 0, "validation": 1, "test": 2}

#: Role -> what lists call it, the better one first: landmarks are placed by people, keypoints are found.
_ALIASES = {
    "labels": ("label", "labels", "segmentation", "seg"),
    "mask": ("mask",),
    "landmarks": ("landmarks", "keypoints"),
}
_SIDES = ("fixed", "moving")
_NIFTI = (".nii", ".nii.gz")
#: NAME_CASE_SCAN: scans of one case are of one person.
_LEARN2REG_NAME = re.compile(r"(.+_\d{4})_\d{4}\.nii(?:\.gz)?")


def is_list(content: object) -> bool:
    """Whether JSON content looks like one of these lists."""
    return isinstance(content, list) or (isinstance(content, dict) and any(key in content for key in SECTIONS))


def read_list(content: Any, draft: Draft) -> None:
    """Collect the scans and pairs of a list, and what it says about itself."""
    sections = content if isinstance(content, dict) else {"": content}
    splits: dict[str, set[str]] = defaultdict(set)
    for split, where, item in _items(sections, draft):
        images = _pair(item, split, where, draft) if _is_pair(item) else [_scan(item, where, draft)]
        for image in images:
            splits[image] |= {split} if split else set()
    atlas = draft.shared_by_all_pairs()
    for image, found in splits.items():
        if found and not (image in atlas and len(found) > 1):
            draft.scans[image]["split"] = max(found, key=_RANK.__getitem__)
    _leave_out_leaking_pairs(draft)
    if "numTraining" in sections or "registration_val" in sections:
        _note_people(draft)
    if isinstance(content, dict):
        draft.facts |= _about(content)


def _items(sections: Mapping[str, Any], draft: Draft) -> Iterator[tuple[str | None, str, Any]]:
    """Split, place for messages, and each entry of each section."""
    for section in ("", *SECTIONS):
        entries = sections.get(section, [])
        if not isinstance(entries, list):
            raise InputError(f"{draft.source}: '{section}' is not a list.")
        for number, entry in enumerate(entries):
            yield SECTIONS.get(section), f"{section or 'entry'} {number}", entry


def _is_pair(item: Any) -> bool:
    return isinstance(item, dict) and all(side in item or f"{side}_image" in item for side in _SIDES)


def _scan(item: Any, where: str, draft: Draft) -> str:
    entry = {"image": item} if isinstance(item, str) else item
    if not isinstance(entry, dict) or "image" not in entry:
        raise InputError(f"{draft.source}, {where}: names neither an image nor fixed and moving images.")
    return draft.scan(draft.path(entry["image"], where), where, **_companions(entry, "", where, draft))


def _pair(item: dict[str, Any], split: str | None, where: str, draft: Draft) -> list[str]:
    images = []
    for side in _SIDES:
        image = draft.path(item.get(f"{side}_image", item.get(side)), where)
        images.append(draft.scan(image, where, **_companions(item, f"{side}_", where, draft)))
    pair = dict(zip(_SIDES, images, strict=True)) | ({"split": split} if split else {})
    if pair not in draft.pairs:
        draft.pairs.append(pair)
    return images


def _companions(entry: Mapping[str, Any], prefix: str, where: str, draft: Draft) -> dict[str, str]:
    found = {}
    for role, names in _ALIASES.items():
        listed = next((entry[prefix + name] for name in names if entry.get(prefix + name)), None)
        if listed is not None:
            found[role] = path = draft.path(listed, where)
            if role == "landmarks" and path.endswith(_NIFTI):
                found |= {role: re.sub(r"\.nii(\.gz)?$", ".csv", path), "landmark_space": "voxel"}
    return found


def _leave_out_leaking_pairs(draft: Draft) -> None:
    """Pairs for training whose scans are held out: Learn2Reg repeats its validation pairs there."""
    kept = [pair for pair in draft.pairs if all(_may_be_in(pair, draft.scans[pair[side]]) for side in _SIDES)]
    left_out = len(draft.pairs) - len(kept)
    if left_out:
        draft.facts["description"] = f"{left_out} pairs for training are left out: their scans are held out."
    draft.pairs = kept


def _may_be_in(pair: Mapping[str, Any], scan: Mapping[str, Any]) -> bool:
    return "split" not in scan or "split" not in pair or pair["split"] == scan["split"]


def _note_people(draft: Draft) -> None:
    people = defaultdict(list)
    for image in draft.scans:
        named = _LEARN2REG_NAME.fullmatch(image.rpartition("/")[2])
        if named:
            people[named[1]].append(image)
    for person, images in people.items():
        for image in images if len(images) > 1 else ():
            draft.scans[image]["subject"] = person


def _about(content: Mapping[str, Any]) -> dict[str, Any]:
    texts = {
        "name": content.get("name"),
        "description": content.get("description"),
        "licence": content.get("licence") or content.get("license"),
        "obtain": content.get("reference"),
    }
    said = {key: " ".join(text.split()) for key, text in texts.items() if isinstance(text, str) and text.strip()}
    names = _label_names(content.get("labels"))
    return said | ({"label_names": names} if names else {})


def _label_names(labels: Any) -> dict[int, str]:
    """Number -> name, which some lists write the other way round; empty where it is neither."""
    if not isinstance(labels, dict):
        return {}
    turned = {str(number): name for name, number in labels.items() if isinstance(number, int)}
    named = {number: name for number, name in (turned or labels).items() if isinstance(name, str)}
    return {int(number): name for number, name in named.items() if number.isdecimal()}
