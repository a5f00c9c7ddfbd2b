"""What a transform file of ITK holds, read under guard: ITK itself is not let near it.

ITK reads a file that lost its end and keeps what it has not read at identity. It makes room for whatever grid a file
announces before it looks for the numbers, and where there are fewer numbers than a transform has parameters it reads
beyond them, until the process dies. Of HDF5 that is damaged it tells the terminal twenty lines."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepwarp.errors import InputError
from stepwarp.files import itk_linear, nifti
from stepwarp.files.foreign import refuse_foreign
from stepwarp.presence import check_present

TEXT_SUFFIXES = (".tfm", ".txt")
HDF5_SUFFIXES = (".h5", ".hdf5")

_FIRST_LINE = "#Insight Transform File V1"
_LARGEST_TEXT = 512 * 2**20
_FIELDS = ["Parameters", "FixedParameters"]
#: In digits, and as a value: parameters are matrices, millimetres and shares of a turn.
_LONGEST_NUMBER, _LARGEST = 64, 1e12
_TEXT = re.compile(r"[\t\n -~]*")
_NUMBERS = re.compile(r"[-+.\deE\s]*")
_KIND = re.compile(r"(\w+)_(?:double|float)_(\d)_(\d)")
_MAT_NUMBERS = {0: "d", 10: "f"}

_COMPOSITE, FIELD = "CompositeTransform", "DisplacementFieldTransform"
#: By so much a versor may be longer than 1: rounding.
_ROUNDED = 1e-4
_NONE = np.empty(0)
#: Fixed parameters of a field: size, origin, spacing and direction of its grid.
_GRID = 18


@dataclass(frozen=True, eq=False)
class Member:
    """One transform of a file: the name of its type, of how many axes it maps to how many, and its numbers."""

    name: str
    axes: tuple[int, int]
    parameters: np.ndarray
    fixed: np.ndarray


def read_members(path: Path) -> list[Member]:
    """The transforms in a text, MATLAB 4 or HDF5 file, in the order in which ITK lists them: it applies the last first.

    InputError unless it is whole, of one transform or a composite, and every part of it is linear or a displacement
    field with as many numbers as it needs, in 3D."""
    size = check_present(path)
    suffix = nifti.suffix_of(path)
    if suffix in TEXT_SUFFIXES:
        members = _in_text(path, size)
    elif suffix == ".mat":
        members = _in_mat(path)
    else:
        members = _in_hdf5(path, size)
    composite = bool(members) and members[0].name == _COMPOSITE
    parts = members[1:] if composite else members
    if not parts:
        raise _cut_off(path)
    if len(parts) > 1 and not composite:
        raise InputError(
            f"{path}: holds {len(parts)} transforms without saying how they follow each other. Give one file for "
            "each, or a composite."
        )
    for part in parts:
        _check(part, path)
    return parts


def _check(member: Member, path: Path) -> None:
    name, count = member.name, member.parameters.size
    if member.axes != (3, 3):
        axes = " to ".join(f"{n}D" for n in dict.fromkeys(member.axes))
        raise InputError(f"{path}: is a transform of {axes} space. Give a 3D one.")
    if name == FIELD:
        shape = member.fixed[:3]
        whole = member.fixed.size == _GRID and shape.min() >= 1 and (shape == np.floor(shape)).all()
        if not whole or 3 * math.prod(shape.tolist()) != count:
            size = " x ".join(f"{n:g}" for n in shape)
            raise InputError(f"{path}: announces a field of {size} voxels and holds {count} numbers. Write it again.")
    elif name not in itk_linear.NUMBERS:
        raise InputError(
            f"{path}: holds a {name}; affines and displacement fields are read. Convert it, for example by "
            "antsApplyTransforms -o [field.nii.gz,1]."
        )
    elif any(n not in allowed for n, allowed in zip((count, member.fixed.size), itk_linear.NUMBERS[name], strict=True)):
        raise InputError(
            f"{path}: holds {count} + {member.fixed.size} numbers, which are not those of a {name}. Write it again."
        )
    elif name in itk_linear.VERSORS and np.linalg.norm(member.parameters[:3]) > 1 + _ROUNDED:
        raise InputError(f"{path}: its rotation is none, the versor is longer than 1. Compute it again.")


def _member(kind: str, path: Path, parameters: np.ndarray = _NONE, fixed: np.ndarray = _NONE) -> Member:
    """kind: a type as ITK writes it."""
    match = _KIND.fullmatch(kind)
    if match is None:
        raise _not_a_transform(path)
    return Member(match[1], (int(match[2]), int(match[3])), parameters, fixed)


def _in_text(path: Path, size: int) -> list[Member]:
    """A first line, then `Transform`, `Parameters` and `FixedParameters` of each transform, the last line ended.

    A composite has no parameters and comes first."""
    if size > _LARGEST_TEXT:
        raise InputError(f"{path}: is larger than {_LARGEST_TEXT >> 20} MiB. Write it as .h5.")
    text = path.read_bytes().decode("latin-1").replace("\r\n", "\n")
    if not text.startswith(_FIRST_LINE) or not _TEXT.fullmatch(text):
        raise _not_a_transform(path)
    lines = text.split("\n")
    pairs = [line.partition(":") for line in lines if line.strip() and not line.startswith("#")]
    fields = [(tag.strip(), value.strip()) for tag, _, value in pairs]
    members = []
    if fields and fields[0][0] == "Transform" and fields[0][1].startswith(_COMPOSITE):
        members.append(_member(fields.pop(0)[1], path))
    tags = [tag for tag, _ in fields]
    if not text.endswith("\n") or not tags or tags != ["Transform", *_FIELDS] * (len(tags) // 3):
        raise _cut_off(path)
    values = [value for _, value in fields]
    for kind, parameters, fixed in zip(values[::3], values[1::3], values[2::3], strict=True):
        members.append(_member(kind, path, _numbers(parameters, path), _numbers(fixed, path)))
    return members


def _numbers(text: str, path: Path) -> np.ndarray:
    words = text.split()
    try:
        if _NUMBERS.fullmatch(text) and max(map(len, words), default=0) <= _LONGEST_NUMBER:
            return _finite(np.array(words, dtype=np.float64), path)
    except ValueError:
        pass
    raise InputError(f"{path}: holds what is not a number where its parameters are. Write it again.")


def _finite(numbers: np.ndarray, path: Path) -> np.ndarray:
    """The numbers; InputError for what is none, or so large that ITK's arithmetic breaks down."""
    if not (np.abs(numbers) < _LARGEST).all():
        raise InputError(f"{path}: its numbers are not finite, or beyond all measure: it is damaged. Compute it again.")
    return numbers


def _in_mat(path: Path) -> list[Member]:
    """Records of MATLAB 4: five int32 (type, rows, columns, imaginary, length of the name), the name, the numbers.

    A transform is two of them: its parameters under the name of its type, and the fixed ones."""
    data = path.read_bytes()
    records: list[tuple[str, np.ndarray]] = []
    start = 0
    while start < len(data):
        if start + 20 > len(data):
            raise _cut_off(path)
        kind, rows, columns, imaginary, name_length = struct.unpack_from("<5i", data, start)
        if kind not in _MAT_NUMBERS or imaginary or min(rows, columns) < 0 or name_length < 1:
            raise _not_a_transform(path)
        dtype = np.dtype(_MAT_NUMBERS[kind])
        first = start + 20 + name_length
        start = first + rows * columns * dtype.itemsize
        if start > len(data):
            raise _cut_off(path)
        name = data[first - name_length : first].rstrip(b"\0").decode("latin-1")
        records.append((name, _finite(np.frombuffer(data, dtype, rows * columns, first), path)))
    if len(records) % 2:
        raise _cut_off(path)
    return [
        _member(name, path, parameters, fixed)
        for (name, parameters), (_, fixed) in zip(records[::2], records[1::2], strict=True)
    ]


def _in_hdf5(path: Path, size: int) -> list[Member]:
    """Groups of arrays: the type, the parameters and the fixed ones; of a composite, which comes first, the type."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return [_in_group(group, size, path) for group in _groups(file, path)]
    except InputError:
        raise
    except Exception as error:  # HDF5 raises whatever it runs into
        raise InputError(f"{path}: is no transform of ITK in HDF5, or damaged. Fetch or write it again.") from error


def _groups(file: Any, path: Path) -> Iterator[Any]:
    """The groups of the transforms in their order; InputError for a link that leads out of the file."""
    import h5py

    def without_links_out(group: Any) -> Any:
        if any(isinstance(group.get(name, getlink=True), h5py.ExternalLink) for name in group):
            raise _of_several_files(path)
        return group

    transforms = without_links_out(without_links_out(file)["TransformGroup"])
    for number in range(len(transforms)):
        yield without_links_out(transforms[str(number)])


def _in_group(group: Any, size: int, path: Path) -> Member:
    arrays = {name.replace("Tranform", "Transform"): group[name] for name in group}  # as ITK 4 wrote it
    for array in arrays.values():
        _check_storage(array, size, path)
    kind = np.ravel(arrays["TransformType"][()])[0]
    kind = kind.decode("latin-1") if isinstance(kind, bytes) else str(kind)
    if set(arrays) == {"TransformType"}:
        return _member(kind, path)
    parameters, fixed = arrays["TransformParameters"], arrays["TransformFixedParameters"]
    if {parameters.dtype.kind, fixed.dtype.kind} != {"f"} or parameters.ndim != 1 or fixed.size > _GRID:
        raise _not_a_transform(path)
    with nifti.memory_for(path, parameters.size * parameters.dtype.itemsize):
        numbers = parameters[()]
    if numbers.size <= _GRID:  # linear; those of a field are counted later, as displacements
        _finite(numbers, path)
    return _member(kind, path, numbers, _finite(np.ravel(fixed[()]), path))


def _check_storage(array: Any, size: int, path: Path) -> None:
    """Deflate packs a thousandfold at most: what claims to hold more than that of the file is a trap."""
    if array.external or array.is_virtual:
        raise _of_several_files(path)
    numbers = max(math.prod(array.shape), math.prod(array.chunks or (0,)))
    announced = numbers * max(array.dtype.itemsize, 8)
    if announced > min(size * nifti.LARGEST_RATIO, nifti.size_limit()):
        raise InputError(f"{path}: announces {announced / 2**30:.3g} GiB in {size} bytes. It is damaged, or a trap.")


def _of_several_files(path: Path) -> InputError:
    return InputError(f"{path}: is made of several files. Write it as one.")


def _not_a_transform(path: Path) -> InputError:
    refuse_foreign(path)
    return InputError(f"{path}: is not a transform of ITK, whatever its name says. Convert it to ITK's format.")


def _cut_off(path: Path) -> InputError:
    return InputError(f"{path}: is not a complete transform of ITK, its end seems cut off. Fetch or write it again.")
