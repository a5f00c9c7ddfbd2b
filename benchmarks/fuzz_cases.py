"""Damaged files for `fuzz.py`: valid files of every format that stepwarp reads, and ways to spoil them.

A case is its number: the same seed, target and number make the same bytes."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch

from stepwarp.files import Landmarks, write_affine, write_composite, write_displacement, write_landmarks
from stepwarp.files.learn2reg import write_learn2reg
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid

GRID = Grid(
    (6, 8, 10), nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.5) * (1.5, 0.9, 2.1), (9, -20, 30))
)

#: What arithmetic on sizes, offsets and codes stumbles over.
_WHOLE = (
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    255,
    256,
    348,
    540,
    1006,
    1007,
    32767,
    65535,
    2**31 - 1,
    2**32 - 1,
    2**63 - 1,
    -1,
    -8,
    -(2**31),
)
_REAL = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 0.5, 352.0, 1e10, 3.4e38, 1e300, -1e30, float("nan"), float("inf"))
_WORDS = (
    *("nan", "inf", "-inf", "1e999", "1e-999", "", "-", "0", "-0", "9" * 40, "1" * 5000, "0x10", "1_000", "x", "=1+1"),
    *("٣", "\0", "\n", "\r", "\t", '"', ",", ";", "#", "{", "}", "[", "]", "null", "true", "\ud7ff", "\ufeff", "../.."),
    *("<b>", "'"),
)


_KINDS = (
    *(b"BSplineTransform_double_3_3", b"DisplacementFieldTransform_double_3_3", b"CompositeTransform_double_3_3"),
    *(b"AffineTransform_float_2_2", b"x" * 9000, b""),
)


@dataclass(frozen=True)
class Case:
    """A file to write, and whether it lost its end, so that it must not be read at all."""

    name: str
    content: bytes
    cut: bool = False


@dataclass(frozen=True)
class Valid:
    """A valid file."""

    name: str
    content: bytes


def seeds(target: str) -> list[Valid]:
    """The valid files of a target."""
    with tempfile.TemporaryDirectory() as folder:
        _SEEDS[target](Path(folder))
        return [Valid(path.name, path.read_bytes()) for path in sorted(Path(folder).iterdir())]


def spoiled(valid: list[Valid], rng: random.Random) -> Case:
    """One of the valid files after one to four accidents."""
    chosen = rng.choice(valid)
    name, content = chosen.name, chosen.content
    if rng.random() < 0.08:
        end = rng.randrange(len(content))
        only_blanks = name.endswith(".json") and not content[end:].strip()
        return Case(name, content[:end], cut=_knows_its_length(name) and not only_blanks)
    packed = name.endswith((".gz", ".mgz"))
    inside = packed and rng.random() < 0.85
    data = bytearray(zlib.decompress(content, 31)) if inside else bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        data = _accident(name, data, inside or not packed, valid, rng)
    return Case(name, _packed(bytes(data), rng) if inside else bytes(data))


def _knows_its_length(name: str) -> bool:
    """Whether a reader can tell that the end is missing: a table may end after any row."""
    return name.endswith((".nii", ".gz", ".mgz", ".mat", ".h5", ".npz", ".safetensors", ".trch", ".json"))


def _accident(name: str, data: bytearray, plain: bool, valid: list[Valid], rng: random.Random) -> bytearray:
    if plain and rng.random() < 0.6:
        if name.endswith((".nii", ".nii.gz")):
            return _in_header(data, rng)
        if name.endswith((".tfm", ".txt", ".csv", ".fcsv", ".json")):
            return _in_text(data, rng)
        if name.endswith(".h5") and rng.random() < 0.5:
            return _in_hdf5(data, rng)
        if name.endswith((".npz", ".trch")):
            return _in_zip(data, rng)
        if name.endswith(".safetensors"):
            return _in_safetensors(data, rng)
    return rng.choice((_flip, _number, _number, _cut_out, _doubled, _inserted, _spliced(valid)))(data, rng)


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)
    return data


def _number(data: bytearray, rng: random.Random) -> bytearray:
    order = rng.choice("<>")
    if rng.random() < 0.6:
        code = rng.choice("bhiq")
        bits = 8 * struct.calcsize(code)
        value = rng.choice(_WHOLE) if rng.random() < 0.8 else rng.getrandbits(64)
        packed = struct.pack(order + code.upper(), value % (1 << bits))
    else:
        packed = struct.pack(order + "d", rng.choice(_REAL))
        with np.errstate(over="ignore"):
            packed = packed if rng.random() < 0.5 else np.array(rng.choice(_REAL)).astype(order + "f4").tobytes()
    start = _place(data, rng)
    data[start : start + len(packed)] = packed
    return data


def _cut_out(data: bytearray, rng: random.Random) -> bytearray:
    start = _place(data, rng)
    del data[start : start + rng.choice((1, 2, 4, 16, 100, 1000))]
    return data


def _doubled(data: bytearray, rng: random.Random) -> bytearray:
    start, length = _place(data, rng), rng.choice((1, 4, 16, 100, 1000))
    data[start:start] = data[start : start + length]
    return data


def _inserted(data: bytearray, rng: random.Random) -> bytearray:
    start = _place(data, rng)
    data[start:start] = (
        rng.randbytes(rng.choice((1, 4, 16, 100))) if rng.random() < 0.5 else bytes(rng.choice((1, 8, 1 << 16)))
    )
    return data


def _spliced(valid: list[Valid]) -> Callable[[bytearray, random.Random], bytearray]:
    def spliced(data: bytearray, rng: random.Random) -> bytearray:
        other = rng.choice(valid).content
        return data[: _place(data, rng)] + other[rng.randrange(len(other)) :]

    return spliced


def _place(data: bytearray, rng: random.Random) -> int:
    """Half of the time near the start, where headers are."""
    return rng.randrange(min(len(data), 560) if rng.random() < 0.5 else len(data)) if data else 0


def _in_header(data: bytearray, rng: random.Random) -> bytearray:
    """A field of the NIfTI header set to something else."""
    second = data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    kind = nib.Nifti2Header if second else nib.Nifti1Header
    length = kind.template_dtype.itemsize
    if len(data) < length:
        return data
    try:
        header = kind(bytes(data[:length]), check=False)
        field = rng.choice(header.template_dtype.names)
        array = header[field]
        if array.dtype.kind in "SV":
            header[field] = rng.randbytes(array.dtype.itemsize)
        else:
            flat = np.atleast_1d(array).copy().ravel()
            whole = array.dtype.kind in "iu"
            value = rng.choice(_WHOLE if whole else _REAL) if rng.random() < 0.8 else rng.uniform(-300, 300)
            with np.errstate(all="ignore"):
                flat[rng.randrange(flat.size)] = np.array(int(value) if whole else value).astype(flat.dtype)
            header[field] = flat.reshape(array.shape)
        data[:length] = header.binaryblock
    except Exception:  # a header that was spoiled before may not be one that nibabel can hold
        return _number(data, rng)
    return data


def _in_text(data: bytearray, rng: random.Random) -> bytearray:
    """A number, a word or a line replaced, doubled or dropped."""
    text = data.decode("utf-8", "surrogateescape")
    parts = list(re.finditer(r"-?\d[\d.e+-]*" if rng.random() < 0.6 else r"\w+|\W", text))
    if parts and rng.random() < 0.75:
        part = rng.choice(parts)
        word = rng.choice(_WORDS) if rng.random() < 0.8 else str(rng.choice(_WHOLE))
        text = text[: part.start()] + word + text[part.end() :]
    else:
        lines = text.splitlines(keepends=True)
        place = rng.randrange(len(lines)) if lines else 0
        lines[place : place + 1] = lines[place : place + 1] * rng.choice((0, 2, 2000 if len(data) < 500 else 2))
        text = "".join(lines)
    return bytearray(text.encode("utf-8", "surrogateescape"))


def _in_hdf5(data: bytearray, rng: random.Random) -> bytearray:
    """An array of the file with other values, another size, another type, or missing."""
    file = io.BytesIO(bytes(data))
    try:
        with h5py.File(file, "r+") as content:
            names: list[str] = []
            content.visit(names.append)
            name = rng.choice(names)
            item = content[name]
            if isinstance(item, h5py.Group) or rng.random() < 0.2:
                del content[name]
            elif item.dtype.kind == "O":
                item[0] = rng.choice(_KINDS)
            elif rng.random() < 0.6:
                item[rng.randrange(item.size)] = rng.choice(_REAL + tuple(map(float, _WHOLE)))
            else:
                size = rng.choice((0, 1, 3, 12, 18, 100, 10**6, 10**9, 10**12))
                del content[name]
                packed = {"chunks": (min(size, 1 << 20),), "compression": "gzip"} if size and rng.random() < 0.5 else {}
                content.create_dataset(name, (size,), rng.choice(("f8", "f4", "i4", "S9")), **packed)
    except Exception:  # a file that was spoiled before may be one that HDF5 cannot open
        return _flip(data, rng)
    return bytearray(file.getvalue())


def _in_zip(data: bytearray, rng: random.Random) -> bytearray:
    """A member of the archive spoiled, its checksum made anew."""
    file = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(bytes(data))) as old, zipfile.ZipFile(file, "w") as new:
            chosen = rng.choice(old.namelist())
            for name in old.namelist():
                member = bytearray(old.read(name))
                if name == chosen:
                    member = rng.choice((_flip, _number, _cut_out, _doubled, _inserted))(member, rng)
                new.writestr(name, bytes(member))
    except Exception:  # an archive that was spoiled before may be none
        return _number(data, rng)
    return bytearray(file.getvalue())


def _in_safetensors(data: bytearray, rng: random.Random) -> bytearray:
    """The JSON at the head spoiled, its length made right again; half of the time what stepwarp keeps in there."""
    length = int.from_bytes(data[:8], "little")
    try:
        head = json.loads(data[8 : 8 + length])
        if rng.random() < 0.6:
            entry = bytearray(head["__metadata__"]["stepwarp"].encode())
            head["__metadata__"]["stepwarp"] = _in_text(entry, rng).decode("utf-8", "replace")
            text = json.dumps(head).encode()
        else:
            text = bytes(_in_text(bytearray(json.dumps(head).encode()), rng))
    except Exception:  # a head that was spoiled before may not be JSON
        return _number(data, rng)
    return bytearray(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _packed(data: bytes, rng: random.Random) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    packed = packer.compress(data) + packer.flush()
    return packed + packed if rng.random() < 0.02 else packed


# --- valid files


def _volumes(folder: Path) -> None:
    rng = np.random.default_rng(0)
    smooth, labels = rng.normal(100, 30, GRID.shape), rng.integers(0, 9, GRID.shape)
    for name, values, kind, codes in (
        ("float.nii", smooth.astype("f4"), nib.Nifti1Image, (1, 1)),
        ("short.nii.gz", smooth.astype("i2"), nib.Nifti1Image, (1, 1)),
        ("scaled.nii.gz", smooth.astype(">i2"), nib.Nifti1Image, (1, 0)),
        ("big.nii", smooth.astype(">f8"), nib.Nifti1Image, (0, 1)),
        ("four.nii.gz", smooth.astype("f4")[..., None], nib.Nifti1Image, (1, 2)),
        ("second.nii", smooth.astype("u2"), nib.Nifti2Image, (1, 1)),
        ("labels.nii.gz", labels.astype("u1"), nib.Nifti1Image, (1, 1)),
    ):
        header = kind.header_class(endianness=">" if values.dtype.byteorder == ">" else "<")
        header.set_data_dtype(values.dtype)
        header.set_data_shape(values.shape)
        header.set_qform(GRID.affine, codes[0])
        header.set_sform(GRID.affine, codes[1])
        header.set_xyzt_units("mm")
        if name.startswith("scaled"):
            header.set_slope_inter(0.5, -3)
        nib.save(kind(values, None, header), folder / name)
    nib.save(nib.MGHImage(smooth.astype("f4"), GRID.affine), folder / "other.mgz")


def _field() -> DisplacementField:
    return DisplacementField(torch.randn(1, 3, *GRID.shape, generator=torch.Generator().manual_seed(0)) * 0.1, GRID)


_AFFINE = Affine(nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, -0.1) * 1.1, (3, -4, 5)))


def _warps(folder: Path) -> None:
    for name in ("1Warp.nii.gz", "1Warp.nii"):
        write_displacement(folder / name, _field())


def _matrices(folder: Path) -> None:
    field = sitk.DisplacementFieldTransform(sitk.Image([3, 3, 3], sitk.sitkVectorFloat64, 3))
    for suffix in (".mat", ".txt"):
        write_affine(folder / f"affine{suffix}", _AFFINE, np.array([1.0, 2.0, 3.0]))
        sitk.WriteTransform(sitk.Euler3DTransform((1, 2, 3), 0.1, 0.2, -0.3, (4, 5, 6)), str(folder / f"euler{suffix}"))
        sitk.WriteTransform(field, str(folder / f"field{suffix}"))
    chain = sitk.CompositeTransform([sitk.TranslationTransform(3, (1, 2, 3)), sitk.VersorRigid3DTransform()])
    sitk.WriteTransform(chain, str(folder / "chain.tfm"))


def _composites(folder: Path) -> None:
    write_composite(folder / "both.h5", Composition.of(_AFFINE, _field()))
    write_composite(folder / "affine.h5", _AFFINE)
    spline = sitk.BSplineTransformInitializer(sitk.Image(9, 9, 9, sitk.sitkFloat32), [2, 2, 2])
    sitk.WriteTransform(spline, str(folder / "spline.h5"))


def _learn2reg(folder: Path) -> None:
    for name in ("disp.nii.gz", "disp.nii"):
        write_learn2reg(folder / name, _field(), GRID, GRID)
    halves = np.random.default_rng(0).normal(0, 1, (3, 3, 4, 5)).astype("f2")
    np.savez_compressed(folder / "packed.npz", halves)
    np.savez(folder / "plain.npz", halves)


def _tables(folder: Path) -> None:
    landmarks = Landmarks(("one", "=two", "drei, vier"), np.array([[1.5, -2, 3], [4, 5, 6], [7, 8, 9.25]]))
    for name in ("ras.csv", "points.fcsv", "points.mrk.json"):
        write_landmarks(folder / name, landmarks)
    write_landmarks(folder / "ants.csv", landmarks, space="lps")
    (folder / "voxels.csv").write_text("name,i,j,k\na,1,2,3\nb,4,5,6\n")
    (folder / "stated.csv").write_text("# space: LPS\nlabel,x,y,z\na,1,2,3\n")


def _names(folder: Path) -> None:
    (folder / "names.json").write_text('{"4": "3rd Ventricle", "5": "x"}')
    (folder / "names.csv").write_text("id,name\n4,a\n5,b\n")
    (folder / "names.txt").write_text("# FreeSurfer\n4 Left-Thing 10 20 30 0\n5 b 1 2 3 0\n")
    pair = {"id": "a_b", "fixed": "a", "moving": "b"}
    images = {
        "a": {"image": "a.nii.gz", "labels": "a_l.nii", "sha256": {"image": "0" * 64}},
        "b": {"image": "s/b.nii", "split": "v"},
    }
    manifest = {"name": "m", "images": images, "pairs": [pair], "label_groups": {"x": [1, 2]}, "ignore_labels": [0]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _native(folder: Path) -> None:
    from stepwarp.registrar.steps.config import build, read_step
    from stepwarp.registrar.weights import Card, Recipe, save_native_weights
    from stepwarp.registrar.weights.recipe import Spacing, Tissue

    net = {"kind": "unet", "channels": [4, 4]}
    steps = [
        {"step": "downsampled", "inner": {"step": "vector_field", "net": net}},
        {"step": "repeat", "n": 2, "inner": {"step": "velocity", "net": net}},
    ]
    config = read_step({"step": "two_step", "steps": steps})
    state = build(config, 3).state_dict()
    recipe, card = Recipe(intensities=Tissue(), grid=Spacing(mm=2)), Card(name="n", data="d", licence="l")
    save_native_weights(folder / "native.safetensors", config, state, recipe, card)


def _icon(folder: Path) -> None:
    from stepwarp.networks.config import IconUNetConfig

    unet = IconUNetConfig(down=(2, 4, 6), up=(4, 4)).build(3)
    state = {f"netPhi.net.{n}": t for n, t in unet.state_dict().items()} | {
        f"netPsi.net.{n}": t for n, t in unet.state_dict().items()
    }
    torch.save(state, folder / "icon.trch")
    torch.save(state, folder / "old.trch", _use_new_zipfile_serialization=False)


_SEEDS: dict[str, Callable[[Path], None]] = {
    "volumes": _volumes,
    "warps": _warps,
    "matrices": _matrices,
    "composites": _composites,
    "learn2reg": _learn2reg,
    "landmarks": _tables,
    "names": _names,
    "native": _native,
    "icon": _icon,
}
