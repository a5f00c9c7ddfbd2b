"""The transform that a method found, in the files that ANTs would write, so that any judge can read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stepwarp.files import read_transform, write_affine, write_displacement
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Transform
from stepwarp.layout import AFFINE, INVERSE_WARP, WARP

#: Two matrices undo each other if their product differs from 1 by less (mm, and mm per mm).
_UNDONE = 1e-6


def write_result(folder: Path, transform: Transform, inverse: Transform | None, fixed: Grid, moving: Grid) -> None:
    """Write fixed world -> moving world, and the way back, into an existing folder.

    An affine is 0GenericAffine.mat; a displacement on the fixed grid followed by an affine is this and 1Warp.nii.gz;
    everything else is collapsed on the fixed grid into 1Warp.nii.gz alone. 1InverseWarp.nii.gz is what undoes the
    warp: a way back goes through the inverted affine, if there is one, and then through it. Where a method knows no
    inverse there is none; that of an affine alone needs no file. Errors as the writers of `files`."""
    affine, warp = _parts(transform, fixed)
    if affine is not None:
        write_affine(folder / AFFINE, affine)
    if warp is None:
        return
    write_displacement(folder / WARP, warp)
    if inverse is not None:
        write_displacement(folder / INVERSE_WARP, _inverse_warp(inverse, affine, fixed, moving))


def read_result(folder: Path) -> tuple[Transform, Transform | None]:
    """The transform and the way back that `write_result` wrote; errors as `files.read_transform`."""
    affine = read_transform(folder / AFFINE) if (folder / AFFINE).exists() else None
    if affine is not None and not (folder / WARP).exists():
        return affine, affine.inverse()
    warp = read_transform(folder / WARP)
    back = read_transform(folder / INVERSE_WARP) if (folder / INVERSE_WARP).exists() else None
    if affine is None:
        return warp, back
    return Composition.of(affine, warp), None if back is None else Composition.of(back, affine.inverse())


def is_complete(folder: Path) -> bool:
    """Whether the files of a transform are there."""
    return (folder / AFFINE).exists() or (folder / WARP).exists()


def _parts(transform: Transform, fixed: Grid) -> tuple[Affine | None, DisplacementField | None]:
    if isinstance(transform, Affine):
        return transform, None
    if isinstance(transform, Composition) and len(transform.parts) == 2:
        outer, inner = transform.parts
        if isinstance(outer, Affine) and isinstance(inner, DisplacementField) and inner.grid == fixed:
            return outer, inner
    return None, transform.on(fixed)


def _inverse_warp(inverse: Transform, affine: Affine | None, fixed: Grid, moving: Grid) -> DisplacementField:
    """What remains of the way back beside the inverted affine: fixed world to fixed world where there is one."""
    if affine is None:
        return inverse if isinstance(inverse, DisplacementField) else inverse.on(moving)
    if isinstance(inverse, Composition) and len(inverse.parts) == 2:
        back, undone = inverse.parts
        if isinstance(back, DisplacementField) and isinstance(undone, Affine) and _undoes(undone, affine):
            return back
    return (inverse @ affine).on(fixed)


def _undoes(one: Affine, other: Affine) -> bool:
    return bool(np.abs(one.matrix @ other.matrix - np.eye(len(one.matrix))).max() < _UNDONE)
