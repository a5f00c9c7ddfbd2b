"""What the numbers of a file are: intensities, labels, or a mask. Whole numbers never pass through a float.

Many programs store whatever they hold as 16-bit integers with a factor: the label 13 comes back as 13.0006. Numbers
that a file cannot tell apart are the same, so these are labels as well, and what cannot be told from 0 is 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.kernels.cpu import threading_layer
from stepwarp.printable import worded

#: What is left of a factor that a header holds in single precision.
_SINGLE = float(np.finfo(np.float32).eps)
_LARGEST_SINGLE = float(np.finfo(np.float32).max)
#: Above this every number in double precision is whole, which then says nothing.
_WHOLE_BELOW = 2.0**53
#: Differences below this drown in what single precision calls 0.
_SMALLEST_SPREAD = 1e-30
#: Rounding may cost so much of the range of intensities, a tenth of what the self-check of a result allows.
_ROUNDED_AWAY = 1e-4
_INTEGERS = (np.uint8, np.int16, np.int32, np.int64)


@dataclass(frozen=True, eq=False)
class Voxels:
    """The numbers (i, j, k) of a volume. stored: as in the file, integers or floats; slope, intercept: of its header,
    value = slope * stored + intercept. name: what messages call the file."""

    stored: np.ndarray
    slope: float
    intercept: float
    name: str

    def __post_init__(self) -> None:
        threading_layer.leave_dead_threads()  # what follows is torch's work, whoever reads, in whatever process

    def intensities(self) -> tuple[Tensor, Tensor | None]:
        """The values, finite, and where there is none: bool, or None if that is nowhere. float32; float64 where single
        precision holds them not at all, or too roughly: 1e300, or a contrast of 1 around 1e9.

        NaN, which other programs write outside of what they computed, is filled with 0, or with the lowest value where
        that is lower. Raises InputError for infinite values, and for an image without any difference."""
        data = torch.from_numpy(self._as_floats()).contiguous()
        low, high = torch.aminmax(data)
        missing = None
        if not (low.isfinite() and high.isfinite()):
            self._refuse_infinite(int(data.isinf().sum()))
            missing = data.isnan()
            known = data[~missing]
            if not known.numel():
                raise InputError(f"{self.name}: is NaN everywhere, there is nothing to align. Check how it was made.")
            data[missing] = min(0.0, float(known.min()))
            low, high = torch.aminmax(data)
        if low == high:
            where = "everywhere" if missing is None else "wherever it is not NaN"
            raise InputError(
                f"{self.name}: is {float(low):g} {where}, there is nothing to align. Check how it was made."
            )
        return data, missing

    def labels(self) -> Tensor:
        """Whole numbers in the smallest of uint8, int16, int32 and int64 that holds them and 0; NaN is 0.

        Raises InputError for infinite values, and where not all are whole."""
        values, broken = self._rounded
        if broken:
            self._refuse_infinite(int(np.isinf(self.values).sum()))
            raise InputError(
                f"{self.name}: {broken} of {values.size} voxels "
                f"{worded(broken, 'is no whole number', 'are not whole numbers')}, so it is no label map. Give "
                "labels, not probabilities, and resample them by nearest neighbour."
            )
        return integers(values, self.name)

    def mask(self) -> Tensor:
        """uint8: 1 where there is anything but 0, as exactly as the file can tell; NaN is 0."""
        values = self.values
        if values.dtype.kind == "f":
            self._refuse_infinite(int(np.isinf(values).sum()))
            inside = np.abs(values) > self.resolution  # false for NaN
        else:
            inside = values != 0
        return torch.from_numpy(inside.astype(np.uint8, order="K")).contiguous()

    @property
    def are_whole(self) -> bool:
        """Whether these can be labels: whole numbers, apart from NaN."""
        return not self._rounded[1]

    @property
    def have_gaps(self) -> bool:
        """Whether there is a NaN."""
        return self.values.dtype.kind == "f" and bool(np.isnan(self.values).any())

    @cached_property
    def values(self) -> np.ndarray:
        """slope * stored + intercept: integers where all three are whole, else float64."""
        if (self.slope, self.intercept) == (1, 0):
            return self.stored
        if self.stored.dtype.kind in "iu" and self.slope.is_integer() and self.intercept.is_integer():
            ends = [int(n) * int(self.slope) + int(self.intercept) for n in (self.stored.min(), self.stored.max())]
            if all(_fits(end, np.int64) for end in ends) and _fits(int(self.stored.max()), np.int64):
                return self.stored.astype(np.int64) * int(self.slope) + int(self.intercept)
        return self.stored * np.float64(self.slope) + np.float64(self.intercept)

    @cached_property
    def resolution(self) -> float:
        """How far a value may be from the one that was meant: half a stored step, and the header's own rounding."""
        if (self.slope, self.intercept) == (1, 0) or self.values.dtype.kind in "iu":
            return 0.0
        largest = float(np.nanmax(np.abs(self.values), initial=0)) + 2 * abs(self.intercept)
        return (abs(self.slope) / 2 if self.stored.dtype.kind in "iu" else 0.0) + _SINGLE * largest

    @cached_property
    def _rounded(self) -> tuple[np.ndarray, int]:
        """The whole numbers that the values are, NaN as 0, and how many of them are none."""
        values = self.values
        if values.dtype.kind in "iu":
            return values, 0
        values = np.where(np.isnan(values), 0, values)
        whole = np.rint(values)
        # Steps of one or more are too coarse for a whole number to be known from them.
        allowed = self.resolution if self.resolution < 0.5 else 0.0
        with np.errstate(invalid="ignore"):  # an infinite value is no whole number
            known = (np.abs(values - whole) <= allowed) & (np.abs(values) <= _WHOLE_BELOW)
        return whole, int((~known).sum())

    def _as_floats(self) -> np.ndarray:
        values = self.values
        with np.errstate(over="ignore", invalid="ignore"):
            single = values.astype(np.float32, order="K")
        if values.dtype in (np.float16, np.uint8, np.int8, np.uint16, np.int16):
            return single
        ends = [float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))]
        spread, largest = ends[1] - ends[0], max(map(abs, ends))
        # What is read between voxels is made of differences, which have to be held as well.
        held = largest <= _LARGEST_SINGLE and _SMALLEST_SPREAD <= spread <= _LARGEST_SINGLE / 4
        enough = held and (values.dtype == np.float32 or _SINGLE * largest <= _ROUNDED_AWAY * spread)
        # Infinities are refused, and what is constant: in single precision as in double.
        return single if enough or spread == 0 or not np.isfinite(spread) else values.astype(np.float64, order="K")

    def _refuse_infinite(self, count: int) -> None:
        if count:
            raise InputError(
                f"{self.name}: {count} of {self.stored.size} voxels {worded(count, 'is', 'are')} infinite. "
                "Replace them, for example by 0."
            )


def integers(values: np.ndarray, name: str, including: int = 0) -> Tensor:
    """Whole numbers in the smallest type that holds them all and one more; InputError where there is none."""
    low, high = min(int(values.min()), including), max(int(values.max()), including)
    dtype = next((t for t in _INTEGERS if _fits(low, t) and _fits(high, t)), None)
    if dtype is None:
        raise InputError(
            f"{name}: holds numbers from {low} to {high}, beyond 64 bits with a sign. Renumber them: in Python, "
            "ids, small = numpy.unique(image.dataobj, return_inverse=True) counts them from 0; write "
            "small.reshape(image.shape), and ids[small] brings them back."
        )
    return torch.from_numpy(values.astype(dtype, order="K")).contiguous()


def _fits(number: int, dtype: type[np.integer]) -> bool:
    return np.iinfo(dtype).min <= number <= np.iinfo(dtype).max
