"""Files, folders and manifests: each file examined, and then how they go together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stepwarp.data.manifest import Manifest, Role, data_root, located, read_manifest, shipped
from stepwarp.doctor.findings import DoctorReport, Examined, Finding, Kind, refusal
from stepwarp.doctor.image import VOLUMES, examine_file
from stepwarp.errors import InputError
from stepwarp.files import read_landmarks, sha256
from stepwarp.files.nifti import suffix_of
from stepwarp.files.parts import parts_of
from stepwarp.files.tables import Space
from stepwarp.geometry import Grid
from stepwarp.presence import dicom_in, why_absent
from stepwarp.printable import counted, worded
from stepwarp.progress import Progress, ProgressReport, silent

_KINDS: dict[Role, Kind] = {"image": "image", "labels": "labels", "mask": "mask", "landmarks": "landmarks"}
_LISTED = 4


@dataclass(frozen=True)
class _Task:
    """A file to examine. image: of which it is the label map, mask or list of landmarks, if a manifest says so."""

    path: Path
    kind: Kind | None = None
    image: Path | None = None
    digest: str | None = None
    space: Space | None = None
    columns: str | None = None


def examine(sources: Sequence[str | Path], data: Path | None = None, progress: Progress = silent) -> DoctorReport:
    """The files, those in the folders, and those of the manifests (files, or names of shipped ones) below `data`.

    In a folder volumes are looked at, and hidden files are not. Raises InputError for a folder without any, and for a
    manifest that cannot be read; whatever is wrong with a file is a finding."""
    tasks: list[_Task] = []
    findings: list[Finding] = []
    for source in sources:
        if Path(source).is_dir():
            tasks += [_Task(path) for path in _in_folder(Path(source))]
        elif _is_manifest(source):
            named, lost = _in_manifest(read_manifest(source), data_root(data, source))
            tasks += named
            findings += lost
        else:
            tasks.append(_Task(Path(source)))
    tasks = _once(tasks)
    examined: dict[Path, Examined] = {}
    for number, task in enumerate(tasks):
        progress(ProgressReport("files", number, len(tasks)))
        found = _examine(task, examined)
        before = examined[task.path].findings if task.path in examined else ()
        examined[task.path] = replace(found, findings=tuple(dict.fromkeys((*before, *found.findings))))
    progress(ProgressReport("files", len(tasks), len(tasks)))
    files = list(examined.values())
    stated = {task.path for task in tasks if task.image is not None}
    findings += [*_duplicates(files), *_mixed_subjects(files), *_mixed_orientations(files)]
    findings += _labels_elsewhere([file for file in files if file.path not in stated], files)
    return DoctorReport(tuple(files), tuple(findings))


def _once(tasks: Sequence[_Task]) -> list[_Task]:
    """Each file once, however its path is written: as a manifest describes it, if one does."""
    described = {_place(task.path) for task in tasks if task.kind is not None}
    kept: dict[tuple[Path, Path | None], _Task] = {}
    for task in tasks:
        if task.kind is not None or _place(task.path) not in described:
            kept.setdefault((_place(task.path), task.image), task)
    return list(kept.values())


def _place(path: Path) -> Path:
    """The path in one spelling; a link to another file is a file of its own."""
    return path.parent.resolve() / path.name


def _in_folder(folder: Path) -> list[Path]:
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if suffix_of(path) in VOLUMES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.is_dir()
        and (path == parts_of(path)[0] or not parts_of(path)[0].exists())
    ]
    if not found:
        if remedy := dicom_in(folder):
            raise InputError(f"{folder}: {remedy}")
        raise InputError(f"{folder}: holds no image ({', '.join(VOLUMES)}). Name another folder.")
    return found


def _is_manifest(source: str | Path) -> bool:
    name = str(source)
    if name.endswith(".json"):
        return not name.endswith(".mrk.json")
    return not Path(source).exists() and name in shipped()


def _in_manifest(manifest: Manifest, root: Path) -> tuple[list[_Task], list[Finding]]:
    """The files to examine, and findings on those that are not there."""
    tasks, lost = [], []
    for entry in manifest.images.values():
        image: Path | None = None
        for role, listed in entry.paths().items():
            try:
                path = located(listed, root)
                if not path.exists():
                    raise InputError(f"{path}: {why_absent(path)} {manifest.obtain or 'Check the data root (--data)'}")
            except InputError as error:
                lost.append(refusal(root / listed, "missing", error))
                continue
            image = path if role == "image" else image
            belongs_to = None if role == "image" else image
            digest, how = entry.sha256.get(role), (entry.landmark_space, entry.landmark_columns)
            tasks.append(_Task(path, _KINDS[role], belongs_to, digest, *how))
    return tasks, lost


def _examine(task: _Task, examined: dict[Path, Examined]) -> Examined:
    """The file, its checksum, and its place beside its image's, which was examined before."""
    image = None if task.image is None else examined.get(task.image)
    grid = None if image is None else image.grid
    found = examine_file(task.path, task.kind, task.space, grid, task.columns)
    findings = list(found.findings)
    if not any(finding.check == "readable" for finding in findings):
        if task.digest is not None and sha256(task.path) != task.digest:
            text = "It is not the file that the manifest describes (SHA-256)."
            findings.append(Finding("error", "changed", str(task.path), text, "Obtain it again."))
        if grid is not None and task.image is not None:
            findings += _beside(found, grid, task.image, task)
    return replace(found, findings=tuple(findings))


def _beside(found: Examined, grid: Grid, image: Path, task: _Task) -> Iterator[Finding]:
    """Whether a label map lies on its image's grid, and landmarks within it."""
    if found.kind == "landmarks":
        landmarks = read_landmarks(found.path, task.space, grid, task.columns)
        outside = landmarks.count_outside(grid)
        if outside:
            text = (
                f"{outside} of its {counted(len(landmarks), 'landmark')} {worded(outside, 'lies', 'lie')} "
                f"outside {image.name}."
            )
            yield Finding("error", "labels-grid", str(found.path), text, "Check the sign of x and y (RAS, LPS).")
    elif found.grid is not None and not found.grid.coincides_with(grid):
        yield _elsewhere(found, grid, image, "error")


def _elsewhere(found: Examined, grid: Grid, image: Path, severity: str) -> Finding:
    assert found.grid is not None
    away = found.grid.distance_to(grid)
    sizes = [" x ".join(map(str, g.shape)) for g in (found.grid, grid)]
    differs = f"has {sizes[0]} voxels, the image {sizes[1]}" if sizes[0] != sizes[1] else f"lies {away:.3g} mm away"
    return Finding(
        "error" if severity == "error" else "warning",
        "labels-grid",
        str(found.path),
        f"It lies on another grid than {image.name}: it {differs}.",
        "Resample it onto the image by nearest neighbour, or find the image that it was drawn on.",
    )


def _labels_elsewhere(files: Iterable[Examined], among: Sequence[Examined]) -> Iterator[Finding]:
    """Label maps that lie on the grid of no image whose name begins as theirs does."""
    images = [file for file in among if file.kind == "image" and file.grid is not None]
    for file in files:
        if file.kind != "labels" or file.grid is None:
            continue
        siblings = [image for image in images if image.path.parent == file.path.parent and _share_a_name(file, image)]
        if siblings and not any(image.grid and image.grid.coincides_with(file.grid) for image in siblings):
            assert siblings[0].grid is not None
            yield _elsewhere(file, siblings[0].grid, siblings[0].path, "warning")


def _share_a_name(first: Examined, second: Examined) -> bool:
    """Whether both names begin with the same words before a separator, as sub-01_T1w and sub-01_dseg."""
    return _first_word(first.path.name) == _first_word(second.path.name)


def _first_word(name: str) -> str:
    ends = [name.index(separator) for separator in "_." if separator in name]
    return name[: min(ends)] if ends else name


def _duplicates(files: Iterable[Examined]) -> Iterator[Finding]:
    """Files with the same voxels, of the same kind."""
    by_content: dict[tuple[str, str], list[Examined]] = defaultdict(list)
    for file in files:
        if file.content is not None:
            by_content[file.kind, file.content].append(file)
    for same in by_content.values():
        if len(same) > 1:
            yield Finding(
                "warning",
                "duplicate",
                _listed(same),
                f"{len(same)} files hold the same voxels.",
                "Keep one; as two people, or as training and test, they make results look better than they are.",
            )


def _mixed_subjects(files: Iterable[Examined]) -> Iterator[Finding]:
    shown: dict[str, list[Examined]] = defaultdict(list)
    for file in files:
        shown[(file.facts.get("subject") or {}).get("shows", "unclear")].append(file)
    brains, heads = shown["brain"], shown["head"]
    if brains and heads:
        fewer = min(brains, heads, key=len)
        yield Finding(
            "warning",
            "skull",
            _listed(fewer),
            f"{counted(len(brains), 'image likely shows', 'images likely show')} the brain alone and "
            f"{len(heads)} the whole head.",
            "Strip the skull of all or of none before registering one kind to the other, or mask the heads.",
        )


def _mixed_orientations(files: Iterable[Examined]) -> Iterator[Finding]:
    stored: dict[str, list[Examined]] = defaultdict(list)
    for file in files:
        if file.kind == "image" and "orientation" in file.facts:
            stored[file.facts["orientation"]].append(file)
    if len(stored) > 1:
        counts = ", ".join(f"{len(same)} {letters}" for letters, same in sorted(stored.items()))
        yield Finding(
            "note",
            "orientation",
            _listed(min(stored.values(), key=len)),
            f"Voxels are stored in different directions: {counts}.",
            "Nothing for stepwarp; tools that ignore headers see some of them mirrored or turned.",
        )


def _listed(files: Sequence[Examined]) -> str:
    names = [str(file.path) for file in files[:_LISTED]]
    return ", ".join(names) + (f" and {len(files) - _LISTED} more" if len(files) > _LISTED else "")
