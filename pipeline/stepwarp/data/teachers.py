"""Transforms that a classical method found, as a network is taught by them: on its box, between aligned images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from torch import Tensor

from stepwarp.data.cache import Cache
from stepwarp.files import read_transform, sha256
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid

#: Part of every key of the cache, as in `scans`.
_VERSION = 1


class Teachers:
    """Displacements on the box by the id of their pair, kept in half precision: to a hundredth of a voxel."""

    def __init__(
        self,
        files: Mapping[str, tuple[Path, np.ndarray, np.ndarray]],
        grid: Grid,
        cache: Path | None = None,
    ) -> None:
        """files: pair -> file of a transform, and the alignments of the fixed and of the moving scan (box world mm ->
        scan world mm). The transform maps the fixed scan's world to the moving scan's, as its method wrote it."""
        self.grid = grid
        self._numbers = {name: number for number, name in enumerate(files)}
        items = [
            {"transform": str(path), "sha256": sha256(path), "fixed": np.array(fixed), "moving": np.array(moving)}
            for path, fixed, moving in files.values()
        ]
        made_by = json.dumps([_VERSION, grid.shape, grid.affine.tolist()])
        self._cache = Cache(items, [TransformOnBoxd("transform", grid)], cache, partial(_key, made_by))

    def __contains__(self, pair: str) -> bool:
        return pair in self._numbers

    def __getitem__(self, pair: str) -> Tensor:
        """(1, 3, *grid.shape) float32, in voxels: a point of the fixed image's box -> its match in the moving one's."""
        return self._cache[self._numbers[pair]]["transform"].float()


class TransformOnBoxd(MapTransform):
    """The path of a transform between two scans' worlds -> its displacement between their boxes, float16."""

    def __init__(self, keys: str, box: Grid) -> None:
        super().__init__(keys)
        self.box = box

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        to_fixed, to_moving = Affine(data["fixed"]), Affine(data["moving"])
        sampled: dict[Hashable, Any] = {}
        for key in self.key_iterator(dict(data)):
            between = Composition.of(to_moving.inverse(), read_transform(data[key]), to_fixed)
            field: DisplacementField = between.on(self.box)
            sampled[key] = field.displacement.to(torch.float16)
        return sampled


def _key(made_by: str, item: Mapping[str, Any]) -> bytes:
    content = json.dumps([made_by, item["sha256"], item["fixed"].tolist(), item["moving"].tolist()])
    return hashlib.sha256(content.encode()).hexdigest().encode()
