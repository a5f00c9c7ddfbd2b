"""Scans as a network is trained on them: read under guard, brought onto the network's box once, kept in few bytes.

The reading is stepwarp's own and not MONAI's LoadImage, which takes files cut off, with NaN, or without a place in the
world as they come. The order of work, the cache and what follows are MONAI's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import safetensors
import safetensors.torch
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, SelectItemsd
from torch import Tensor

from stepwarp.data.cache import Cache, checksum
from stepwarp.data.manifest import Scan
from stepwarp.errors import InputError
from stepwarp.files import atomic_path, on_grid_of, read_image, read_labels, sha256
from stepwarp.geometry import Affine, Grid, Image, LabelMap, Transform
from stepwarp.geometry.orientation import canonical

ImageType = Literal["uint8", "float16"]
#: Part of every key of the cache: to be counted up when the same files and settings lead to other values.
_VERSION = 1
_PACKED = "stepwarp.scans"


class Scaling(Protocol):
    """How intensities of any unit become a network's."""

    def scale(self, image: Image) -> Image: ...


class Reading(Protocol):
    """How an image is read on a network's grid, through a transform to its world."""

    def read(self, image: Image, through: Transform, onto: Grid) -> Image: ...


class ScanRecipe(Protocol):
    """What a checkpoint says about preprocessing, as `registrar.weights.Recipe` does: the same in training."""

    @property
    def intensities(self) -> Scaling: ...
    @property
    def grid(self) -> Reading: ...
    def model_dump_json(self) -> str: ...


@dataclass(frozen=True)
class About:
    """Which scan it is. split, subject: as in the manifest."""

    id: str
    split: str | None = None
    subject: str | None = None

    @property
    def person(self) -> str:
        return self.subject or self.id


@dataclass(frozen=True, eq=False)
class Labelled:
    """A label map. index: (1, 1, *shape), each voxel's place in `ids` (N,) int32, on the CPU, whose first is 0, the
    background."""

    index: Tensor
    ids: Tensor

    def values(self) -> Tensor:
        """The labels themselves, (1, 1, *shape) int32."""
        return self.ids.to(self.index.device)[self.index.int()]


@dataclass(frozen=True, eq=False)
class BoxScan:
    """One scan on the network's box, as it is stored.

    image: (*shape) uint8 or float16, intensities in multiples of `unit`. matrix: (4, 4) float64, box world mm -> scan
    world mm. index: (*shape) uint8 or int16, with `ids` the label map as in `Labelled`."""

    image: Tensor
    unit: float
    matrix: Tensor
    index: Tensor | None = None
    ids: Tensor | None = None

    def intensities(self) -> Tensor:
        """(1, 1, *shape) float32."""
        return (self.image.float() * self.unit)[None, None]

    def labelled(self) -> Labelled:
        """The label map. Raises InputError where the scans were prepared without labels."""
        if self.index is None or self.ids is None:
            raise InputError("the scans were prepared without labels. Prepare them again, with labels.")
        return Labelled(self.index[None, None], self.ids)

    def to(self, device: torch.device | str) -> BoxScan:
        """The same with its voxels on a device."""
        index = None if self.index is None else self.index.to(device)
        return replace(self, image=self.image.to(device), index=index)

    def parts(self) -> dict[str, Any]:
        """All that it consists of and has, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Scans(Protocol):
    """Scans on one box, by their ids. To be sent to other processes, so without open files."""

    @property
    def grid(self) -> Grid: ...
    @property
    def about(self) -> Mapping[str, About]: ...
    def __getitem__(self, name: str) -> BoxScan: ...


@dataclass(frozen=True, eq=False)
class HeldScans:
    """Scans in memory."""

    grid: Grid
    about: Mapping[str, About]
    scans: Mapping[str, BoxScan]

    def __getitem__(self, name: str) -> BoxScan:
        return self.scans[name]

    @property
    def device(self) -> torch.device:
        """Where their voxels lie."""
        return next((scan.image.device for scan in self.scans.values()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> HeldScans:
        """The same with their voxels on a device: one to two bytes a voxel, and as many with labels."""
        return replace(self, scans={name: scan.to(device) for name, scan in self.scans.items()})


class CachedScans:
    """Scans in a folder of MONAI's PersistentDataset, made when they are first asked for.

    A file of the cache is named by what it was made from: the bytes of the scan's files, its alignment, the box and
    the recipe. Where one of these changes, or a file of the cache is damaged, the scan is made anew."""

    def __init__(
        self,
        scans: Sequence[Scan],
        alignments: Mapping[str, np.ndarray],
        grid: Grid,
        recipe: ScanRecipe,
        *,
        labels: bool = False,
        image_type: ImageType = "uint8",
        cache: Path | None = None,
    ) -> None:
        """alignments: scan id -> (4, 4), box world mm -> scan world mm. labels: whether label maps are read.

        Raises InputError for a scan without an alignment, or without labels that are wanted."""
        self.grid = grid
        self.about = {scan.id: About(scan.id, scan.split, scan.subject) for scan in scans}
        self._numbers = {scan.id: number for number, scan in enumerate(scans)}
        steps = [
            ReadScand(("image", "labels"), allow_missing_keys=True),
            Canonicald(("image", "labels"), allow_missing_keys=True),
            ScaleIntensitiesd("image", recipe.intensities),
            OntoBoxd(("image", "labels"), recipe.grid, grid, allow_missing_keys=True),
            CompactImaged("image", image_type),
            CompactLabelsd("labels", allow_missing_keys=True),
            SelectItemsd(("image", "unit", "matrix", "index", "ids"), allow_missing_keys=True),
        ]
        made_by = [_VERSION, grid.shape, grid.affine.tolist(), image_type, recipe.model_dump_json()]
        items = [_item(scan, alignments, labels) for scan in scans]
        self._cache = Cache(items, steps, cache, partial(_key, json.dumps(made_by)))

    def __getitem__(self, name: str) -> BoxScan:
        return BoxScan(**self._cache[self._numbers[name]])


def hold(scans: Scans) -> HeldScans:
    """All of them in memory, read or made once."""
    return HeldScans(scans.grid, dict(scans.about), {name: scans[name] for name in scans.about})


def pack(scans: Scans, path: str | Path, overwrite: bool = False) -> None:
    """Write all of them into one .safetensors file, about 1.2 MB a scan at 2 mm with labels: a training set to send.

    Raises OutputError as `atomic_path` does."""
    tensors: dict[str, Tensor] = {}
    listed = []
    for name, about in scans.about.items():
        parts = scans[name].parts()
        listed.append({**asdict(about), "checksum": checksum(parts), "unit": parts.pop("unit")})
        tensors |= {f"{name}/{part}": values.contiguous() for part, values in parts.items()}
    header = {"version": _VERSION, "shape": scans.grid.shape, "affine": scans.grid.affine.tolist(), "scans": listed}
    with atomic_path(path, overwrite) as temporary:
        safetensors.torch.save_file(tensors, temporary, {_PACKED: json.dumps(header)})


def read_packed(path: str | Path) -> HeldScans:
    """The scans of a file that `pack` wrote. InputError for any other, and for one that is damaged."""
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            header = json.loads((file.metadata() or {})[_PACKED])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no mapping
        grid = Grid(tuple(header["shape"]), np.array(header["affine"]))
        about, scans = {}, {}
        for entry in header["scans"]:
            name = entry["id"]
            image, matrix = tensors[f"{name}/image"], tensors[f"{name}/matrix"]
            index, ids = tensors.get(f"{name}/index"), tensors.get(f"{name}/ids")
            scans[name] = BoxScan(image, entry["unit"], matrix, index, ids)
            about[name] = About(name, entry["split"], entry["subject"])
            if tuple(scans[name].image.shape) != grid.shape or checksum(scans[name].parts()) != entry["checksum"]:
                raise ValueError(f"the scan {name} is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: is no file of packed scans ({error}). Pack them again.") from error
    return HeldScans(grid, about, scans)


class ReadScand(MapTransform):
    """Paths -> Image, and LabelMap under the key "labels"; both on one grid. InputError for unusable files."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        read = dict(data)
        for key in self.key_iterator(read):
            read[key] = read_labels(read[key]) if key == "labels" else read_image(read[key])
        if "labels" in read:
            read["labels"] = on_grid_of(read["labels"], read["image"])
        return read


class Canonicald(MapTransform):
    """Volumes in the order of RAS, as registration brings them into it."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: canonical(data[key]) for key in self.key_iterator(dict(data))}}


class ScaleIntensitiesd(MapTransform):
    """Images in a network's unit of intensity."""

    def __init__(self, keys: KeysCollection, scaling: Scaling, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.scaling = scaling

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.scaling.scale(data[key]) for key in self.key_iterator(dict(data))}}


class OntoBoxd(MapTransform):
    """Volumes on the network's box, through data["matrix"]: their one interpolation; labels from the nearest voxel."""

    def __init__(self, keys: KeysCollection, reading: Reading, box: Grid, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reading = reading
        self.box = box

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        through = Affine(data["matrix"].numpy())
        return {**data, **{key: self._read(data[key], through) for key in self.key_iterator(dict(data))}}

    def _read(self, volume: Image | LabelMap, through: Affine) -> Image | LabelMap:
        if isinstance(volume, LabelMap):
            return volume.warp(through, self.box)
        image = self.reading.read(volume, through, self.box)
        if not image.data.any():
            raise InputError(f"{volume.name}: lies outside the network's box under its alignment. Align it again.")
        return image


class CompactImaged(MapTransform):
    """An Image -> its values in a small type, and their unit under the key "unit"."""

    def __init__(self, keys: KeysCollection, image_type: ImageType, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_type = image_type

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        compact = dict(data)
        for key in self.key_iterator(compact):
            values = compact[key].data.float()
            low, high = map(float, torch.aminmax(values))
            if low < 0:
                raise InputError(f"{compact[key].name}: the recipe scales it to {low:.3g}; scaled intensities are >= 0")
            if self.image_type == "uint8":
                compact["unit"] = high / 255
                compact[key] = (values / compact["unit"]).round().to(torch.uint8)
            else:
                compact["unit"] = 1.0
                compact[key] = values.half()
        return compact


class CompactLabelsd(MapTransform):
    """A LabelMap -> each voxel's place in the table of its labels, under the key "index", and the table, "ids"."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        compact = dict(data)
        for key in self.key_iterator(compact):
            volume = compact.pop(key)
            ids, index = torch.unique(volume.data.long(), return_inverse=True)
            if ids.abs().max() > torch.iinfo(torch.int32).max:
                raise InputError(f"{volume.name}: a label does not fit into 32 bits. Renumber its labels.")
            table = torch.cat([torch.zeros(1, dtype=torch.int32), ids[ids != 0].int()])
            places = (table[None] == ids.int()[:, None]).int().argmax(1)
            compact["ids"] = table
            compact["index"] = places[index].to(torch.uint8 if len(table) <= 256 else torch.int16)
        return compact


def _item(scan: Scan, alignments: Mapping[str, np.ndarray], labels: bool) -> dict[str, Any]:
    """What MONAI's transforms begin with, and what the key of the cache is made of."""
    if scan.id not in alignments:
        raise InputError(f"{scan.image}: there is no alignment for the scan '{scan.id}'. Run the affine stage on it.")
    files = {"image": scan.image}
    if labels:
        if scan.labels is None:
            raise InputError(f"{scan.image}: has no label map, and one is wanted. Add it, or train without labels.")
        files["labels"] = scan.labels
    return {
        **{role: str(path) for role, path in files.items()},
        "sha256": {role: sha256(path) for role, path in files.items()},
        "matrix": torch.from_numpy(np.array(alignments[scan.id], dtype=np.float64)),
    }


def _key(made_by: str, item: Mapping[str, Any]) -> bytes:
    content = json.dumps([made_by, item["sha256"], item["matrix"].tolist()])
    return hashlib.sha256(content.encode()).hexdigest().encode()
