"""Images and label maps from files and from nibabel, each checked before anything is computed with it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import nibabel
import numpy as np
import torch
from nibabel.analyze import AnalyzeImage
from nibabel.nifti1 import Nifti1Pair
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from stepwarp.errors import InputError, OutputError
from stepwarp.files import nifti
from stepwarp.files.parts import parts_of
from stepwarp.files.placement import Trust, affine_of, grid_of
from stepwarp.geometry import Grid, Image, LabelMap, Volume
from stepwarp.presence import check_present

#: What besides NIfTI's single files is read, by nibabel.
OTHER_SUFFIXES = (".mgz", ".mgh", ".hdr", ".img", ".hdr.gz", ".img.gz")
_LABEL_TYPES = (np.uint8, np.int16, np.int32, np.int64)


def read_image(path: str | Path, *, trust: Trust | None = None) -> Image:
    """A 3D image: intensities float32 (i, j, k) in the file's own voxel order, on its grid in RAS+ mm.

    trust: which statement of the header says where the voxels lie, for a file whose statements are missing or
    contradict each other. Four axes are accepted if the fourth has one entry.

    Raises InputError, one line, for every file that cannot be used exactly as it is: see `files.nifti` for the bytes
    and `files.placement` for the affine; besides, NaN or infinite voxels, several volumes, a single slice, colours,
    and an image of one constant value."""
    values, grid, name = _read(Path(path), trust)
    return Image(_intensities(values, name), grid, name)


def read_labels(path: str | Path, *, trust: Trust | None = None) -> LabelMap:
    """A 3D label map: (i, j, k) in the smallest of uint8, int16, int32 and int64 that holds all labels, on its grid.

    Raises InputError as `read_image` does, except that one constant value is a label map, and values that are not
    whole numbers are none."""
    values, grid, name = _read(Path(path), trust)
    return LabelMap(_labels(values, name), grid, name)


def as_image(source: str | Path | SpatialImage | Image, *, trust: Trust | None = None) -> Image:
    """The image that a path, an image of nibabel, or an Image is; checked as by `read_image`."""
    if isinstance(source, Image):
        return source
    if isinstance(source, SpatialImage):
        values, grid, name = _from_nibabel(source, source.get_filename() or "the given image", trust)
        return Image(_intensities(values, name), grid, name)
    return read_image(_path(source), trust=trust)


def as_labels(source: str | Path | SpatialImage | LabelMap, *, trust: Trust | None = None) -> LabelMap:
    """The label map that a path, an image of nibabel, or a LabelMap is; checked as by `read_labels`."""
    if isinstance(source, LabelMap):
        return source
    if isinstance(source, SpatialImage):
        values, grid, name = _from_nibabel(source, source.get_filename() or "the given label map", trust)
        return LabelMap(_labels(values, name), grid, name)
    return read_labels(_path(source), trust=trust)


def write_volume(path: str | Path, volume: Volume, overwrite: bool = False, dtype: torch.dtype | None = None) -> None:
    """Write .nii or .nii.gz, atomically: sform and qform equal, code 1, mm.

    dtype: what a voxel is stored as; an image's default is float32, a label map's its own type. Intensities are
    rounded to the nearest integer for an integer type.

    Raises OutputError if the file exists and `overwrite` is false, cannot be written, or a value does not fit."""
    path = Path(path)
    default = volume.data.dtype if isinstance(volume, LabelMap) else torch.float32
    nifti.write_nifti(path, _converted(volume.data, dtype or default, path), volume.grid.affine, overwrite=overwrite)


def require_grid_of(volume: Volume, image: Volume) -> None:
    """InputError, with the distance in mm, unless a volume that belongs to an image lies on that image's grid."""
    own, other = volume.grid, image.grid
    if own == other:
        return
    away = float(np.linalg.norm(own.corners() - other.corners(), axis=1).max())
    if own.shape != other.shape:
        raise InputError(
            f"{volume.name}: {own} does not fit {image.name}: {other}; their corners lie up to {away:.3g} mm apart. "
            "Resample it onto the image."
        )
    raise InputError(f"{volume.name}: lies up to {away:.3g} mm away from {image.name}. Resample it onto the image.")


def _read(path: Path, trust: Trust | None) -> tuple[np.ndarray, Grid, str]:
    """Values (i, j, k) of the file's type, their grid, and what to call them in messages."""
    name = str(path)
    suffix = nifti.suffix_of(path)
    if suffix in nifti.SUFFIXES:
        header, values = nifti.read_nifti(path)
        shape = _three_axes(values.shape, name)
        return values.reshape(shape, order="F"), grid_of(shape, affine_of(header, shape, name, trust), name), name
    check_present(path)
    if suffix not in OTHER_SUFFIXES:
        known = ", ".join((*nifti.SUFFIXES, *OTHER_SUFFIXES))
        raise InputError(f"{name}: is none of {known}. Convert it to NIfTI.")
    for part in parts_of(path):
        check_present(part)
        nifti.check_gzip(part)
    try:
        image = cast(SpatialImage, nibabel.load(path))
    except Exception as error:  # nibabel raises whatever its parsers run into
        raise _unreadable(name, error) from error
    return _from_nibabel(image, name, trust)


def _from_nibabel(image: SpatialImage, name: str, trust: Trust | None) -> tuple[np.ndarray, Grid, str]:
    shape = _three_axes(image.shape, name)
    nifti.check_number_type(image.get_data_dtype(), name)
    nifti.check_shape(shape, image.get_data_dtype().itemsize, name)
    affine = _affine_of_image(image, shape, name, trust)
    try:
        values = np.asanyarray(image.dataobj).reshape(shape, order="F")
    except Exception as error:  # nibabel raises whatever its parsers run into
        raise _unreadable(name, error) from error
    return values, grid_of(shape, affine, name), name


def _affine_of_image(image: SpatialImage, shape: tuple[int, ...], name: str, trust: Trust | None) -> np.ndarray:
    if isinstance(image, Nifti1Pair):
        return affine_of(image.header, shape, name, trust)
    if isinstance(image, AnalyzeImage):
        raise InputError(f"{name}: an Analyze file does not say which side is left. Convert it to NIfTI.")
    return image.affine


def _three_axes(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape without trailing axes of one entry; InputError unless that leaves a volume."""
    further = [n for n in shape[3:] if n != 1]
    if len(shape) < 3 or min(shape[:3]) == 1:
        raise InputError(f"{name}: is flat ({' x '.join(map(str, shape))} voxels). Give a 3D volume.")
    if further and len(shape) == 4:
        raise InputError(f"{name}: holds {shape[3]} volumes. Save the one you mean, or their mean, as a 3D file.")
    if further:
        raise InputError(f"{name}: has {len(shape)} axes ({' x '.join(map(str, shape))} voxels). Give a 3D volume.")
    return tuple(shape[:3])


def _intensities(values: np.ndarray, name: str) -> Tensor:
    # A float64 beyond float32 becomes infinite here and is counted below.
    with np.errstate(over="ignore", invalid="ignore"):
        data = torch.from_numpy(values.astype(np.float32, order="K")).contiguous()
    low, high = torch.aminmax(data)
    if not (low.isfinite() and high.isfinite()):
        raise _not_finite(int((~data.isfinite()).sum()), data.numel(), name)
    if low == high:
        raise InputError(f"{name}: is {float(low):g} everywhere, there is nothing to align. Check how it was made.")
    return data


def _labels(values: np.ndarray, name: str) -> Tensor:
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            raise _not_finite(int((~finite).sum()), values.size, name)
        broken = int((values != np.rint(values)).sum())
        if broken:
            raise InputError(
                f"{name}: {broken} of {values.size} voxels are not whole numbers, so it is no label map. Give labels, "
                "not probabilities, and resample them by nearest neighbour."
            )
    low, high = int(values.min()), int(values.max())
    fitting = (t for t in _LABEL_TYPES if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    dtype = next(fitting, None)
    if dtype is None:
        raise InputError(f"{name}: labels from {low} to {high} do not fit into 64 bits. Renumber them.")
    return torch.from_numpy(values.astype(dtype, order="K")).contiguous()


def _not_finite(count: int, total: int, name: str) -> InputError:
    return InputError(f"{name}: {count} of {total} voxels are NaN or infinite. Replace them, for example by 0.")


def _converted(data: Tensor, dtype: torch.dtype, path: Path) -> Tensor:
    if not dtype.is_floating_point and dtype != data.dtype:
        limits = torch.iinfo(dtype)
        if not limits.min <= data.min() <= data.max() <= limits.max:
            raise OutputError(f"{path}: values from {data.min():g} to {data.max():g} do not fit into {dtype}.")
        data = data.round() if data.is_floating_point() else data
    return data.to(dtype)


def _path(source: object) -> Path:
    if isinstance(source, str | Path):
        return Path(source)
    raise InputError(f"{type(source).__name__}: is neither a path nor an image. Give a path or an image of nibabel.")


def _unreadable(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{name}: cannot be read ({reason}). Fetch or write it again.")
