"""Manifests made from what others list, or of the demo's pair, and compared with the files on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stepwarp.data.formats import read_foreign
from stepwarp.data.manifest import (
    Manifest,
    PairEntry,
    Role,
    ScanEntry,
    label_names,
    located,
    located_start,
    manifest_text,
    read_manifest,
)
from stepwarp.data.mni152 import mni152
from stepwarp.errors import InputError, OutputError
from stepwarp.files import (
    Landmarks,
    TrustRules,
    check_file_target,
    read_image,
    read_labels,
    read_landmarks,
    read_mask,
    sha256,
    write_landmarks,
    write_text,
)
from stepwarp.files.json import refuse_foreign_json
from stepwarp.files.lock import locked
from stepwarp.geometry import Grid, LabelMap
from stepwarp.options import START_WORDS
from stepwarp.presence import why_absent
from stepwarp.printable import counted, worded
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.workflow.demo import OWN_NAMES, TISSUES, TRUTH, make_pair, save_pair
from stepwarp.workflow.demo import DemoPair as DemoPair
from stepwarp.workflow.journey import link_of, load

DEMO = "demo"
_LANDMARKS = 100
_DEMO_FILES = (*OWN_NAMES, "fixed_landmarks.csv", "moving_landmarks.csv")

Kind = Literal["missing", "changed", "unusable", "elsewhere"]


@dataclass(frozen=True)
class ManifestFinding:
    """One thing that is wrong. kind: the file is missing, or not that of the checksum, or cannot be used, or lies
    elsewhere than its image. scan: its id, or the pair's."""

    kind: Kind
    scan: str
    role: str
    path: str
    reason: str


@dataclass(frozen=True)
class Inventory:
    """A manifest beside the files on disk. files, present: how many it names, and how many are there. checksums: how
    many it knows. splits: split -> scans, '' for those without."""

    manifest: str
    root: str
    scans: int
    pairs: int
    splits: dict[str, int]
    files: int
    present: int
    checksums: int
    findings: tuple[ManifestFinding, ...]
    obtain: str

    @property
    def complete(self) -> bool:
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"complete": self.complete}


def check(manifest: Manifest, root: Path, progress: Progress = silent) -> Inventory:
    """Read every file of a manifest: is it there, the one of its checksum, readable, and on its image's grid?"""
    findings: list[ManifestFinding] = []
    for number, (name, entry) in enumerate(manifest.images.items()):
        progress(ProgressReport("files", number, len(manifest.images)))
        findings += _check_scan(name, entry, root)
    progress(ProgressReport("files", len(manifest.images), len(manifest.images)))
    for pair in manifest.pairs:
        for name, listed in pair.transforms.items():
            findings += _check_file(f"pair {pair.id}", f"transform {name}", listed, root, None)
    starts = {f"pair {pair.id}": pair.initial for pair in manifest.pairs}
    starts |= {name: entry.initial for name, entry in manifest.images.items()}
    findings += [found for name, start in starts.items() for found in _check_start(name, start, root)]
    if isinstance(manifest.label_names, str):
        try:
            label_names(manifest, root)
        except InputError as error:
            findings.append(ManifestFinding("unusable", "", "label_names", manifest.label_names, str(error)))
    files = [path for entry in manifest.images.values() for path in entry.paths().values()]
    return Inventory(
        manifest=manifest.name,
        root=str(root),
        scans=len(manifest.images),
        pairs=sum(1 for _ in manifest.all_pairs()),
        splits=dict(Counter(entry.split or "" for entry in manifest.images.values())),
        files=len(files),
        present=len(files) - sum(finding.kind == "missing" and finding.role != "label_names" for finding in findings),
        checksums=sum(len(entry.sha256) for entry in manifest.images.values()),
        findings=tuple(findings),
        obtain=manifest.obtain,
    )


def make(
    source: str | Path,
    out: Path,
    root: Path | None = None,
    *,
    name: str | None = None,
    split: str | None = None,
    fixed: str | None = None,
    checksums: bool = True,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Write the manifest of `source` to `out`: a list that `read_foreign` knows, with its arguments, or "demo", whose
    pair is made in the folder of `out` from `seed`.

    root: the data root; by default the folder of the source. Files that are absent get no checksum.
    Raises InputError as `read_foreign` does; OutputError, before anything is read, if `out` cannot be written or is a
    file of another kind."""
    if out.suffix != ".json":
        raise OutputError(f"{out}: a manifest is a JSON file. Choose a name that ends in .json.")
    refuse_foreign_json(out, ("name", "images"), "manifest")
    of_demo = str(source) == DEMO
    with locked(out.parent, DEMO, _DEMO_FILES, known=_is_of_demo(out)) if of_demo else nullcontext():
        check_file_target(out, overwrite)
        if of_demo:
            manifest = _make_demo(out.parent, seed, overwrite, progress)
            root = out.parent
        else:
            source = Path(source)
            root = root or (source if source.is_dir() else source.parent)
            manifest = read_foreign(source, root, fixed=fixed, name=name, split=split)
        if checksums:
            manifest = _with_checksums(manifest, root, progress)
        write_text(out, manifest_text(manifest), overwrite)
    return manifest


def _check_scan(name: str, entry: ScanEntry, root: Path) -> Iterator[ManifestFinding]:
    paths = entry.paths()
    broken = set()
    for role, listed in paths.items():
        found = list(_check_file(name, role, listed, root, entry.sha256.get(role)))
        broken |= {role} if found else set()
        yield from found
    grid: Grid | None = None
    for role, listed in paths.items():
        if role in broken:
            continue
        try:
            grid, reason = _read(role, located(listed, root), grid, entry)
        except InputError as error:
            yield ManifestFinding("unusable", name, role, listed, str(error))
        else:
            if reason:
                yield ManifestFinding("elsewhere", name, role, listed, reason)


def _check_file(name: str, role: str, listed: str, root: Path, digest: str | None) -> Iterator[ManifestFinding]:
    try:
        path = located(listed, root)
        if not path.exists():
            yield ManifestFinding("missing", name, role, listed, why_absent(path))
        elif digest is not None and sha256(path) != digest:
            yield ManifestFinding(
                "changed", name, role, listed, "is not the file that the manifest describes (SHA-256)"
            )
    except InputError as error:
        yield ManifestFinding("unusable", name, role, listed, str(error))


def _check_start(name: str, start: tuple[str, ...], root: Path) -> Iterator[ManifestFinding]:
    for entry in start:
        if entry in START_WORDS:
            continue
        try:
            (place,) = located_start((entry,), root)
            load((link_of(place),), TrustRules())
        except InputError as error:
            yield ManifestFinding("unusable", name, "initial", entry, str(error))


def _read(role: Role, path: Path, grid: Grid | None, entry: ScanEntry) -> tuple[Grid | None, str]:
    """The image's grid, known once the image is read, and what is wrong with where a file of another role lies."""
    if role == "image":
        return read_image(path).grid, ""
    if role == "landmarks":
        return grid, _outside(read_landmarks(path, entry.landmark_space, grid, entry.landmark_columns), grid)
    return grid, _apart(read_mask(path) if role == "mask" else read_labels(path), grid)


def _apart(labels: LabelMap, grid: Grid | None) -> str:
    if grid is None:
        return ""
    if labels.grid.shape != grid.shape:
        shapes = [" x ".join(map(str, shape)) for shape in (labels.grid.shape, grid.shape)]
        return f"has {shapes[0]} voxels, its image {shapes[1]}"
    if labels.grid.coincides_with(grid):
        return ""
    return f"lies up to {labels.grid.distance_to(grid):.3g} mm from its image's grid"


def _outside(landmarks: Landmarks, grid: Grid | None) -> str:
    if grid is None:
        return ""
    count = landmarks.count_outside(grid)
    if not count:
        return ""
    return (
        f"{count} of {counted(len(landmarks), 'landmark')} {worded(count, 'lies', 'lie')} outside the image: "
        "check the sign of x and y (RAS, LPS)"
    )


def _with_checksums(manifest: Manifest, root: Path, progress: Progress) -> Manifest:
    images = {}
    for number, (name, entry) in enumerate(manifest.images.items()):
        progress(ProgressReport("checksums", number, len(manifest.images)))
        places = {role: located(path, root) for role, path in entry.paths().items()}
        digests = {role: sha256(path) for role, path in places.items() if path.exists()}
        images[name] = entry.model_copy(update={"sha256": digests})
    progress(ProgressReport("checksums", len(manifest.images), len(manifest.images)))
    return manifest.model_copy(update={"images": images})


def _make_demo(folder: Path, seed: int, overwrite: bool, progress: Progress) -> Manifest:
    """Write the demo's pair, with landmarks of which both positions are known, into a folder."""
    for name in _DEMO_FILES:
        if name != TRUTH:
            check_file_target(folder / name, overwrite)
    pair = make_pair(mni152(), seed, progress)
    save_pair(pair, folder, overwrite)
    for side, landmarks in zip(("fixed", "moving"), demo_landmarks(pair, seed), strict=True):
        write_landmarks(folder / f"{side}_landmarks.csv", landmarks, overwrite=overwrite)
    return demo_manifest()


def _is_of_demo(path: Path) -> bool:
    """Whether a file is the manifest of a demo's pair, which is then in its folder."""
    try:
        return read_manifest(path).name == DEMO
    except InputError:
        return False


def demo_manifest() -> Manifest:
    """The demo's pair below the folder that it was made in, without checksums."""
    return Manifest(
        name=DEMO,
        description="The MNI152 brain that nilearn carries, and a second one made from it by a random diffeomorphism "
        "and an affine, both known: grey and white matter, and landmarks at matching places inside the brain.",
        licence="made from nilearn's copy of the ICBM 152 template, which carries a permissive MNI notice",
        obtain="stepwarp manifest make demo --out FOLDER/demo.json makes the files; then --data FOLDER.",
        ignore_labels=(0,),
        label_names=TISSUES,
        label_groups={name: (label,) for label, name in TISSUES.items()},
        images={
            side: ScanEntry(
                image=f"{side}.nii.gz",
                labels=f"{side}_labels.nii.gz",
                landmarks=f"{side}_landmarks.csv",
                subject="demo",
                split="test",
            )
            for side in ("fixed", "moving")
        },
        pairs=(PairEntry(id="demo", fixed="fixed", moving="moving", split="test"),),
    )


def demo_landmarks(pair: DemoPair, seed: int) -> tuple[Landmarks, Landmarks]:
    """Voxel centres inside the fixed brain, drawn at random, and where the true transform sends them."""
    inside = pair.mask.nonzero().numpy()
    chosen = inside[np.random.default_rng(seed).choice(len(inside), _LANDMARKS, replace=False)]
    grid = pair.fixed.grid
    points = grid.world(chosen)
    names = tuple(f"p{number:03d}" for number in range(1, _LANDMARKS + 1))
    return Landmarks(names, points), Landmarks(names, pair.transform(points))
