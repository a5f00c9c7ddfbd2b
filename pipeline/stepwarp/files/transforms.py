"""Transforms in the files of ITK and ANTs. Both map points of the fixed world to points of the moving world, as here;
their world is LPS+ mm. Beyond its grid a displacement that is read is 0, as it is to them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stepwarp.errors import InputError, OutputError
from stepwarp.files import itk_linear, nifti
from stepwarp.files.atomic import atomic_path
from stepwarp.files.foreign import displacements, foreign_field, refuse_foreign, refuse_positions
from stepwarp.files.lps import flip_grid, flip_map, flip_vectors, place_itk
from stepwarp.files.placement import affine_of, grid_of, straightened
from stepwarp.files.transform_guard import FIELD, HDF5_SUFFIXES, TEXT_SUFFIXES, Member, read_members
from stepwarp.files.trust import Trust, TrustRules
from stepwarp.files.utf8 import utf8_path
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Transform
from stepwarp.presence import check_present

if TYPE_CHECKING:
    import SimpleITK

_AFFINE_SUFFIXES = (".mat", *TEXT_SUFFIXES)
_BRACKETS = re.compile(r"\[(.+),\s*([01])\]")

#: NIfTI's intent of a displacement in the sense of ITK: vector. Readers disagree on the sign of 1006, displacement.
_VECTOR, _DISPLACEMENT = 1007, 1006

#: Displacements are stored as multiples of 2 to this power (mm), and of small voxels to this power of a voxel or less:
#: 0.00003 mm and 0.0002 voxels away at most, and the file a fifth smaller.
_STEP_MM, _STEP_VOXELS = -14, -11


def write_affine(path: str | Path, affine: Affine, centre: np.ndarray | None = None, overwrite: bool = False) -> None:
    """Write a 3D affine, fixed world to moving world, as ITK's AffineTransform: .mat (ANTs), .tfm or .txt.

    centre: the fixed point (3,) in RAS mm that ITK's parameters turn about; the map is the same for every centre.
    Raises OutputError for another suffix and as `atomic_path` does."""
    path = Path(path)
    _require_suffix(path, _AFFINE_SUFFIXES, "an affine")
    centre = np.zeros(3) if centre is None else np.asarray(centre, dtype=float)
    _write_with_itk(path, _affine_to_itk(affine, centre), overwrite)


def write_displacement(path: str | Path, field: DisplacementField, overwrite: bool = False) -> None:
    """Write a 3D field, fixed world to moving world, as ITK, ANTs and Slicer read it: .nii or .nii.gz.

    Five axes (I, J, K, 1, 3), float32, intent vector, LPS mm, rounded to 2^-14 mm, or finer where voxels are
    small. Raises OutputError as `atomic_path` does, for another suffix, for values that are not finite, and for a
    grid with shear."""
    path = Path(path)
    _require_straight(path, field.grid)
    nifti.write_nifti(path, _rounded_lps(field), field.grid.affine, intent="vector", overwrite=overwrite)


def _rounded_lps(field: DisplacementField) -> Tensor:
    """LPS mm (I, J, K, 1, 3), rounded: a component at a time, and laid out as in the file, so that of a large field
    there is one copy and not five."""
    (displacement,) = field.displacement.detach().float().cpu()
    steps_per_mm = 2.0 ** -min(_STEP_MM, math.floor(math.log2(field.grid.spacing.min())) + _STEP_VOXELS)
    linear, signs = torch.tensor(field.grid.linear).float(), flip_vectors(np.ones(3))
    vectors = torch.empty(3, 1, *reversed(field.grid.shape)).permute(4, 3, 2, 1, 0)
    for row, sign, component in zip(linear, signs, vectors.unbind(-1), strict=True):
        along = torch.einsum("b,b...->...", row, displacement)
        component[..., 0] = along.mul_(steps_per_mm).round_().div_(steps_per_mm).mul_(sign)
    return vectors


def write_composite(path: str | Path, transform: Transform, overwrite: bool = False) -> None:
    """Write affines and 3D fields that follow each other as ITK's CompositeTransform: .h5.

    ITK applies the last of a composite first, as a Composition does. Raises OutputError as `atomic_path` does, for
    another suffix and for a grid with shear."""
    import SimpleITK

    path = Path(path)
    _require_suffix(path, HDF5_SUFFIXES, "a composite")
    parts = transform.parts if isinstance(transform, Composition) else (transform,)
    _write_with_itk(path, SimpleITK.CompositeTransform([_to_itk(path, part) for part in parts]), overwrite)


def unbracketed(text: str) -> tuple[str, bool]:
    """A path, and whether its inverse is meant, which antsApplyTransforms writes [path,1]."""
    bracketed = _BRACKETS.fullmatch(text.strip())
    return (bracketed[1], bracketed[2] == "1") if bracketed else (text, False)


#: Shear of a field's grid that moves no corner further than this (mm) is rounding.
_SHEAR_MM = 0.01


@np.errstate(over="ignore")  # what single precision does not hold becomes infinite, and that is refused
def read_transform(path: str | Path, *, trust: Trust | TrustRules | None = None) -> Transform:
    """The transform in a file of ITK or ANTs.

    Parameters
    ----------
    path : str or Path
        .mat, .tfm, .txt: any linear transform of ITK -> Affine. .nii, .nii.gz: five axes (I, J, K, 1, 3), intent
        vector, LPS mm -> DisplacementField; so are the maps of SPM (y_*.nii) and NiftyReg (-def, -disp), which name
        themselves. .h5, .hdf5, .tfm: a composite of these -> Composition, or its only part.
    trust : {"sform", "qform", "base"} or TrustRules, optional
        For fields, as for images: see `read_image`.

    Returns
    -------
    Transform
        Points (N, 3) of the fixed world -> points of the moving world, RAS+ mm.

    Raises
    ------
    InputError
        One line, for anything else (of other programs with the command that converts it), and for files that are cut
        off or damaged.
    """
    path = Path(path)
    suffix = nifti.suffix_of(path)
    if suffix in nifti.SUFFIXES:
        return _read_displacement(path, trust)
    if suffix not in _AFFINE_SUFFIXES + HDF5_SUFFIXES:
        check_present(path)
        refuse_foreign(path)
        known = ", ".join((*_AFFINE_SUFFIXES, *HDF5_SUFFIXES, *nifti.SUFFIXES))
        raise InputError(f"{path}: a transform is read from {known}. Convert it.")
    # ITK lists first what it applies last, as a Composition does.
    return Composition.of(*(_of_member(member, str(path)) for member in read_members(path)))


def _of_member(member: Member, name: str) -> Transform:
    if member.name == FIELD:
        return _field_of(member, name)
    try:
        return itk_linear.affine_of(member.name, member.parameters, member.fixed)
    except ValueError as error:
        raise InputError(f"{name}: its matrix is singular or not finite. Compute it again.") from error


def _read_displacement(path: Path, trust: Trust | TrustRules | None) -> DisplacementField:
    name = str(path)
    header, values = nifti.read_nifti(path)
    foreign = foreign_field(path, header)
    if foreign is not None and foreign.vectors is None:
        raise InputError(foreign.refusal)
    intent = int(header["intent_code"])
    if values.ndim != 5 or values.shape[3:] != (1, 3):
        size = " x ".join(map(str, values.shape))
        raise InputError(f"{name}: {size} is not the shape of a displacement field (I x J x K x 1 x 3). Convert it.")
    if intent != _VECTOR and foreign is None:
        why = ", on whose sign readers disagree" if intent == _DISPLACEMENT else ""
        raise InputError(
            f"{name}: its intent code is {intent}{why}; a displacement field of ITK has {_VECTOR} (vector). If its "
            "vectors are LPS mm, set the code."
        )
    shape = values.shape[:3]
    grid = grid_of(shape, affine_of(header, shape, name, trust), name)
    if foreign is not None and foreign.vectors is not None:
        return _field(displacements(values[:, :, :, 0], foreign.vectors, grid), grid, name)
    refuse_positions(values[:, :, :, 0], grid, path)
    return _field(flip_vectors(values[:, :, :, 0].astype(np.float32)), grid, name)


def _field(vectors: np.ndarray, grid: Grid, name: str) -> DisplacementField:
    """From displacements (I, J, K, 3), RAS mm."""
    broken = int((~np.isfinite(vectors)).any(-1).sum())
    if broken:
        raise InputError(f"{name}: {broken} displacements are NaN or infinite. Compute it again.")
    return DisplacementField.from_millimetres(vectors, grid, outside="zero")


def _field_of(member: Member, name: str) -> DisplacementField:
    """From vectors along the first axis of the grid, then the second; and its size, origin, spacing and direction."""
    size, origin, spacing, direction = np.split(member.fixed, [3, 6, 9])
    affine = np.eye(4)
    affine[:3, :3] = direction.reshape(3, 3) * spacing
    affine[:3, 3] = origin
    shape = tuple(size.astype(int).tolist())
    grid = grid_of(shape, flip_grid(affine), name)
    lps = member.parameters.reshape(*reversed(shape), 3).transpose(2, 1, 0, 3)
    return _field(flip_vectors(lps.astype(np.float32)), grid, name)


def _to_itk(path: Path, part: Transform) -> SimpleITK.Transform:
    if isinstance(part, Affine):
        return _affine_to_itk(part, np.zeros(3))
    if isinstance(part, DisplacementField):
        _require_straight(path, part.grid)
        return _field_to_itk(part)
    raise OutputError(f"{path}: a {type(part).__name__} cannot be written. Sample it on a grid first.")


def _affine_to_itk(affine: Affine, centre: np.ndarray) -> SimpleITK.AffineTransform:
    import SimpleITK

    matrix, centre = flip_map(affine.matrix), flip_vectors(centre)
    transform = SimpleITK.AffineTransform(3)
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation((matrix[:3, 3] + matrix[:3, :3] @ centre - centre).tolist())
    return transform


def _field_to_itk(field: DisplacementField) -> SimpleITK.DisplacementFieldTransform:
    import SimpleITK

    vectors = flip_vectors(field.millimetres().double().numpy())
    image = SimpleITK.GetImageFromArray(vectors.transpose(2, 1, 0, 3), isVector=True)
    return SimpleITK.DisplacementFieldTransform(place_itk(image, field.grid.affine))


def _write_with_itk(path: Path, transform: SimpleITK.Transform, overwrite: bool) -> None:
    import SimpleITK

    with atomic_path(path, overwrite) as temporary:
        try:
            with utf8_path(temporary) as plain:
                SimpleITK.WriteTransform(transform, plain)
        except RuntimeError as error:
            raise OutputError(f"{path}: ITK cannot write it ({_last_line(error)}). Is the disk full?") from error
        try:
            read_members(temporary)  # ITK says nothing of a full disk
        except InputError as error:
            raise OutputError(f"{path}: ITK cannot write it whole. Is the disk full?") from error


def _require_suffix(path: Path, suffixes: tuple[str, ...], what: str) -> None:
    if nifti.suffix_of(path) not in suffixes:
        raise OutputError(f"{path}: {what} is written as {' or '.join(suffixes)}. Choose such a name.")


def _require_straight(path: Path, grid: Grid) -> None:
    shear = grid.distance_to(straightened(grid))
    if shear > _SHEAR_MM:
        raise OutputError(f"{path}: the field's grid has {shear:.3g} mm of shear, which ITK does not know.")


def _last_line(error: Exception) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
