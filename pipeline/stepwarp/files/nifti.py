"""The bytes of NIfTI files: read under guard, written whole.

ITK's readers fill a truncated file up with zeros and turn NaN into 0 without a word. Here nothing is read that the
header does not account for, nothing is allocated before the header makes sense, and every doubt is an InputError."""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from isal import igzip, igzip_lib
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from torch import Tensor

from stepwarp.errors import InputError, MemoryShortageError, OutputError, is_out_of_memory
from stepwarp.files.atomic import atomic_path
from stepwarp.files.voxels import Voxels
from stepwarp.limits import free_memory
from stepwarp.presence import check_present

SUFFIXES = (".nii", ".nii.gz")

_GZIP_MAGIC = b"\x1f\x8b"
#: Deflate cannot make data smaller than this: a file that would have to hold more is cut off.
LARGEST_RATIO = 1032
#: Measured on displacement fields and brains: levels 2 and 3 of ISA-L are no smaller, level 0 is up to a third larger.
_GZIP_LEVEL = 1
#: By the length of the header: its kind, where its magic is, and the magics that there are. That of a pair of files
#: in a single one is wrong, but all else then says what it is.
_HEADERS = {348: (Nifti1Header, 344, (b"n+1\0", b"ni1\0")), 540: (Nifti2Header, 4, (b"n+2\0\r\n\032\n",))}
#: What may follow the voxels: padding by tapes and object stores, a line's end by transfers as text.
_PADDING, _MOST_PADDING = b"\0\r\n\x1a", 1 << 20
_CHUNK = 1 << 22


class CutOffError(InputError):
    """A file that ends before its time."""


def size_limit() -> int:
    """The bytes that one volume may occupy: 8 GiB, or the environment's STEPWARP_MAX_GIB."""
    text = os.environ.get("STEPWARP_MAX_GIB", "8")
    try:
        return int(float(text) * 2**30)
    except (ValueError, OverflowError):
        raise InputError(f"STEPWARP_MAX_GIB={text}: is not a number of GiB.") from None


def suffix_of(path: Path) -> str:
    """The last suffix in lower case, together with the one before it where the last is .gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def check_gzip(path: Path) -> None:
    """InputError if a gzip file is cut off, fails its checksum, or unpacks to more than `size_limit`; others pass."""
    with path.open("rb") as file:
        if file.read(2) != _GZIP_MAGIC:
            return
    try:
        _unpack(path)
    except CutOffError:
        if _whole_gzip(path) in (None, path.stat().st_size):
            raise


def _unpack(path: Path) -> None:
    with path.open("rb") as file, _reading(path):
        stream, unpacked = igzip.IGzipFile(fileobj=file), 0
        while part := stream.read(_CHUNK):
            unpacked += len(part)
            if unpacked > size_limit():
                raise InputError(f"{path}: unpacks to more than {size_limit() / 2**30:.3g} GiB. It may be a trap.")


def check_zip(path: Path) -> None:
    """InputError if a zip archive is none or unpacks to more than `size_limit`."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # zipfile raises whatever its parser runs into
        raise InputError(f"{path}: cannot be read as a zip archive. Fetch or write it again.") from error
    if unpacked > size_limit():
        raise InputError(f"{path}: unpacks to {unpacked / 2**30:.3g} GiB. It may be a trap.")


def check_shape(shape: tuple[int, ...], itemsize: int, name: str) -> None:
    """InputError unless every axis has a voxel and all of them, as float32 or as stored, stay below `size_limit`."""
    if not shape or min(shape) < 1:
        raise InputError(f"{name}: its header gives an impossible size, {_times(shape)} voxels. Write the file again.")
    needed = _product(shape) * max(itemsize, 4)
    if needed > size_limit():
        raise InputError(
            f"{name}: its header announces {_times(shape)} voxels, {needed / 2**30:.3g} GiB, above the limit of "
            f"{size_limit() / 2**30:.3g} GiB. If that is no damage, raise STEPWARP_MAX_GIB."
        )


def check_number_type(dtype: np.dtype, name: str) -> None:
    """InputError unless a voxel is one integer or floating-point number."""
    if dtype.kind not in "iuf":
        kind = "complex numbers" if dtype.kind == "c" else "colours" if dtype.names else f"values of type {dtype}"
        raise InputError(f"{name}: its voxels are {kind}. Save one number per voxel.")


def read_nifti(path: Path) -> tuple[Nifti1Header, np.ndarray]:
    """As `read_voxels`, but the values with the header's scaling applied."""
    header, voxels = read_voxels(path)
    return header, voxels.values


def read_voxels(path: Path) -> tuple[Nifti1Header, Voxels]:
    """The header as it is, and the voxels in the header's shape and Fortran order.

    Raises InputError, with one line that names the file, for whatever keeps the file from being exactly what its header
    says: truncated, damaged, misnamed, too large, followed by further data, of an unknown type."""
    size = check_present(path)
    try:
        return _read_voxels(path, size)
    except CutOffError:
        whole = _whole_gzip(path)
        if whole is None or whole == size:
            raise
        return _read_voxels(path, whole)


def _read_voxels(path: Path, size: int) -> tuple[Nifti1Header, Voxels]:
    """From the first `size` bytes of a file."""
    with _opened(path, size) as (stream, compressed):
        header = _read_header(stream, path)
        shape = _shape(header, path)
        dtype = _dtype(header, path)
        check_shape(shape, dtype.itemsize, str(path))
        start, length = _data_offset(header, path), _product(shape) * dtype.itemsize
        if start + length > size * (LARGEST_RATIO if compressed else 1):
            raise _truncated(path)
        _read_exactly(stream, start - int(header["sizeof_hdr"]), path)
        with memory_for(path, length):
            values = np.frombuffer(_read_exactly(stream, length, path), dtype).reshape(shape, order="F")
        _read_rest(stream, path)
    return header, Voxels(values, *_scaling(header, path), str(path))


def write_nifti(
    path: Path,
    values: Tensor,
    affine: np.ndarray,
    *,
    missing: Tensor | None = None,
    intent: str = "none",
    overwrite: bool = False,
) -> None:
    """Write values (i, j, k, ...) at an affine (4, 4) to RAS+ mm: sform and qform equal, code 1, gzip if so named.

    missing: bool, the shape of floating-point values: where NaN is written. Equal values give equal bytes. Raises
    OutputError as `atomic_path` does, for a name without .nii or .nii.gz, and for other values that are not finite,
    which other readers would turn into 0."""
    if suffix_of(path) not in SUFFIXES:
        raise OutputError(f"{path}: volumes are written as {' or '.join(SUFFIXES)}. Choose such a name.")
    if values.is_floating_point() and not torch.stack(torch.aminmax(values)).isfinite().all():
        raise OutputError(f"{path}: would hold values that are not finite. Nothing was written.")
    values = values.detach().cpu() if missing is None else torch.where(missing, math.nan, values.detach()).cpu()
    header = _new_header(path, values, affine, intent)
    with _written(path, header, overwrite) as stream:
        _write(stream, values)


def write_nifti_series(
    path: Path, volumes: Iterable[Tensor], shape: tuple[int, ...], affine: np.ndarray, *, overwrite: bool = False
) -> None:
    """Write float32 volumes (i, j, k), which are made one after the other, as one file of a shape (i, j, k, number of
    them); else as `write_nifti`."""
    header = _new_header(path, torch.empty(1).expand(shape), affine, "none")
    with _written(path, header, overwrite) as stream:
        for volume in volumes:
            _write(stream, volume.detach().cpu())


@contextmanager
def _opened(path: Path, size: int) -> Iterator[tuple[BinaryIO, bool]]:
    """The unpacked bytes of the first `size` stored ones, and whether they are compressed; what goes wrong in reading
    is an InputError."""
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if compressed != (suffix_of(path) == ".nii.gz"):
            found, ending = ("compressed", ".nii.gz") if compressed else ("not compressed", ".nii")
            raise InputError(
                f"{path}: is {found} although its name says otherwise. If it is NIfTI, rename it to {ending}."
            )
        with _reading(path):
            stored = file if size == path.stat().st_size else io.BytesIO(file.read(size))
            yield cast(BinaryIO, igzip.IGzipFile(fileobj=stored) if compressed else stored), compressed


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise _truncated(path) from None
    except (igzip_lib.IsalError, OSError) as error:  # type: ignore[misc]  # isal's stub declares an instance
        raise InputError(f"{path}: is damaged ({error}). Fetch or write it again.") from error


def _read_header(stream: BinaryIO, path: Path) -> Nifti1Header:
    start = _read_exactly(stream, 4, path)
    length = next((n for n in _HEADERS if start in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None)
    if length is None:
        raise InputError(f"{path}: is not a NIfTI file, whatever its name says. Convert it, for example with dcm2niix.")
    kind, position, magics = _HEADERS[length]
    block = start + _read_exactly(stream, length - 4, path)
    if not block.startswith(magics, position):
        raise InputError(f"{path}: is not a single-file NIfTI (magic {block[position : position + 4]!r}). Convert it.")
    # Unchecked: nibabel's checks repair what they find, and every field in use is checked here.
    return kind(block, check=False)


def _shape(header: Nifti1Header, path: Path) -> tuple[int, ...]:
    axes, *sizes = (int(n) for n in header["dim"])
    if not 1 <= axes <= 7:
        raise InputError(f"{path}: its header gives {axes} axes; NIfTI has 1 to 7. Write the file again.")
    # Some programs count axes that they leave at 0: behind the third that can only mean one entry.
    return (*sizes[: min(axes, 3)], *(n or 1 for n in sizes[3:axes]))


def _dtype(header: Nifti1Header, path: Path) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise InputError(f"{path}: its data type {int(header['datatype'])} is unknown. Save it as float32.") from None
    check_number_type(dtype, str(path))
    return dtype


def _data_offset(header: Nifti1Header, path: Path) -> int:
    offset = float(header["vox_offset"])
    # A header is followed by four bytes that announce extensions.
    if not int(header["sizeof_hdr"]) + 4 <= offset <= size_limit():
        raise InputError(f"{path}: its header puts the voxels at byte {offset:g}, which cannot be. Write it again.")
    return int(offset)


def _scaling(header: Nifti1Header, path: Path) -> tuple[float, float]:
    """Slope and intercept."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):  # all of these mean unscaled to every reader
        return 1.0, 0.0
    if not math.isfinite(intercept):
        raise InputError(f"{path}: its intensity scaling is not finite. Write the file again.")
    return slope, intercept


def _read_rest(stream: BinaryIO, path: Path) -> None:
    """What follows the voxels: nothing, or padding. Reading to the end also makes gzip verify its checksum."""
    if len(rest := stream.read(_MOST_PADDING)) == _MOST_PADDING or rest.strip(_PADDING):
        raise InputError(f"{path}: holds more data than its header accounts for. Write the file again.")


def _whole_gzip(path: Path) -> int | None:
    """How many bytes the complete gzip streams take with which a file begins; None if the first is cut off.

    To igzip a file looks cut off also where bytes follow that are no gzip. They do no harm."""
    with path.open("rb") as file:
        end = None
        while True:
            stream, part = zlib.decompressobj(wbits=31), b""
            while not stream.eof:
                part = stream.unconsumed_tail or file.read(_CHUNK)
                if not part:
                    return end
                try:
                    stream.decompress(part, _CHUNK)
                except zlib.error:
                    return end
            end = file.tell() - len(stream.unused_data)
            file.seek(end)


@contextmanager
def memory_for(name: object, needed: int) -> Iterator[None]:
    """What a volume's memory, in bytes, is taken in: where there is not so much, a message says how much there is."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryShortageError(
            f"{name}: its voxels take {needed / 2**30:.3g} GiB of memory at a time, and {free_memory() / 2**30:.2g} "
            "GiB are free. Free some, resample it to coarser voxels, or use a machine with more."
        ) from error


def _read_exactly(stream: BinaryIO, length: int, path: Path) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise _truncated(path)
    return data


def _new_header(path: Path, values: Tensor, affine: np.ndarray, intent: str) -> Nifti1Header:
    header = Nifti1Header()
    try:
        header.set_data_shape(values.shape)
        header.set_data_dtype(values.numpy().dtype)
    except (HeaderDataError, TypeError) as error:
        raise OutputError(f"{path}: does not fit into NIfTI ({error}).") from error
    header.set_zooms([*np.linalg.norm(affine[:3, :3], axis=0), *[1.0] * (values.ndim - 3)])
    header.set_xyzt_units("mm")
    header.set_intent(intent)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.single_vox_offset
    return header


@contextmanager
def _written(path: Path, header: Nifti1Header, overwrite: bool) -> Iterator[BinaryIO]:
    """A file with this header, to which voxels are to be added."""
    with atomic_path(path, overwrite) as temporary, temporary.open("wb") as file:
        packed = (
            nullcontext(file) if suffix_of(path) == ".nii" else igzip.IGzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)
        )
        with packed as stream:
            stream.write(header.binaryblock)
            stream.write(bytes(4))  # no extensions follow
            yield cast(BinaryIO, stream)


def _write(stream: BinaryIO, values: Tensor) -> None:
    first_axis_fastest = values.permute(*reversed(range(values.ndim))).contiguous().numpy()
    stream.write(first_axis_fastest.data.cast("B"))


def _truncated(path: Path) -> CutOffError:
    return CutOffError(f"{path}: is cut off, it holds less than its header announces. Fetch or write it again.")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _product(shape: tuple[int, ...]) -> int:
    return int(np.prod(np.array(shape, dtype=object)))
