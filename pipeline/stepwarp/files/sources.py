"""What a user holds in hand, as this package's volumes; and these as what the user holds.

A path, an image of nibabel, SimpleITK or TorchIO, a MetaTensor of MONAI, a pair (array, affine) of numpy or torch, or a
volume of this package. The same is checked as of files. No library is imported to recognise its images: whoever holds
one has imported it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.files import nifti
from stepwarp.files.lps import affine_of_itk, flip_grid, place_itk
from stepwarp.files.placement import grid_of
from stepwarp.files.volumes import Trusting, from_nibabel, read_either, three_axes
from stepwarp.files.voxels import Voxels
from stepwarp.geometry import Grid, Image, LabelMap, Volume

_KINDS = (
    "a path, an image of nibabel, SimpleITK or TorchIO, a MetaTensor, a pair (array, affine), or a stepwarp Image or "
    "LabelMap"
)


def as_image(source: Any, *, trust: Trusting = None, unnamed: str = "the given image") -> Image:
    """The image that a source is; checked as by `read_image`. unnamed: what to call one without a file's name.

    Arrays are (i, j, k) or (1, i, j, k), their affine 4 x 4 to RAS mm. An Image in order is returned as it is."""
    voxels, grid = as_either(source, trust=trust, unnamed=unnamed)
    data, missing = voxels.intensities()
    if not isinstance(source, Image):
        return Image(data, grid, voxels.name, missing=missing)
    if source.data.dtype == torch.float32 and source.data.isfinite().all() and grid == source.grid:
        return source
    return replace(source, data=data, grid=grid, missing=missing)


def as_labels(source: Any, *, trust: Trusting = None, unnamed: str = "the given label map") -> LabelMap:
    """The label map that a source is; checked as by `read_labels`. A LabelMap is returned as it is."""
    if isinstance(source, LabelMap):
        return source
    voxels, grid = as_either(source, trust=trust, unnamed=unnamed)
    return LabelMap(voxels.labels(), grid, voxels.name)


def as_mask(source: Any, *, trust: Trusting = None, unnamed: str = "the given mask") -> LabelMap:
    """The mask that a source is, 0 and 1; checked as by `read_mask`."""
    voxels, grid = as_either(source, trust=trust, unnamed=unnamed)
    return LabelMap(voxels.mask(), grid, voxels.name)


def as_either(source: Any, *, trust: Trusting = None, unnamed: str = "the given volume") -> tuple[Voxels, Grid]:
    """The voxels of a source of which it is not known yet what it is, and its grid; nothing is said of the values."""
    if isinstance(source, str | Path):
        return read_either(source, trust=trust)
    if isinstance(source, SpatialImage):
        return from_nibabel(source, source.get_filename() or unnamed, trust)
    if isinstance(source, Volume):
        return _checked(_array(_with_gaps(source), source.name), source.grid.affine, source.name)
    library = _library_of(source)
    if library is None:
        raise _unknown(source)
    return _checked(*library.take(source, unnamed))


def each_of(source: Any) -> tuple[Any, ...]:
    """The sources in a list or tuple of several; a source alone where it is one, as a pair (array, affine) is."""
    if not isinstance(source, list | tuple) or _is_pair(source):
        return (source,)
    return tuple(source)


def stated_kind(source: Any) -> Literal["image", "labels"] | None:
    """What the type of a source says that it is; None where only its values can tell."""
    names = _names_of(source)
    if isinstance(source, LabelMap) or "torchio.LabelMap" in names:
        return "labels"
    return "image" if isinstance(source, Image) or "torchio.ScalarImage" in names else None


def given_back(volume: Volume, source: Any) -> Any:
    """A volume as the kind of thing that `source` is, on its own grid: for a path a Volume as it is.

    What was read from the nearest voxel keeps the source's type of number, what was interpolated is floating point.
    What is missing is NaN, where the type of number has one."""
    if isinstance(source, str | Path | Volume):
        return volume
    if isinstance(source, SpatialImage):
        values = torch.from_numpy(_numbers(volume, source.get_data_dtype().newbyteorder("=")))
        return replace(volume, data=values, missing=None).to_nibabel()
    library = _library_of(source)
    if library is None:
        raise _unknown(source)
    taken = library.take(source, volume.name)[0]
    return library.give(_numbers(volume, taken.dtype), volume.grid, source)


@dataclass(frozen=True)
class _Library:
    """How one library's images are taken, as (values, affine to RAS mm, name), and given back, like which."""

    take: Callable[[Any, str], tuple[np.ndarray, np.ndarray, str]]
    give: Callable[[np.ndarray, Grid, Any], Any]


def _library_of(source: Any) -> _Library | None:
    if isinstance(source, tuple | list) and len(source) == 2:
        return _PAIR
    return next((_LIBRARIES[name] for name in _names_of(source) if name in _LIBRARIES), None)


def _is_pair(source: Any) -> bool:
    """Whether a list or tuple is an (array, affine): one that begins with a bare array."""
    return len(source) == 2 and isinstance(source[0], np.ndarray | Tensor) and _library_of(source[0]) is None


def _names_of(source: Any) -> list[str]:
    """What the type of an object is called, and those that it is derived from: `package.Class`."""
    return [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(source).__mro__]


def _unknown(source: Any) -> InputError:
    name = type(source).__name__
    if isinstance(source, np.ndarray | Tensor):
        return InputError(f"{name}: does not say where its voxels lie. Give (array, affine), 4 x 4 to RAS mm.")
    return InputError(f"{name}: is no image. Give {_KINDS}.")


def _checked(values: np.ndarray, affine: np.ndarray, name: str) -> tuple[Voxels, Grid]:
    """What was taken as it is used: three axes, one number per voxel, an affine that can be one."""
    values = values.astype(np.uint8) if values.dtype == bool else values
    nifti.check_number_type(values.dtype, name)
    leading = _leading(values.shape)
    if any(n != 1 for n in values.shape[leading + 3 :]):
        raise InputError(f"{name}: has the shape {values.shape}. Give one channel: (i, j, k) or (1, i, j, k).")
    shape = three_axes(values.shape[leading:], name)
    nifti.check_shape(shape, values.dtype.itemsize, name)
    if affine.shape != (4, 4) or not np.isclose(affine[3], (0, 0, 0, 1)).all():
        raise InputError(f"{name}: its affine is not 4 x 4 with a last row of 0 0 0 1. Give one volume and its affine.")
    return Voxels(values.reshape(shape), 1, 0, name), grid_of(shape, affine, name)


def _leading(shape: tuple[int, ...]) -> int:
    """How many axes of one entry, for batch and channel, come before the three of a volume."""
    return next((n for n, length in enumerate(shape) if length != 1 or len(shape) - n == 3), 0)


def _array(values: Any, name: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if np.ma.is_masked(values):
        raise InputError(f"{name}: some of its voxels are masked. Give values for them: array.filled(...).")
    return np.asarray(values)


def _matrix(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(_array(values, name), dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: its affine is no matrix. Give (array, affine), 4 x 4 to RAS mm.") from None


def _with_gaps(volume: Volume) -> Tensor:
    return volume.data if volume.missing is None else torch.where(volume.missing, torch.nan, volume.data)


def _numbers(volume: Volume, wanted: np.dtype) -> np.ndarray:
    """The values (i, j, k) of a volume in the wanted type, or in one that holds them."""
    values = _with_gaps(volume).detach().cpu().numpy()
    if volume.interpolation != "nearest" or volume.missing is not None:
        return values.astype(wanted if wanted.kind == "f" else np.float32)
    converted = values.astype(wanted)
    return converted if (converted == values).all() else values


def _tensor_like(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(_shaped_like(values, tuple(like.shape))).to(like.device)


def _shaped_like(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(i, j, k) with the axes of one entry that another shape has before and after its three."""
    leading = _leading(shape)
    return np.ascontiguousarray(values).reshape((1,) * leading + values.shape + (1,) * (len(shape) - leading - 3))


def _take_pair(pair: Any, unnamed: str) -> tuple[np.ndarray, np.ndarray, str]:
    values, affine = pair
    if not isinstance(values, np.ndarray | Tensor) or "monai.MetaTensor" in _names_of(values):
        raise InputError(f"{type(values).__name__}: is no array. Give a pair of a bare array and its affine.")
    return _array(values, unnamed), _matrix(affine, unnamed), unnamed


def _give_pair(values: np.ndarray, grid: Grid, like: Any) -> Any:
    array, affine = like
    if isinstance(array, Tensor):
        given: Any = _tensor_like(values, array)
    else:
        given = _shaped_like(values, array.shape)
    matrix = torch.tensor(grid.affine) if isinstance(affine, Tensor) else grid.affine.copy()
    return given, matrix


def _take_monai(image: Any, unnamed: str) -> tuple[np.ndarray, np.ndarray, str]:
    name = str(image.meta.get("filename_or_obj") or unnamed)
    affine = _matrix(image.affine, name)
    affine = flip_grid(affine) if affine.shape == (4, 4) and _is_lps(image, name) else affine
    return _array(image.as_tensor(), name), affine, name


def _give_monai(values: np.ndarray, grid: Grid, like: Any) -> Any:
    affine = torch.tensor(flip_grid(grid.affine) if _is_lps(like, "") else grid.affine)
    # The header fields that its reader left, and the transforms it went through, are those of another grid.
    kept = {key: like.meta[key] for key in ("filename_or_obj", "original_channel_dim", "space") if key in like.meta}
    place = {"affine": affine, "original_affine": affine.clone(), "spatial_shape": np.array(grid.shape)}
    return type(like)(_tensor_like(values, like), meta={**kept, **place})


def _is_lps(image: Any, name: str) -> bool:
    space = str(image.meta.get("space", "RAS"))
    if space not in ("RAS", "LPS"):
        raise InputError(f"{name}: its meta['space'] is {space}. Give it in RAS or LPS.")
    return space == "LPS"


def _take_itk(image: Any, unnamed: str) -> tuple[np.ndarray, np.ndarray, str]:
    import SimpleITK

    if image.GetDimension() != 3:
        raise InputError(f"{unnamed}: has {image.GetDimension()} axes ({image.GetSize()} voxels). Give a 3D volume.")
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{unnamed}: its voxels are {image.GetPixelIDTypeAsString()}. Give one number per voxel.")
    try:
        values = SimpleITK.GetArrayFromImage(image)
    except Exception as error:  # label maps in ITK's sense are no arrays
        what = image.GetPixelIDTypeAsString()
        raise InputError(f"{unnamed}: its voxels are {what}. Convert it, by sitk.LabelMapToLabel.") from error
    return values.transpose(2, 1, 0), affine_of_itk(image), unnamed


def _give_itk(values: np.ndarray, grid: Grid, like: Any) -> Any:
    import SimpleITK

    return place_itk(SimpleITK.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0))), grid.affine)


def _take_torchio(image: Any, unnamed: str) -> tuple[np.ndarray, np.ndarray, str]:
    name = unnamed if image.path is None else str(image.path)
    return _array(image.data, name), _matrix(image.affine, name), name


def _give_torchio(values: np.ndarray, grid: Grid, like: Any) -> Any:
    return type(like)(tensor=_tensor_like(values, like.data), affine=grid.affine.copy(), type=like.type)


_PAIR = _Library(_take_pair, _give_pair)
_LIBRARIES = {
    "monai.MetaTensor": _Library(_take_monai, _give_monai),
    "SimpleITK.Image": _Library(_take_itk, _give_itk),
    "torchio.Image": _Library(_take_torchio, _give_torchio),
}
