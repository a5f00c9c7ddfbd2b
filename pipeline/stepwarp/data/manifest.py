"""Manifests: JSON files that say which scans there are, which of them are registered with which, and where to get them.

A manifest holds no image. Its paths lie below a data root that each user has elsewhere, and none of them leaves it."""

from __future__ import annotations

import difflib
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator

from stepwarp.errors import InputError
from stepwarp.files import sha256, unbracketed
from stepwarp.files.json import read_json
from stepwarp.files.label_names import read_label_names
from stepwarp.files.tables import Space
from stepwarp.options import START_WORDS
from stepwarp.presence import why_absent
from stepwarp.printable import is_name
from stepwarp.recipes import Strict, first_problem

Role = Literal["image", "labels", "mask", "landmarks"]
ROLES: tuple[Role, ...] = get_args(Role)

_LARGEST_FILE = 64 * 2**20
#: Lists that others write, of which a manifest can be made.
_TABLES = {".csv", ".tsv"}
_ID = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"


def _inside(path: str) -> str:
    """The path as it is; ValueError unless it is relative and goes down only, on every system."""
    if not is_name(path):
        raise ValueError(f"{path!r} is no path: it is empty or holds a character that cannot be printed")
    windows = PureWindowsPath(path)
    if path.startswith(("/", "\\", "~")) or windows.drive:
        raise ValueError(f"'{path}' is absolute; paths are relative to the data root")
    if ".." in windows.parts:
        raise ValueError(f"'{path}' may leave the data root; paths go down only, without '..'")
    return path


def _start(text: str) -> str:
    """A word of `--initial`, or a path as `_inside`, perhaps as the inverse [path,1]."""
    if text not in START_WORDS:
        _inside(unbracketed(text)[0])
    return text


Id = Annotated[str, Field(pattern=_ID, max_length=120)]
DataPath = Annotated[str, AfterValidator(_inside)]
#: One entry or a chain; in a file, one may stand without brackets.
Start = Annotated[
    tuple[Annotated[str, AfterValidator(_start)], ...],
    BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ScanEntry(Strict):
    """One image and what is known about it; paths are relative to the data root.

    subject: the person, where several scans are of the same one; by default every scan is of another person.
    split: what the scan is for; one without is for all, as an atlas is. landmark_space: the world of x, y, z in a
    landmark file that does not state it, or voxel. landmark_columns: in a landmark file of several images, what the
    names of this one's columns begin with, `moving` where they are moving_x_ras and so on. unreliable_landmarks: names,
    or numbers counted from 1, of those to leave out. initial: where its registration to a template begins, as a pair's.
    sha256: role -> digest."""

    image: DataPath
    labels: DataPath | None = None
    mask: DataPath | None = None
    landmarks: DataPath | None = None
    subject: str | None = None
    split: Id | None = None
    unreliable_landmarks: tuple[str, ...] = ()
    landmark_space: Space | None = None
    landmark_columns: str | None = None
    initial: Start = ()
    sha256: dict[Role, Sha256] = Field(default={})

    @model_validator(mode="after")
    def _refuse_checksums_of_nothing(self) -> ScanEntry:
        for role in self.sha256:
            if getattr(self, role) is None:
                raise ValueError(f"sha256 of '{role}' is given, but no file for it")
        return self

    def paths(self) -> dict[Role, str]:
        """What there is, by its role."""
        return {role: path for role in ROLES if (path := getattr(self, role)) is not None}


class PairEntry(Strict):
    """Two scans to register. fixed, moving: keys of the manifest's `images`. split: theirs, unless both have none.

    transforms: files with a known or trusted answer, name -> path. initial: where `stepwarp batch` begins, one entry or
    a chain as `--initial` takes them."""

    id: Id
    fixed: Id
    moving: Id
    split: Id | None = None
    note: str | None = None
    transforms: dict[str, DataPath] = Field(default={})
    initial: Start = ()


class Manifest(Strict):
    """Scans, pairs of them, and where they come from.

    obtain: what a user must do to have the files. ignore_labels: left out of every score. label_names: label -> name,
    or the path of a table that holds this. label_groups: name -> labels that are reported together.
    all_pairs_of: splits whose scans are registered in all ordered pairs, besides `pairs`; such a pair's id is
    fixed_moving."""

    name: str = Field(min_length=1)
    description: str = ""
    licence: str = ""
    obtain: str = ""
    ignore_labels: tuple[int, ...] = ()
    label_names: dict[int, str] | DataPath | None = None
    label_groups: dict[str, tuple[int, ...]] = Field(default={})
    images: dict[Id, ScanEntry] = Field(default={})
    pairs: tuple[PairEntry, ...] = ()
    all_pairs_of: tuple[Id, ...] = ()

    @model_validator(mode="after")
    def _check_pairs(self) -> Manifest:
        _refuse_twice((pair.id for pair in self.pairs), "the pair")
        for pair in self.pairs:
            for side in (pair.fixed, pair.moving):
                if side not in self.images:
                    raise ValueError(f"pair '{pair.id}': there is no image '{side}'{_nearest(side, self.images)}")
            self._check_split(pair)
        known = {scan.split for scan in self.images.values()}
        for split in self.all_pairs_of:
            if split not in known:
                raise ValueError(f"all_pairs_of: no image is in the split '{split}'")
        _refuse_twice((pair.id for pair in self.all_pairs()), "the pair")
        return self

    @model_validator(mode="after")
    def _keep_people_apart(self) -> Manifest:
        scans: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for name, scan in self.images.items():
            if scan.split is not None:
                scans[scan.subject or name][scan.split].append(name)
        mixed = {person: splits for person, splits in scans.items() if len(splits) > 1}
        if mixed:
            person, splits = next(iter(mixed.items()))
            where = " and in ".join(f"{split} ({', '.join(names)})" for split, names in splits.items())
            others = f"; so are {len(mixed) - 1} others" if len(mixed) > 1 else ""
            raise ValueError(f"the person '{person}' is in {where}{others}. Keep each person in one split")
        return self

    @model_validator(mode="after")
    def _refuse_overlapping_groups(self) -> Manifest:
        _refuse_twice(
            (label for labels in self.label_groups.values() for label in labels), "in label_groups, the label"
        )
        return self

    def all_pairs(self) -> Iterator[PairEntry]:
        """The listed pairs, then those of `all_pairs_of`, each with its split."""
        for pair in self.pairs:
            yield pair.model_copy(update={"split": self._split_of(pair)})
        for split in self.all_pairs_of:
            names = [name for name, scan in self.images.items() if scan.split == split]
            for fixed, moving in itertools.permutations(names, 2):
                yield PairEntry.model_construct(id=f"{fixed}_{moving}", fixed=fixed, moving=moving, split=split)

    def scans(self, root: Path, split: str | None = None, verify: bool = True) -> list[Scan]:
        """The scans of a split, or all, with absolute paths below `root`.

        Raises InputError for files that are missing, outside `root` or, with `verify`, not those of the checksums."""
        found = [name for name, scan in self.images.items() if split is None or scan.split == split]
        if not found and split is not None:
            splits = sorted({scan.split for scan in self.images.values() if scan.split})
            raise InputError(f"manifest '{self.name}': no scan is in the split '{split}'. {_there_are(splits)}")
        return list(_located(self, found, root, verify).values())

    def _check_split(self, pair: PairEntry) -> None:
        split = self._split_of(pair)
        for side in (pair.fixed, pair.moving):
            other = self.images[side].split
            if other is not None and other != split:
                raise ValueError(f"pair '{pair.id}' is in the split '{split}', but its image '{side}' is in '{other}'")

    def _split_of(self, pair: PairEntry) -> str | None:
        return pair.split or self.images[pair.fixed].split or self.images[pair.moving].split


@dataclass(frozen=True)
class Scan:
    """One image with what is known about it, as absolute paths; see ScanEntry for the rest."""

    id: str
    image: Path
    labels: Path | None = None
    mask: Path | None = None
    landmarks: Path | None = None
    unreliable_landmarks: frozenset[str] = frozenset()
    landmark_space: Space | None = None
    landmark_columns: str | None = None
    subject: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two scans to register, and how their labels are read. transforms: name -> file with a known answer."""

    id: str
    fixed: Scan
    moving: Scan
    split: str | None = None
    ignore_labels: tuple[int, ...] = ()
    label_names: Mapping[int, str] = field(default_factory=dict)
    label_groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    transforms: Mapping[str, Path] = field(default_factory=dict)


def read_manifest(source: str | Path) -> Manifest:
    """The manifest in a JSON file, or one of those that come with stepwarp by its name, such as "oasis".

    Raises InputError, one line that names file, place and problem, for anything that is no manifest."""
    path = manifest_path(source)
    if path.suffix.lower() in _TABLES:
        raise InputError(
            f"{path}: is a table, and no manifest. Make one of it: stepwarp manifest make {path.name} --out "
            f"{path.stem}.json"
        )
    try:
        return Manifest.model_validate(read_json(path, _LARGEST_FILE, "manifest"))
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from None


def manifest_path(source: str | Path) -> Path:
    """The file of a manifest: a name without folder and suffix is one that comes with stepwarp."""
    path = Path(source)
    if path.suffix or len(path.parts) != 1:
        return path
    names = shipped()
    if path.name not in names:
        raise InputError(f"manifest '{path.name}' does not exist{_nearest(path.name, names)}. {_there_are(names)}")
    return _shipped_folder() / f"{path.name}.json"


def shipped() -> tuple[str, ...]:
    """The names of the manifests that come with stepwarp."""
    return tuple(sorted(path.stem for path in _shipped_folder().glob("*.json") if path.name != "schema.json"))


def pairs(manifest: Manifest, root: Path, split: str | None = None, verify: bool = True) -> list[Pair]:
    """The pairs of a split, or all, with absolute paths below `root`.

    Raises InputError if there is none, and as `Manifest.scans` does, telling how to obtain what is missing."""
    entries = [pair for pair in manifest.all_pairs() if split is None or pair.split == split]
    if not entries:
        splits = sorted({pair.split for pair in manifest.all_pairs() if pair.split})
        where = "" if split is None else f" in the split '{split}'"
        hint = _there_are(splits) if splits else f"To list them: {manifest.obtain}"
        raise InputError(f"manifest '{manifest.name}': lists no pair{where}. {hint}")
    names = dict.fromkeys(name for pair in entries for name in (pair.fixed, pair.moving))
    scans = _located(manifest, names, root, verify)
    labels = label_names(manifest, root)
    return [
        Pair(
            entry.id,
            scans[entry.fixed],
            scans[entry.moving],
            entry.split,
            manifest.ignore_labels,
            labels,
            manifest.label_groups,
            {name: located(path, root) for name, path in entry.transforms.items()},
        )
        for entry in entries
    ]


def data_root(given: Path | None, source: str | Path | None = None) -> Path:
    """Where a manifest's paths begin: `given`, else $STEPWARP_DATA, else the folder of the manifest's file `source`,
    or the working directory for a manifest that came with stepwarp. InputError if that is no folder."""
    stated = os.environ.get("STEPWARP_DATA")
    if given is not None:
        root, origin = given, "--data"
    elif stated:
        root, origin = Path(stated), "STEPWARP_DATA"
    elif source is not None and manifest_path(source).parent != _shipped_folder():
        root, origin = manifest_path(source).parent, "the manifest's folder"
    else:
        root, origin = Path(), "the working directory"
    if not root.is_dir():
        raise InputError(f"{root}: is no folder ({origin}). Name the folder of the data with --data.")
    return root


def located(path: str, root: Path) -> Path:
    """A manifest's path below the data root, absolute; InputError if links lead it out of the root."""
    place = Path(root).absolute() / PurePosixPath(path)
    if not place.resolve().is_relative_to(Path(root).resolve()):
        raise InputError(f"{place}: is a link that leaves the data root {root}. Copy the file to it.")
    return place


def located_start(start: tuple[str, ...], root: Path) -> tuple[str, ...]:
    """The entries of a start with absolute paths, as `located`; words as they are."""
    return tuple(entry if entry in START_WORDS else _located_entry(entry, root) for entry in start)


def label_names(manifest: Manifest, root: Path) -> dict[int, str]:
    """Label -> name, from the manifest or from the file below `root` that it names; empty if it says nothing."""
    if not isinstance(manifest.label_names, str):
        return dict(manifest.label_names or {})
    return read_label_names(located(manifest.label_names, root))


def schema_text() -> str:
    """The JSON schema of a manifest, as it stands in data_manifests/schema.json."""
    return json.dumps(Manifest.model_json_schema(), indent=1) + "\n"


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON text, without what has its default value."""
    return json.dumps(manifest.model_dump(mode="json", exclude_defaults=True), indent=1, ensure_ascii=False) + "\n"


def _located_entry(entry: str, root: Path) -> str:
    path, inverted = unbracketed(entry)
    place = located(path, root)
    return f"[{place},1]" if inverted else str(place)


def _located(manifest: Manifest, names: Iterable[str], root: Path, verify: bool) -> dict[str, Scan]:
    """The named scans with absolute paths; InputError for the first files that are missing or changed."""
    scans = {name: _scan(name, manifest.images[name], root) for name in names}
    files = [(name, role, getattr(scan, role)) for name, scan in scans.items() for role in ROLES]
    files = [(name, role, path) for name, role, path in files if path is not None]
    missing = [path for _, _, path in files if not path.exists()]
    if missing:
        raise InputError(
            f"{missing[0]}: {why_absent(missing[0])} Absent are {len(missing)} of {len(files)} files of "
            f"'{manifest.name}'. The data root is {root}; name another with --data. To obtain them: "
            f"{manifest.obtain or 'not said.'}"
        )
    for name, role, path in files if verify else ():
        expected = manifest.images[name].sha256.get(role)
        if expected is not None and sha256(path) != expected:
            raise InputError(f"{path}: is not the file that the manifest describes (SHA-256). Obtain it again.")
    return scans


def _scan(name: str, entry: ScanEntry, root: Path) -> Scan:
    paths = {role: located(path, root) for role, path in entry.paths().items()}
    return Scan(
        id=name,
        image=paths["image"],
        labels=paths.get("labels"),
        mask=paths.get("mask"),
        landmarks=paths.get("landmarks"),
        unreliable_landmarks=frozenset(entry.unreliable_landmarks),
        landmark_space=entry.landmark_space,
        landmark_columns=entry.landmark_columns,
        subject=entry.subject,
        split=entry.split,
    )


def _shipped_folder() -> Path:
    """Beside the code in an installed wheel, at the top of the checkout otherwise."""
    packaged = Path(str(resources.files("stepwarp"))) / "data_manifests"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "data_manifests"


def _refuse_twice(names: Iterable[object], what: str) -> None:
    seen: set[object] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} '{name}' is there twice")
        seen.add(name)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _there_are(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"There are {listed}." if listed else "There are none."
