"""A manifest while its scans and pairs are being collected."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stepwarp.data.manifest import Manifest
from stepwarp.errors import InputError
from stepwarp.printable import is_name
from stepwarp.recipes import first_problem

#: What a list that gives no labels to ignore means: background.
IGNORED = (0,)

_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".img", ".hdr")


@dataclass
class Draft:
    """Scans by their path below the data root, and pairs of such paths.

    source: the list that is read, to name in messages. root: the data root. folder: where the list's relative paths
    begin; a file that is not there is looked for below `root`."""

    source: Path
    root: Path
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    scans: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)

    def path(self, listed: object, where: str) -> str:
        """A path as the list gives it, below the data root; InputError, naming `where`, if it is not there."""
        if not isinstance(listed, str) or not is_name(listed):
            raise InputError(f"{self.source}, {where}: {listed!r} is not the path of one file.")
        places = [Path(os.path.normpath(folder.absolute() / listed)) for folder in (self.folder, self.root)]
        place = next((place for place in places if place.exists()), places[0])
        # Names are compared as they are written, so that links within the root may lead anywhere.
        for root in (Path(os.path.normpath(self.root.absolute())), self.root.resolve()):
            if place.is_relative_to(root):
                return place.relative_to(root).as_posix()
        raise InputError(
            f"{self.source}, {where}: {listed} lies outside the data root '{self.root.absolute()}'. Set it with --data."
        )

    def scan(self, image: str, where: str, **facts: Any) -> str:
        """Note what is known of an image; InputError if something else is known already."""
        known = self.scans.setdefault(image, {})
        for key, value in facts.items():
            if value is not None and known.setdefault(key, value) != value:
                raise InputError(f"{self.source}, {where}: {image} has two {key}, {known[key]} and {value}. Keep one.")
        return image

    def pair_all_with(self, fixed: str) -> None:
        """Make every other scan a moving image for one of them, given by its id; that one serves all splits."""
        ids = self._ids()
        atlas = next((image for image, name in ids.items() if name == fixed), None)
        if atlas is None:
            some = ", ".join(list(ids.values())[:5])
            raise InputError(f"{self.source}: there is no scan '{fixed}' to be the fixed image. There are {some} ...")
        self.scans[atlas].pop("split", None)
        self.pairs = [{"fixed": atlas, "moving": image} for image in self.scans if image != atlas]

    def manifest(self, name: str | None, split: str | None) -> Manifest:
        """The manifest. split: of the scans for which the list gives none, unless they are one for all pairs."""
        ids, shared = self._ids(), self.shared_by_all_pairs()
        for image, facts in self.scans.items():
            if split is not None and "split" not in facts and image not in shared:
                facts["split"] = split
        content = {
            "ignore_labels": IGNORED,
            **self.facts,
            "name": name or self.facts.get("name") or self.source.absolute().stem,
            "images": {ids[image]: {"image": image, **facts} for image, facts in self.scans.items()},
            "pairs": [_named(pair, ids) for pair in self.pairs],
        }
        try:
            return Manifest.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{self.source}: cannot be a manifest. {first_problem(error)}") from None

    def shared_by_all_pairs(self) -> set[str]:
        """The atlas: the image, if there is one, that all of at least two pairs have in common."""
        sides = [{pair["fixed"], pair["moving"]} for pair in self.pairs]
        return set.intersection(*sides) if len({frozenset(side) for side in sides}) > 1 else set()

    def _ids(self) -> Mapping[str, str]:
        """Image -> id: its file's name, or its path where two files have the same name."""
        names = {image: _safe(_stem(image.rpartition("/")[2])) for image in self.scans}
        count = Counter(names.values())
        return {image: name if count[name] == 1 else _safe(_stem(image)) for image, name in names.items()}


def _named(pair: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    fixed, moving = ids[pair["fixed"]], ids[pair["moving"]]
    return {"id": f"{fixed}_{moving}", **pair, "fixed": fixed, "moving": moving}


def _stem(name: str) -> str:
    suffix = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")
