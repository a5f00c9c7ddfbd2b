"""One file, examined: everything that can be said of it alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepwarp.errors import InputError
from stepwarp.files import read_image, read_labels, read_landmarks, read_transform
from stepwarp.files.nifti import SUFFIXES, read_nifti, suffix_of
from stepwarp.files.placement import affine_of, grid_of, statements, straightened
from stepwarp.files.tables import Space
from stepwarp.files.volumes import OTHER_SUFFIXES
from stepwarp.geometry import Grid
from stepwarp.workflow.doctor import content, header
from stepwarp.workflow.doctor.findings import Examined, Finding, Kind, refusal

VOLUMES = (*SUFFIXES, *OTHER_SUFFIXES)
_TRANSFORMS = (".mat", ".tfm", ".h5", ".hdf5")
_LANDMARKS = (".csv", ".fcsv", ".json")
_WEIGHTS = (".safetensors", ".trch", ".pt")
_VECTOR = 1007
#: What a registration of this many voxels may take of memory (bytes each), measured.
_BYTES_PER_VOXEL = 150


def examine_file(
    path: Path, kind: Kind | None = None, space: Space | None = None, grid: Grid | None = None
) -> Examined:
    """A volume, transform, list of landmarks or file of weights.

    kind: what it should be; by default what its name says, and for a volume its voxels. space, grid: of landmarks, as
    `read_landmarks` takes them."""
    kind = kind or _kind_by_name(path)
    if kind == "transform":
        return _read_only(path, kind, read_transform)
    if kind == "landmarks":
        return _read_only(path, kind, lambda p: read_landmarks(p, space, grid))
    if kind == "weights":
        from stepwarp.registrar.weights import load_weights

        return _read_only(path, kind, load_weights)
    if suffix_of(path) in SUFFIXES:
        return _examine_nifti(path, kind)
    return _examine_other(path, kind)


def free_memory() -> int | None:
    """Bytes that a new process may take without another being pushed out; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return None if line is None else int(line.split()[1]) * 1024


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
        head, values = read_nifti(path)
    except InputError as error:
        return Examined(path, kind or "file", findings=(refusal(path, "readable", error),))
    if values.ndim == 5 and int(head["intent_code"]) == _VECTOR:
        return _read_only(path, "transform", read_transform)
    name, shape = str(path), values.shape[:3]
    further = [n for n in values.shape[3:] if n != 1]
    facts: dict[str, Any] = {"stored_as": str(head.get_data_dtype())}
    if len(shape) < 3 or min(shape) == 1 or further:
        finding = _refused_by_reader(path, "dimensions")
        return Examined(path, kind or "image", facts | {"shape": list(values.shape)}, (finding,))
    values = values.reshape(shape, order="F")
    facts |= header.header_facts(head, shape)
    findings = [*header.header_findings(head, shape, name)]
    grid = None
    try:
        affine = affine_of(head, shape, name)
        facts["shear_mm"] = _shear(shape, affine)
        grid = grid_of(shape, affine, name)
    except InputError as error:
        check = "shear" if facts.get("shear_mm") else _placement_check(head)
        findings.append(refusal(path, check, error))
    return _examine_values(path, kind, values, grid, facts, findings)


def _examine_other(path: Path, kind: Kind | None) -> Examined:
    """A volume in another format, by way of the readers: the first problem is all that they tell."""
    try:
        volume = read_labels(path) if kind == "labels" else read_image(path)
    except InputError as error:
        return Examined(path, kind or "file", findings=(refusal(path, "readable", error),))
    return _examine_values(path, kind, volume.data.numpy(), volume.grid, {}, [])


def _examine_values(
    path: Path, kind: Kind | None, values: np.ndarray, grid: Grid | None, facts: dict[str, Any], findings: list[Finding]
) -> Examined:
    name = str(path)
    if grid is not None:
        facts = {**header.grid_facts(grid), **facts}
        findings += header.grid_findings(grid, name)
    findings += _memory_findings(values.size, name)
    digest = hashlib.blake2b(np.ascontiguousarray(values.T.astype(np.float64)).data, digest_size=16).hexdigest()
    labels = kind == "labels" or (kind is None and content.looks_like_labels(values))
    try:
        read = read_labels(path) if labels else None
        if read is not None:
            return Examined(path, "labels", facts | content.label_facts(values), tuple(findings), grid, digest)
    except InputError as error:
        if grid is not None:  # else the reason is told already
            findings.append(refusal(path, "labels", error))
        return Examined(path, "labels", facts, tuple(findings), grid, digest)
    with np.errstate(over="ignore"):
        data = torch.from_numpy(values.astype(np.float32))
    facts |= {"lowest": _number(values.min()), "highest": _number(values.max())}
    if not data.isfinite().all() or values.min() == values.max():
        findings.append(_unusable_values(data, name))
        return Examined(path, "image", facts, tuple(findings), grid, digest)
    findings += content.intensity_findings(data, name)
    if grid is not None:
        subject = content.subject_of(data, grid, name)
        facts |= content.subject_facts(subject)
        if not any(finding.check == "not-a-brain-t1" for finding in findings):
            findings += content.subject_findings(subject, float(values.min()), name)
    return Examined(path, "image", facts, tuple(findings), grid, digest)


def _unusable_values(data: torch.Tensor, name: str) -> Finding:
    broken = int((~data.isfinite()).sum())
    if broken:
        text = f"{broken} of {data.numel()} voxels are NaN or infinite."
        return Finding("error", "finite", name, text, "Replace them, for example by 0.")
    text = f"It is {float(data.flatten()[0]):g} everywhere."
    return Finding("error", "constant", name, text, "Check how it was made: there is nothing to align.")


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


def _memory_findings(voxels: int, name: str) -> Iterator[Finding]:
    needed, free = voxels * _BYTES_PER_VOXEL, free_memory()
    if free is not None and needed > free:
        yield Finding(
            "warning",
            "size",
            name,
            f"A registration of its {voxels / 1e6:.0f} million voxels takes about {needed / 2**30:.0f} GiB of memory, "
            f"and {free / 2**30:.0f} GiB are free.",
            "Resample it to coarser voxels, or use a machine with more memory.",
        )


def _number(value: Any) -> float | None:
    """JSON knows no NaN."""
    return float(value) if np.isfinite(value) else None
