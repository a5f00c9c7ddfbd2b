"""MONAI's cache on disk, without trust in the files that it finds there."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import PersistentDataset
from monai.transforms import Compose, MapTransform
from torch import Tensor

from stepwarp.errors import OutputError, StepwarpError


class Cache(PersistentDataset):
    """Items of tensors and numbers that `steps` make, each kept in a file of `folder` named by `key` of the item.

    A file that is damaged, even by one bit, is made anew; none of them can run code. What goes wrong in a step is
    raised as it is, not as MONAI's RuntimeError. Without a folder every item is made each time."""

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        steps: Sequence[MapTransform],
        folder: Path | None,
        key: Callable[[Mapping[str, Any]], bytes],
    ) -> None:
        try:
            super().__init__(items, Compose(list(steps)), folder, hash_func=key, weights_only=True)
        except (OSError, ValueError) as error:
            raise OutputError(f"{folder}: cannot be the folder of the cache ({error}). Name another.") from error

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # never a slice
        item = dict(super().__getitem__(index))
        del item["checksum"]
        return item

    def _cachecheck(self, item_transformed: Any) -> Any:
        if self.cache_dir is None:
            return super()._cachecheck(item_transformed)
        place = self.cache_dir / f"{self.hash_func(item_transformed).decode()}.pt"
        if (found := _sound(place)) is not None:
            return found
        try:
            place.unlink(missing_ok=True)
            return super()._cachecheck(item_transformed)
        except OSError as error:
            raise OutputError(
                f"{place}: cannot be written ({error}). Free some space or name another cache."
            ) from error

    def _pre_transform(self, item_transformed: Any) -> Any:
        try:
            made = super()._pre_transform(item_transformed)
        except RuntimeError as error:
            # MONAI wraps what a step raises into errors of its own, one inside the other.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, StepwarpError):
                cause = cause.__cause__
            raise cause or error from None
        return {**made, "checksum": checksum(made)}


def checksum(values: Mapping[str, Any]) -> int:
    """CRC-32 of named tensors and numbers, whatever their order; what is None counts as absent."""
    total = 0
    for name, value in sorted(values.items()):
        if isinstance(value, Tensor):
            total = zlib.crc32(f"{name} {tuple(value.shape)} {value.dtype}".encode(), total)
            total = zlib.crc32(value.contiguous().numpy().data.cast("B"), total)
        elif value is not None:
            total = zlib.crc32(f"{name} {value!r}".encode(), total)
    return total


def _sound(place: Path) -> dict[str, Any] | None:
    """What a file of the cache holds; None where there is none, or it is not what was written."""
    if not place.is_file():
        return None
    try:
        found = torch.load(place, weights_only=True)
        expected = found["checksum"]
        whole = checksum({name: value for name, value in found.items() if name != "checksum"}) == expected
    except Exception:  # a damaged file makes the unpickler raise whatever it runs into
        return None
    return found if whole else None
