"""Displacements as Learn2Reg wants them: in voxels, of which nothing in the file says so.

The voxel at index x of the fixed image looks up the moving image at index x + u(x), whatever the two headers say. A
file is a NIfTI of four axes, which to ITK and ANTs is no displacement, or an .npz; the three components are the last
axis, (I, J, K, 3), or the first. One of half the voxels of each axis, as in 2021, is enlarged as the challenge's own
script did it, by quadratic splines between the centres of the corner voxels."""

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
    return len(shape) == 4 and 3 in (shape[0], shape[3])


def read_learn2reg(path: str | Path, fixed: Grid, moving: Grid) -> Transform:
    """The displacement in a .nii, .nii.gz or .npz as a map of the fixed world to the moving world.

    Raises InputError as `read_displacement`."""
    return learn2reg_transform(read_displacement(path, fixed), fixed, moving)


@np.errstate(over="ignore")  # what single precision does not hold becomes infinite, and that is refused
def read_displacement(path: str | Path, fixed: Grid) -> np.ndarray:
    """The displacement in a .nii, .nii.gz or .npz, (3, *fixed.shape) voxels, float32 or, where that does not hold the
    file's numbers, float64.

    Raises InputError for a damaged file, one of another shape than the fixed grid asks for, values that are not finite,
    an archive with several arrays that fit, and a file that another program wrote (which)."""
    path = Path(path)
    values = _displacement(path, _in_npz(path) if nifti.suffix_of(path) == ".npz" else {"": _in_nifti(path)}, fixed)
    broken = int((~np.isfinite(values.astype(np.float32))).any(0).sum())
    if broken:
        raise InputError(f"{path}: {broken} displacements are NaN or infinite. Compute it again.")
    return values.astype(np.float32 if np.can_cast(values.dtype, np.float32) else np.float64, copy=False)


def learn2reg_transform(displacement: np.ndarray, fixed: Grid, moving: Grid) -> Transform:
    """A displacement (3, *fixed.shape), voxels, as a map of the fixed world to the moving world."""
    values = torch.from_numpy(np.ascontiguousarray(displacement, dtype=np.float32))
    return Composition.of(_same_index(fixed, moving), DisplacementField(values[None], fixed, outside="zero"))


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


def _in_nifti(path: Path) -> np.ndarray:
    header, values = nifti.read_nifti(path)
    foreign = foreign_field(path, header)
    if foreign is not None:
        raise InputError(foreign.refusal or f"{path}: is from {foreign.program}, with five axes. Export it again.")
    return values


def _in_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive, by their names."""
    check_present(path)
    try:
        nifti.check_zip(path)
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except InputError:
        raise
    except Exception as error:  # numpy raises whatever its parsers run into
        raise InputError(f"{path}: cannot be read ({error}). Fetch or write it again.") from error
    if not all(isinstance(values, np.ndarray) for values in arrays.values()):
        raise InputError(f"{path}: cannot be read (what it holds is no array). Fetch or write it again.")
    return arrays


def _displacement(path: Path, arrays: dict[str, np.ndarray], fixed: Grid) -> np.ndarray:
    """The one among them that has the shape of a displacement of the fixed grid, (3, *fixed.shape)."""
    halves = tuple(n // 2 for n in fixed.shape)
    odd = any(n % 2 for n in fixed.shape)
    shapes = [fixed.shape] if odd else [fixed.shape, halves]
    fitting = {name: values for name, values in arrays.items() for n in shapes if values.shape in ((*n, 3), (3, *n))}
    if len(fitting) > 1:
        raise InputError(f"{path}: {' and '.join(fitting)} may each be the displacement. Keep one of them.")
    if not fitting:
        found = ", ".join(" x ".join(map(str, values.shape)) or "1" for values in arrays.values()) or "no"
        needed = " x ".join(map(str, (*fixed.shape, 3)))
        half = "; an odd number has no half" if odd else ", or half the voxels of each axis"
        raise InputError(f"{path}: holds {found} numbers where the fixed image, {fixed}, needs {needed}{half}.")
    (values,) = fitting.values()
    nifti.check_number_type(values.dtype, str(path))
    if values.shape[1:] not in shapes:
        values = np.moveaxis(values, -1, 0)
    if values.shape[1:] == fixed.shape:
        return values
    return np.stack([zoom(component.astype(np.float32), 2, order=2) for component in values])
