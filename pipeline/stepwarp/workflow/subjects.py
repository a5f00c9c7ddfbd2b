"""The two images of a registration: as they were read, as they are registered, and what a record says of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel
import torch

from stepwarp import files
from stepwarp.errors import InputError
from stepwarp.geometry import Image, LabelMap
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.geometry.orientation import canonical
from stepwarp.layout import MASKS
from stepwarp.segment import Segmentation
from stepwarp.workflow.verdict import foreground

#: A mask that leaves less of the subject than this may be one of what to leave out.
_LEAST_TRUSTED = 0.1
#: Intensities of air and lungs in a CT are below the first of these (HU), those of fat and all else above the second.
_AIR, _FAT = -700.0, -200.0
_LARGEST = torch.finfo(torch.float32).max

#: What `files.as_image` and `files.as_mask` take.
Source = Any
MaskSource = Any


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """One of the two images: as read, and as it is registered, with its mask: scaled, in RAS order.

    anatomy: what a segmenter found in it, where that was asked for. found_mask: the brain that it found on the image's
    grid, where the mask is that, or what of the user's mask lies within it."""

    source: Source
    mask_source: MaskSource | None
    image: Image
    scaled: Image
    mask: Image | None
    anatomy: Segmentation | None = None
    found_mask: LabelMap | None = None

    def masked(self, mask: Image) -> PreparedImage:
        """With another mask, in RAS order on the scaled image's grid, and scaled by what that trusts."""
        return replace(self, mask=mask, scaled=scale_intensities(canonical(self.image), mask))

    def to(self, device: torch.device) -> PreparedImage:
        """What is registered, on a device. The image as read stays: it is for the network alone, and for the result."""
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, scaled=self.scaled.to(device), mask=mask)

    @property
    def masked_out(self) -> float | None:
        """The share of the subject that the mask excludes; None without a mask."""
        if self.mask is None:
            return None
        subject = foreground(self.scaled, None)
        return round(float((self.mask.data[subject] == 0).float().mean()), 5)


def prepare(
    source: Source,
    mask_source: MaskSource | None,
    trust: files.TrustRules,
    outside: float | None = None,
    role: str = "given",
) -> PreparedImage:
    """Read an image and its mask, and bring them into the form that is registered.

    outside: what the image as read holds beyond its grid, by default its own background; the search reads its own.
    role: what to call images in hand that have no name.
    Raises InputError as the readers, and for a mask that is empty or not on the image's grid."""
    image = files.as_image(source, trust=trust, unnamed=f"the {role} image").surrounded(outside)
    mask = None if mask_source is None else canonical(_read_mask(mask_source, image, trust, f"the {role} mask"))
    return PreparedImage(source, mask_source, image, scale_intensities(canonical(image), mask), mask)


def described_inputs(
    fixed: PreparedImage, moving: PreparedImage, further: Sequence[tuple[PreparedImage, PreparedImage]] = ()
) -> dict[str, Any]:
    """The images, and the masks of the first two if there are any, as a record holds them."""
    images = {"fixed": fixed, "moving": moving}
    for n, (one, other) in enumerate(further, 2):
        images |= {f"fixed_{n}": one, f"moving_{n}": other}
    described = {role: described_image(subject.source, subject.image) for role, subject in images.items()}
    for role, subject, name in zip(("fixed_mask", "moving_mask"), (fixed, moving), MASKS, strict=True):
        if subject.mask is not None:
            file = {} if subject.mask_source is None else _described_file(subject.mask_source)
            found = {} if subject.found_mask is None else {"found": name}
            described[role] = file | found | {"excluded_of_subject": subject.masked_out}
    return described


def described_image(source: Source, image: Image) -> dict[str, Any]:
    """An image as a record holds it."""
    grid = image.grid
    return _described_file(source) | {
        "shape": list(grid.shape),
        "spacing_mm": [round(float(s), 6) for s in grid.spacing],
        "orientation": "".join(nibabel.aff2axcodes(grid.affine)),
        "affine": grid.affine.tolist(),
        "outside": recorded_outside(image.outside),
    }


def check_outside(value: float | None) -> None:
    """InputError for a value that no voxel can hold; NaN is one for nothing at all."""
    if value is not None and not (math.isnan(value) or abs(value) <= _LARGEST):
        raise InputError(f"--outside {value:g}: is not a number that a voxel can hold. Give another one, or nan.")


def recorded_outside(value: float | None) -> float | str | None:
    """The value outside as JSON can hold it."""
    return "nan" if value is not None and math.isnan(value) else value


def interpolation_of(record: Mapping[str, Any]) -> Literal["linear", "cubic"]:
    """How the moving image was read for the moved one; earlier versions, which do not say it, read it linearly."""
    return record.get("settings", {}).get("interpolation", "linear")


def ants_options(record: Mapping[str, Any], transforms: Iterable[str]) -> str:
    """The transforms, the interpolation and the value outside as antsApplyTransforms takes them. It is linear, and has
    0 there, by default, and reads NaN as 0, so that none of these is said."""
    outside = record["inputs"]["moving"].get("outside", 0)
    said = [] if interpolation_of(record) == "linear" else ["-n BSpline"]
    said += [] if outside in (0, "nan") else [f"--default-value {outside:.9g}"]
    return " ".join([*(f"-t {name}" for name in transforms), *said])


def mask_remarks(fixed: PreparedImage, moving: PreparedImage) -> tuple[list[str], list[str]]:
    """Sentences for the verdict, to be known and to be looked at: masks without effect, and masks that leave little."""
    notes, checks = [], []
    for role, subject in (("fixed", fixed), ("moving", moving)):
        if subject.masked_out == 0:
            notes.append(f"the {role} mask had no effect on the subject: it excludes nothing but background")
        elif subject.masked_out is not None and subject.masked_out > 1 - _LEAST_TRUSTED:
            share = f"the {role} mask excludes {subject.masked_out:.0%} of the subject"
            checks.append(f"{share}; its non-zero voxels are the ones that count")
    return notes, checks


def outside_remarks(moving: PreparedImage) -> list[str]:
    """A sentence where what becomes of the surroundings is likely wrong: a cropped CT, around which is no water."""
    image = moving.image
    lowest, airy = float(image.data.min()), image.data < _AIR
    # Of noise around 0 there would be more between the two.
    if image.outside != 0 or airy.sum() <= ((image.data < _FAT) & ~airy).sum():
        return []
    return [
        f"the moved image is 0 where the moving one ends, and the moving one goes down to {lowest:.4g}; for the air "
        f"around a CT, use --outside {lowest:.0f}"
    ]


def _described_file(source: Any) -> dict[str, Any]:
    if isinstance(source, (str, Path)):
        return {"path": str(Path(source).resolve()), "sha256": files.sha256(source)}
    return {"path": None, "sha256": None}


def _read_mask(source: MaskSource, image: Image, trust: files.TrustRules, unnamed: str) -> Image:
    """The mask of an image as 0 and 1 on the image's grid."""
    mask = files.on_grid_of(files.as_mask(source, trust=trust, unnamed=unnamed), image)
    if not mask.data.any():
        raise InputError(f"{mask.name}: the mask is empty. Non-zero voxels are the ones that count.")
    return Image(mask.data.float(), image.grid, mask.name)
