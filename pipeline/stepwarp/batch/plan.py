"""What is left to do of a batch, and why."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from stepwarp.batch.places import BatchPlaces
from stepwarp.batch.settings import damage, difference, for_workers, identity, key_of, parts_in, parts_of
from stepwarp.data.manifest import Manifest, Role, located, located_start
from stepwarp.errors import InputError, OutputError
from stepwarp.files import sha256
from stepwarp.files.json import read_record
from stepwarp.geometry import Grid
from stepwarp.kernels import backend
from stepwarp.layout import RECORD
from stepwarp.options import RegisterOptions
from stepwarp.printable import counted
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.workflow.memory import Extent, PairMemory
from stepwarp.workflow.network import Network, bytes_for

#: Of the fixed image's voxels, the most that the files of a result take, bytes.
_BYTES_PER_VOXEL = 28
#: What an image is like of which only the reader will know.
_TYPICAL = Extent.of_grid(Grid.isotropic((190, 190, 190)))

#: run: register. done: nothing. failed: it cannot be run, `why` says what is wrong with its files.
Todo = Literal["run", "done", "failed"]


@dataclass(frozen=True)
class Job:
    """One case as a worker is told of it. parts: what its result is made of; see `settings.parts_of`.

    images, masks: role -> absolute path, roles fixed and moving. disk_mib: room that the result may need. gpu_mib: what
    it may take of a GPU that it shares, None for all that is free there."""

    case: str
    folder: Path
    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    parts: Mapping[str, Any]
    options: RegisterOptions
    threads: int | None = None
    disk_mib: int = 0
    gpu_mib: int | None = None

    @property
    def key(self) -> str:
        return key_of(self.parts)


@dataclass(frozen=True)
class BatchCase:
    """One pair, or one image and the template. why: a few words on `todo`; empty where there is nothing to say.

    memory_mib: what registering it takes at its peak, at most, on the processor, which has to do it where a GPU fails.
    gpu_mib: what it takes of a GPU, 0 without one. replaces: a result is there, of other inputs or settings."""

    id: str
    todo: Todo
    why: str = ""
    job: Job | None = None
    memory_mib: int = 0
    replaces: bool = False
    gpu_mib: int = 0


@dataclass(frozen=True)
class CaseSource:
    """The pairs of a manifest, or each of its images and a template.

    split, only: which of them, all by default. to: the template, a file or the id of an image. masks: whether the
    manifest's masks keep their voxels out of the registration."""

    manifest: Manifest
    root: Path
    split: str | None = None
    only: tuple[str, ...] | None = None
    to: str | None = None
    masks: bool = False

    def entries(self) -> list[tuple[str, str | None, str]]:
        """(case, fixed scan, moving scan) by id; the fixed one is None for a template that is a file.

        Raises InputError where there is none, and for cases in `only` that there are not."""
        found = list(self._pairs() if self.to is None else self._images())
        if not found:
            what = "pair" if self.to is None else "image"
            splits = sorted({scan.split for scan in self.manifest.images.values() if scan.split})
            known = f"its splits are {', '.join(splits)}" if splits else "it has no splits"
            where = "" if self.split is None else f" in the split '{self.split}'"
            raise InputError(f"manifest '{self.manifest.name}' has no {what}{where}; {known}.")
        if self.only is None:
            return found
        known_ids = [case for case, _, _ in found]
        for case in self.only:
            if case not in known_ids:
                near = difflib.get_close_matches(case, known_ids, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known_ids[:20])}"
                raise InputError(f"case '{case}' does not exist in '{self.manifest.name}'; {hint}")
        return [entry for entry in found if entry[0] in self.only]

    def template(self) -> Path | None:
        """The file of a template that is no image of the manifest."""
        return Path(self.to).absolute() if self.to is not None and self.to not in self.manifest.images else None

    def unused_masks(self) -> int:
        """How many masks the manifest names that are left out."""
        return 0 if self.masks else sum(scan.mask is not None for scan in self.manifest.images.values())

    def _pairs(self) -> Iterator[tuple[str, str | None, str]]:
        for pair in self.manifest.all_pairs():
            if self.split is None or pair.split == self.split:
                yield pair.id, pair.fixed, pair.moving

    def _images(self) -> Iterator[tuple[str, str | None, str]]:
        fixed = self.to if self.to in self.manifest.images else None
        for name, scan in self.manifest.images.items():
            if name != fixed and (self.split is None or scan.split == self.split):
                yield name, fixed, name


class Inputs:
    """The files of a manifest, each looked at once: located, compared with its checksum, its voxels counted."""

    def __init__(self, source: CaseSource) -> None:
        self.source = source
        self._known: dict[tuple[str | None, str], tuple[Path, str] | InputError] = {}
        self._extents: dict[Path, Extent] = {}
        self._starts = {pair.id: pair.initial for pair in source.manifest.pairs}
        self._digests: dict[tuple[str, ...], str] = {}

    def find(self, scan: str | None, role: Role = "image") -> tuple[Path, str]:
        """Path and SHA-256 of a scan's file, or of the template's for None; InputError if it cannot be used."""
        if (scan, role) not in self._known:
            try:
                self._known[scan, role] = self._look(scan, role)
            except InputError as error:
                self._known[scan, role] = error
        found = self._known[scan, role]
        if isinstance(found, InputError):
            raise found
        return found

    def mask(self, scan: str | None) -> tuple[Path, str] | None:
        """The same of a scan's mask, if it has one and masks are wanted."""
        if scan is None or not self.source.masks or self.source.manifest.images[scan].mask is None:
            return None
        return self.find(scan, "mask")

    def start(self, case: str, moving: str) -> tuple[str, ...]:
        """Where a case begins, as the manifest says: its pair, or with a template its image."""
        manifest = self.source.manifest
        start = self._starts.get(case, ()) if self.source.to is None else manifest.images[moving].initial
        return located_start(start, self.source.root)

    def digest(self, start: tuple[str, ...]) -> str:
        """Of the files of a start; InputError if one cannot be used."""
        if start not in self._digests:
            from stepwarp.workflow.initial import digest

            self._digests[start] = digest(start)
        return self._digests[start]

    def extent(self, path: Path) -> Extent:
        """By the header; a typical one where only the reader will know."""
        if path not in self._extents:
            self._extents[path] = Extent.of_file(path) or _TYPICAL  # whatever is wrong is said when it is read
        return self._extents[path]

    def _look(self, scan: str | None, role: Role) -> tuple[Path, str]:
        if scan is None:
            template = self.source.template()
            assert template is not None
            return template, sha256(template)
        entry = self.source.manifest.images[scan]
        path = located(entry.paths()[role], self.source.root)
        digest = sha256(path)
        if entry.sha256.get(role) not in (None, digest):
            raise InputError(f"{path}: is not the file that the manifest describes (SHA-256). Obtain it again.")
        return path, digest


def plan(
    source: CaseSource,
    options: RegisterOptions,
    places: BatchPlaces,
    progress: Progress = silent,
    network: Network | None = None,
) -> list[BatchCase]:
    """Every case in the manifest's order. network: the weights of the options, read.

    A case whose files cannot be used is one that failed, the others go on. Raises InputError for a template that cannot
    be used, and as `Source.entries` does."""
    entries = source.entries()
    inputs = Inputs(source)
    if source.template() is not None:
        inputs.find(None)
    parts, options = identity(options), for_workers(options)
    cases = []
    for number, (case, fixed, moving) in enumerate(entries):
        progress(ProgressReport("check inputs and results", number, len(entries)))
        try:
            job = _job(case, fixed, moving, inputs, options, parts, places)
        except InputError as error:
            cases.append(BatchCase(case, "failed", str(error)))
            continue
        todo, why, replaces = _todo(job, places)
        memory, on_gpu = _memory_mib(job, inputs, network)
        cases.append(BatchCase(case, todo, why, job, memory, replaces, on_gpu))
    progress(ProgressReport("check inputs and results", len(entries), len(entries)))
    return cases


def refuse_replacing(cases: Sequence[BatchCase]) -> None:
    """OutputError if results of other inputs or settings are in the way."""
    others = [case for case in cases if case.replaces]
    if others:
        first = others[0]
        assert first.job is not None
        raise OutputError(
            f"{first.job.folder}: {first.why}; so it is for {len(others)} of {counted(len(cases), 'case')}. "
            "Choose another --out, or replace them with --force."
        )


def _job(
    case: str,
    fixed: str | None,
    moving: str,
    inputs: Inputs,
    options: RegisterOptions,
    settings: Mapping[str, Any],
    places: BatchPlaces,
) -> Job:
    scans = {"fixed": fixed, "moving": moving}
    images = {role: inputs.find(scan) for role, scan in scans.items()}
    masks = {role: found for role, scan in scans.items() if (found := inputs.mask(scan))}
    digests: dict[str, str | None] = {role: digest for role, (_, digest) in images.items()}
    digests |= {f"{role}_mask": masks[role][1] if role in masks else None for role in scans}
    start = inputs.start(case, moving) or options.initial
    if start:
        digests["initial"] = inputs.digest(start)
    return Job(
        case,
        places.case(case).absolute(),
        {role: path.absolute() for role, (path, _) in images.items()},
        {role: path.absolute() for role, (path, _) in masks.items()},
        parts_of(settings, digests),
        options.model_copy(update={"initial": start}),
        disk_mib=round(_BYTES_PER_VOXEL * inputs.extent(images["fixed"][0]).voxels / 2**20),
    )


def _memory_mib(job: Job, inputs: Inputs, network: Network | None) -> tuple[int, int]:
    """What a worker will hold at most, and of a GPU, 0 without one: as planned, and where it computes no more than it
    is allowed to."""
    fixed, moving = (inputs.extent(job.images[role]) for role in ("fixed", "moving"))
    needs = 0 if network is None else bytes_for(network, fixed.shown_everywhere())
    options = job.options
    pair = PairMemory(
        fixed,
        moving,
        affine_only=options.affine_only,
        network=needs,
        structures=not options.affine_only or bool(options.strip) or options.structures,
        auto=options.similarity_of(0) == "auto",
    )
    recipe, allowed = options.recipe, options.max_memory or math.inf
    peak = max(stage.bytes for stage in pair.stages(recipe))
    device, gpu_here = options.device, torch.cuda.is_available()
    if device == "cpu" or (device == "auto" and not gpu_here):
        return int(min(peak, allowed)) // 2**20, 0
    kernels = gpu_here and backend.name_for(torch.device("cuda")) != "reference"
    on_gpu = max(stage.gpu_bytes for stage in replace(pair, gpu=True, kernels=kernels).stages(recipe))
    return peak // 2**20, int(min(on_gpu, allowed)) // 2**20


def _todo(job: Job, places: BatchPlaces) -> tuple[Todo, str, bool]:
    """What to do, why, and whether another result is in the way."""
    path = job.folder / RECORD
    if not path.exists():
        if places.failure(job.case).exists():
            return "run", "it failed before", False
        return "run", "", False
    try:
        record = read_record(path)
    except InputError as error:
        return "run", str(error), False
    made = parts_in(record)
    if made is None:
        return "run", "it was not made by a batch", True
    if key_of(made) != job.key:
        return "run", difference(made, job.parts), True
    broken = damage(job.folder, record)
    return ("run", broken, False) if broken else ("done", "", False)
