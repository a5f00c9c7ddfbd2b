"""Displacements as Learn2Reg wants them: in voxels, of which nothing in the file says so.

The voxel at index x of the fixed image looks up the moving image at index x + u(x), whatever the two headers say. A
file is a NIfTI of four axes (I, J, K, 3), which to ITK and ANTs is no displacement; or, as in 2021, an .npz of half
precision and half resolution (3, I/2, J/2, K/2), which the challenge's own script enlarges by quadratic splines between
the centres of the corner voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import zoom

from stepwarp.errors import InputError, OutputError
from stepwarp.files import nifti, quiet_nibabel
from stepwarp.files.foreign import foreign_field
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Transform
from stepwarp.presence import check_present

_ARRAY = "arr_0"


def is_learn2reg(path: str | Path) -> bool:
    """Whether a file has the form of these displacements, by its name and its header."""
    path = Path(path)
    suffix = nifti.suffix_of(path)
    if suffix not in nifti.SUFFIXES:
        return suffix == ".npz"
    try:
        shape = quiet_nibabel.load(path).shape
    except Exception:  # whatever nibabel runs into, the reader of the file explains it better
        return False
    return len(shape) == 4 and shape[3] == 3


def read_learn2reg(path: str | Path, fixed: Grid, moving: Grid) -> Transform:
    """The displacement in a .nii, .nii.gz or .npz as a map of the fixed world to the moving world.

    Raises InputError for a damaged file, one of another shape than the fixed grid asks for, and values that are not
    finite, and one that another program wrote (which)."""
    path = Path(path)
    values = _from_npz(path, fixed) if nifti.suffix_of(path) == ".npz" else _from_nifti(path, fixed)
    broken = int((~np.isfinite(values)).any(0).sum())
    if broken:
        raise InputError(f"{path}: {broken} displacements are NaN or infinite. Compute it again.")
    field = DisplacementField(
        torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None], fixed, outside="zero"
    )
    return Composition.of(_same_index(fixed, moving), field)


def write_learn2reg(path: str | Path, transform: Transform, fixed: Grid, moving: Grid, overwrite: bool = False) -> None:
    """Write a map of the fixed world to the moving world as (I, J, K, 3) float32 voxels: .nii or .nii.gz.

    Raises OutputError as `write_nifti` does."""
    path = Path(path)
    if nifti.suffix_of(path) not in nifti.SUFFIXES:
        raise OutputError(f"{path}: a displacement for Learn2Reg is written as .nii or .nii.gz. Choose such a name.")
    field = Composition.of(_same_index(fixed, moving).inverse(), transform).on(fixed)
    nifti.write_nifti(path, field.displacement[0].movedim(0, -1), fixed.affine, overwrite=overwrite)


def _same_index(fixed: Grid, moving: Grid) -> Affine:
    """From the world point of an index of the fixed grid to that of the same index of the moving grid."""
    return Affine(moving.affine @ fixed.inverse_affine)


def _from_nifti(path: Path, fixed: Grid) -> np.ndarray:
    header, values = nifti.read_nifti(path)
    foreign = foreign_field(path, header)
    if foreign is not None:
        raise InputError(foreign.refusal or f"{path}: is from {foreign.program}, with five axes. Export it again.")
    _require_shape(path, values.shape, (*fixed.shape, 3), fixed)
    return np.moveaxis(values, -1, 0)


def _from_npz(path: Path, fixed: Grid) -> np.ndarray:
    check_present(path)
    halves = tuple(n // 2 for n in fixed.shape)
    try:
        nifti.check_zip(path)
        with np.load(path, allow_pickle=False) as content:
            if content.files != [_ARRAY]:
                raise InputError(f"{path}: holds {', '.join(content.files) or 'nothing'} instead of one array.")
            values = content[_ARRAY]
    except InputError:
        raise
    except Exception as error:  # numpy raises whatever its parsers run into
        raise InputError(f"{path}: cannot be read ({error}). Fetch or write it again.") from error
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path}: cannot be read (what it holds is no array). Fetch or write it again.")
    nifti.check_number_type(values.dtype, str(path))
    _require_shape(path, values.shape, (3, *halves), fixed)
    if any(n % 2 for n in fixed.shape):
        raise InputError(f"{path}: has half the voxels of each axis, and {fixed} has an odd number of them.")
    return np.stack([zoom(component.astype(np.float32), 2, order=2) for component in values])


def _require_shape(path: Path, found: tuple[int, ...], expected: tuple[int, ...], fixed: Grid) -> None:
    if found != expected:
        sizes = (" x ".join(map(str, shape)) for shape in (found, expected))
        raise InputError(f"{path}: holds {next(sizes)} numbers where the fixed image, {fixed}, needs {next(sizes)}.")
