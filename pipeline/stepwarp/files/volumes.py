"""Images, label maps and masks from files, each checked before anything is computed with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from nibabel.analyze import AnalyzeImage
from nibabel.arrayproxy import ArrayProxy
from nibabel.nifti1 import Nifti1Pair
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from stepwarp.errors import InputError, OutputError
from stepwarp.files import nifti, quiet_nibabel
from stepwarp.files.parts import parts_of
from stepwarp.files.placement import affine_of, grid_of
from stepwarp.files.trust import Trust, TrustRules
from stepwarp.files.voxels import Voxels
from stepwarp.geometry import Grid, Image, LabelMap, Volume
from stepwarp.presence import check_present

#: What besides NIfTI's single files is read, by nibabel.
OTHER_SUFFIXES = (".mgz", ".mgh", ".hdr", ".img", ".hdr.gz", ".img.gz")

V = TypeVar("V", bound=Volume)
Trusting = Trust | TrustRules | None


def read_image(path: str | Path, *, trust: Trusting = None) -> Image:
    """A 3D image.

    Parameters
    ----------
    path : str or Path
        NIfTI, MGH or Analyze. Four axes are accepted if the fourth has one entry.
    trust : {"sform", "qform", "base"} or TrustRules, optional
        Which statement of the header says where the voxels lie, for a file whose statements are missing or contradict
        each other; it has no influence on others.

    Returns
    -------
    Image
        Intensities (i, j, k) in the file's own voxel order, on its grid in RAS+ mm; float32, or float64 where that does
        not hold them. Voxels that are NaN are `missing`.

    Raises
    ------
    InputError
        One line, for every file that cannot be used exactly as it is: see `files.nifti` for the bytes and
        `files.placement` for the affine; besides, infinite voxels, several volumes, a single slice, colours, and an
        image that is constant, or NaN everywhere.
    """
    return _image(*_read(Path(path), trust))


def read_labels(path: str | Path, *, trust: Trusting = None) -> LabelMap:
    """A 3D label map.

    Parameters
    ----------
    path : str or Path
        A file as `read_image` takes it. What its own scaling cannot tell from a whole number is one; NaN is 0.
    trust : {"sform", "qform", "base"} or TrustRules, optional
        As in `read_image`.

    Returns
    -------
    LabelMap
        (i, j, k) in the smallest of uint8, int16, int32 and int64 that holds all labels, on its grid in RAS+ mm.

    Raises
    ------
    InputError
        As `read_image` does, except that one constant value is a label map, and values that are not whole numbers are
        none.
    """
    voxels, grid = _read(Path(path), trust)
    return LabelMap(voxels.labels(), grid, voxels.name)


def read_mask(path: str | Path, *, trust: Trusting = None) -> LabelMap:
    """A 3D mask, uint8 (i, j, k) on its grid: 1 where the file holds anything but 0 (or NaN), whatever its numbers.

    Raises InputError as `read_image` does, except for a constant."""
    voxels, grid = _read(Path(path), trust)
    return LabelMap(voxels.mask(), grid, voxels.name)


def read_either(path: str | Path, *, trust: Trusting = None) -> tuple[Voxels, Grid]:
    """The voxels of a volume of which it is not known yet what it is, and its grid. Raises InputError as `read_image`
    does, but says nothing of the values."""
    return _read(Path(path), trust)


def write_volume(path: str | Path, volume: Volume, overwrite: bool = False, dtype: torch.dtype | None = None) -> None:
    """Write .nii or .nii.gz, atomically: sform and qform equal, code 1, mm.

    dtype: what a voxel is stored as; the default is float32 for what is interpolated, unless its values are float64,
    else the values' own type.
    Intensities are rounded to the nearest integer for an integer type. What is missing is NaN, in an integer type
    `filling`.

    Raises OutputError if the file exists and `overwrite` is false, cannot be written, or a value does not fit."""
    path = Path(path)
    intensities = volume.interpolation != "nearest" and volume.data.dtype != torch.float64
    default = torch.float32 if intensities else volume.data.dtype
    data = _converted(volume.data, dtype or default, path)
    missing = volume.missing if data.is_floating_point() else None
    nifti.write_nifti(path, data, volume.grid.affine, missing=missing, overwrite=overwrite)


def on_grid_of(volume: V, image: Volume) -> V:
    """A volume that belongs to an image, on that image's grid: what the two headers round differently is no difference.

    Raises InputError, with the distance in mm, if it lies elsewhere."""
    own, other = volume.grid, image.grid
    if own.coincides_with(other):
        return replace(volume, grid=other)
    away = float(np.linalg.norm(own.corners() - other.corners(), axis=1).max())
    if own.shape != other.shape:
        raise InputError(
            f"{volume.name}: {own} does not fit {image.name}: {other}; their corners lie up to {away:.3g} mm apart. "
            "Resample it onto the image."
        )
    raise InputError(f"{volume.name}: lies up to {away:.3g} mm away from {image.name}. Resample it onto the image.")


def _image(voxels: Voxels, grid: Grid) -> Image:
    data, missing = voxels.intensities()
    return Image(data, grid, voxels.name, missing=missing)


def _read(path: Path, trust: Trusting) -> tuple[Voxels, Grid]:
    """The voxels (i, j, k) and their grid."""
    name = str(path)
    suffix = nifti.suffix_of(path)
    if suffix in nifti.SUFFIXES:
        header, voxels = nifti.read_voxels(path)
        shape = three_axes(voxels.stored.shape, name)
        voxels = replace(voxels, stored=voxels.stored.reshape(shape, order="F"))
        return voxels, grid_of(shape, affine_of(header, shape, name, trust), name)
    check_present(path)
    if suffix not in OTHER_SUFFIXES:
        known = ", ".join((*nifti.SUFFIXES, *OTHER_SUFFIXES))
        raise InputError(f"{name}: is none of {known}. Convert it to NIfTI.")
    for part in parts_of(path):
        check_present(part)
        nifti.check_gzip(part)
    try:
        image = quiet_nibabel.load(path)
    except Exception as error:  # nibabel raises whatever its parsers run into
        raise _unreadable(name, error) from error
    return from_nibabel(image, name, trust)


def from_nibabel(image: SpatialImage, name: str, trust: Trusting) -> tuple[Voxels, Grid]:
    """The voxels (i, j, k) of an image of nibabel and their grid; InputError as `read_image`."""
    shape = three_axes(image.shape, name)
    nifti.check_number_type(image.get_data_dtype(), name)
    nifti.check_shape(shape, image.get_data_dtype().itemsize, name)
    affine = _affine_of_image(image, shape, name, trust)
    try:
        stored, slope, intercept = _stored(image.dataobj)
        stored = stored.reshape(shape, order="F")
    except Exception as error:  # nibabel raises whatever its parsers run into
        raise _unreadable(name, error) from error
    return Voxels(stored, slope, intercept, name), grid_of(shape, affine, name)


def _stored(data: Any) -> tuple[np.ndarray, float, float]:
    """The numbers of a nibabel image as its file holds them, with slope and intercept: nibabel scales in floats."""
    if isinstance(data, ArrayProxy):
        return np.asanyarray(data.get_unscaled()), float(data.slope), float(data.inter)
    return np.asanyarray(data), 1.0, 0.0


def _affine_of_image(image: SpatialImage, shape: tuple[int, ...], name: str, trust: Trusting) -> np.ndarray:
    if isinstance(image, Nifti1Pair):
        return affine_of(image.header, shape, name, trust)
    if isinstance(image, AnalyzeImage):
        raise InputError(f"{name}: an Analyze file does not say which side is left. Convert it to NIfTI.")
    return image.affine


def three_axes(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape without trailing axes of one entry; InputError unless that leaves a volume."""
    further = [n for n in shape[3:] if n != 1]
    if len(shape) < 3 or min(shape[:3]) == 1:
        raise InputError(f"{name}: is flat ({' x '.join(map(str, shape))} voxels). Give a 3D volume.")
    if further and len(shape) == 4:
        raise InputError(f"{name}: holds {shape[3]} volumes. Save the one you mean, or their mean, as a 3D file.")
    if further:
        raise InputError(f"{name}: has {len(shape)} axes ({' x '.join(map(str, shape))} voxels). Give a 3D volume.")
    return tuple(shape[:3])


def _converted(data: Tensor, dtype: torch.dtype, path: Path) -> Tensor:
    if not dtype.is_floating_point and dtype != data.dtype:
        limits = torch.iinfo(dtype)
        if not limits.min <= data.min() <= data.max() <= limits.max:
            raise OutputError(f"{path}: values from {data.min():g} to {data.max():g} do not fit into {dtype}.")
        data = data.round() if data.is_floating_point() else data
    return data.to(dtype)


def _unreadable(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{name}: cannot be read ({reason}). Fetch or write it again.")
