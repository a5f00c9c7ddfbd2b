"""One file, examined: everything that can be said of it alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stepwarp import limits
from stepwarp.config import preset
from stepwarp.doctor import content, header
from stepwarp.doctor.findings import Examined, Finding, Kind, refusal
from stepwarp.errors import InputError
from stepwarp.files import Voxels, read_either, read_image, read_landmarks, read_transform
from stepwarp.files.foreign import foreign_field
from stepwarp.files.nifti import SUFFIXES, read_voxels, suffix_of
from stepwarp.files.placement import affine_of, grid_of, statements, straightened
from stepwarp.files.tables import Space
from stepwarp.files.volumes import OTHER_SUFFIXES
from stepwarp.geometry import Grid
from stepwarp.printable import worded
from stepwarp.workflow.kinds import kind_of
from stepwarp.workflow.memory import Extent, PairMemory

VOLUMES = (*SUFFIXES, *OTHER_SUFFIXES)
_TRANSFORMS = (".mat", ".tfm", ".h5", ".hdf5")
_LANDMARKS = (".csv", ".tsv", ".fcsv", ".json")
_WEIGHTS = (".safetensors", ".trch", ".pt")
_VECTOR = 1007


def examine_file(
    path: Path,
    kind: Kind | None = None,
    space: Space | None = None,
    grid: Grid | None = None,
    of: str | None = None,
) -> Examined:
    """A volume, transform, list of landmarks or file of weights.

    kind: what it should be; by default what its name says, and for a volume its voxels. space, grid, of: of landmarks,
    as `read_landmarks` takes them."""
    kind = kind or _kind_by_name(path)
    if kind == "transform":
        return _read_only(path, kind, read_transform)
    if kind == "landmarks":
        return _read_only(path, kind, lambda p: read_landmarks(p, space, grid, of))
    if kind == "weights":
        from stepwarp.registrar.weights import load_weights

        return _read_only(path, kind, load_weights)
    if suffix_of(path) in SUFFIXES:
        return _examine_nifti(path, kind)
    return _examine_other(path, kind)


def _kind_by_name(path: Path) -> Kind | None:
    suffix = suffix_of(path)
    kinds: tuple[tuple[tuple[str, ...], Kind], ...] = (
        (_TRANSFORMS, "transform"),
        (_LANDMARKS, "landmarks"),
        (_WEIGHTS, "weights"),
    )
    return next((kind for suffixes, kind in kinds if suffix in suffixes), None)


def _read_only(path: Path, kind: Kind, read: Callable[[Path], Any]) -> Examined:
    """A file that its reader takes or refuses, and of which there is no more to say."""
    try:
        read(path)
    except InputError as error:
        return Examined(path, kind, findings=(refusal(path, "readable", error),))
    return Examined(path, kind)


def _examine_nifti(path: Path, kind: Kind | None) -> Examined:
    try:
        head, voxels = read_voxels(path)
    except InputError as error:
        return Examined(path, kind or "file", findings=(refusal(path, "readable", error),))
    stored = voxels.stored
    if stored.shape[-1] == 3 and _is_field(path, head, stored.ndim):
        return _read_only(path, "transform", read_transform)
    name, shape = str(path), stored.shape[:3]
    further = [n for n in stored.shape[3:] if n != 1]
    facts: dict[str, Any] = {"stored_as": str(head.get_data_dtype())}
    if len(shape) < 3 or min(shape) == 1 or further:
        finding = _refused_by_reader(path, "dimensions")
        return Examined(path, kind or "image", facts | {"shape": list(stored.shape)}, (finding,))
    voxels = replace(voxels, stored=stored.reshape(shape, order="F"))
    facts |= header.header_facts(head, shape)
    findings = [*header.header_findings(head, shape, name)]
    grid = None
    try:
        affine = affine_of(head, shape, name)
        facts["shear_mm"] = _shear(shape, affine)
        grid = grid_of(shape, affine, name)
        findings += header.shear_findings(facts["shear_mm"], name)
    except InputError as error:
        check = "shear" if facts.get("shear_mm") else _placement_check(head)
        findings.append(refusal(path, check, error))
    return _examine_values(path, kind, voxels, grid, facts, findings)


def _is_field(path: Path, head: Any, axes: int) -> bool:
    """Whether a file of vectors is a transform: one of ITK, or one that names its program.

    Of four axes only FSL's are sure: other programs leave their marks on any three volumes."""
    if axes == 5 and int(head["intent_code"]) == _VECTOR:
        return True
    foreign = foreign_field(path, head) if axes in (4, 5) else None
    return foreign is not None and (axes == 5 or foreign.program == "FSL")


def _examine_other(path: Path, kind: Kind | None) -> Examined:
    """A volume in another format, by way of the readers: the first problem is all that they tell."""
    try:
        voxels, grid = read_either(path)
    except InputError as error:
        return Examined(path, kind or "file", findings=(refusal(path, "readable", error),))
    return _examine_values(path, kind, voxels, grid, {}, [])


def _examine_values(
    path: Path, kind: Kind | None, voxels: Voxels, grid: Grid | None, facts: dict[str, Any], findings: list[Finding]
) -> Examined:
    name = str(path)
    if grid is not None:
        facts = {**header.grid_facts(grid), **facts}
        findings += header.grid_findings(grid, name)
        findings += _memory_findings(grid, name)
    digest = hashlib.blake2b(np.ascontiguousarray(voxels.values.T.astype(np.float64)).data, digest_size=16).hexdigest()
    if kind == "mask":
        return Examined(path, kind, facts, (*findings, *_mask_findings(voxels)), grid, digest)
    try:
        if kind == "labels" or (kind is None and _look_like_labels(voxels)):
            labels = voxels.labels()
            findings += _notes_on_gaps(voxels, "0, no label")
            return Examined(path, "labels", facts | content.label_facts(labels), tuple(findings), grid, digest)
    except InputError as error:
        findings.append(refusal(path, "labels", error))
        return Examined(path, "labels", facts, tuple(findings), grid, digest)
    try:
        data, _ = voxels.intensities()
    except InputError as error:
        findings.append(refusal(path, "constant" if _are_finite(voxels) else "finite", error))
        return Examined(path, "image", facts, tuple(findings), grid, digest)
    facts |= {"lowest": float(data.min()), "highest": float(data.max())}
    findings += _notes_on_gaps(voxels, "background and stay NaN in what apply writes")
    findings += content.intensity_findings(data, name)
    if grid is not None:
        subject = content.subject_of(data, grid, name)
        facts |= content.subject_facts(subject)
        if not any(finding.check == "not-a-brain-t1" for finding in findings):
            findings += content.subject_findings(subject, float(data.min()), name)
    return Examined(path, "image", facts, tuple(findings), grid, digest)


def _look_like_labels(voxels: Voxels) -> bool:
    return voxels.are_whole and kind_of(voxels.labels().numpy()) == "labels"


def _are_finite(voxels: Voxels) -> bool:
    return bool(np.isfinite(voxels.values).all())


def _mask_findings(voxels: Voxels) -> Iterator[Finding]:
    try:
        if not voxels.mask().any():
            yield Finding(
                "error", "empty", voxels.name, "The mask is empty.", "Its non-zero voxels are those that count."
            )
    except InputError as error:
        yield refusal(Path(voxels.name), "finite", error)


def _notes_on_gaps(voxels: Voxels, meaning: str) -> Iterator[Finding]:
    if voxels.have_gaps:
        count = int(np.isnan(voxels.values).sum())
        text = (
            f"{count} of {voxels.values.size} voxels {worded(count, 'is', 'are')} NaN: "
            f"{worded(count, 'it counts', 'they count')} as {meaning}."
        )
        yield Finding("note", "nan", voxels.name, text, "Nothing, where they are what was not computed.")


def _refused_by_reader(path: Path, check: str) -> Finding:
    try:
        read_image(path)
    except InputError as error:
        return refusal(path, check, error)
    raise AssertionError(f"{path}: was read although its axes are not those of a volume")


def _placement_check(head: Any) -> str:
    return "qform-sform" if len(statements(head)) == 2 else "orientation"


def _shear(shape: tuple[int, ...], affine: np.ndarray) -> float | None:
    """How far (mm) the furthest corner lies from where it would be without shear; None without an affine."""
    try:
        grid = Grid(shape, affine)
    except ValueError:
        return None
    return round(grid.distance_to(straightened(grid)), 5)


def _memory_findings(grid: Grid, name: str) -> Iterator[Finding]:
    """Where a registration with another image of this size would leave something out, or not begin."""
    extent = Extent.of_grid(grid)
    needed = max(stage.bytes for stage in PairMemory(extent, extent).stages(preset("default")))
    free = limits.free_memory()
    if needed > free:
        yield Finding(
            "warning",
            "size",
            name,
            f"A registration of its {math.prod(grid.shape) / 1e6:.0f} million voxels takes up to "
            f"{limits.in_words(needed)} of memory, and {limits.in_words(free)} are free.",
            "Resample it to coarser voxels, use a machine with more memory, or do without the finest levels, which "
            "register leaves out where they do not fit.",
        )
