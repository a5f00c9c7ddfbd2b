"""What a NIfTI header says, and whether it agrees with itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Header

from stepwarp.doctor.findings import Finding
from stepwarp.files.placement import agree, degrees_between, statements
from stepwarp.geometry import Grid

#: Sizes (mm) that voxels of a scan of a person have, and how much longer than wide they may be without remark.
_FINEST_MM, _COARSEST_MM, _LONGEST = 0.2, 5.0, 2.5
#: Fewer voxels along an axis leave nothing to work on at coarser levels.
_FEWEST = 16
#: An axis further (degrees) from all axes of the world has no clear letter.
_OBLIQUE = 35.0
_SAME_SIZE = 0.01
_WORTH_A_NOTE_MM = 0.01


def header_facts(header: Nifti1Header, shape: tuple[int, ...]) -> dict[str, Any]:
    """Which statements of a place there are, and how far apart two of them lie: at the worst corner, and in degrees."""
    stated = statements(header)
    facts: dict[str, Any] = {"place_from": [form for form, affine in stated.items() if affine is not None]}
    sform, qform = stated.get("sform"), stated.get("qform")
    if sform is not None and qform is not None:
        degrees = degrees_between(sform, qform)
        facts["qform_to_sform"] = {
            "mm": round(Grid(shape, sform).distance_to(Grid(shape, qform)), 4),
            "degrees": None if degrees is None else round(degrees, 3),
            "mirrored": degrees is None,
        }
    return facts


def header_findings(header: Nifti1Header, shape: tuple[int, ...], name: str) -> Iterator[Finding]:
    """Contradictions of the header that a reader gets over, each in its own way."""
    stated = statements(header)
    broken = [form for form, affine in stated.items() if affine is None]
    usable = {form: affine for form, affine in stated.items() if affine is not None}
    if broken and usable:
        yield Finding(
            "warning",
            "qform-sform",
            name,
            f"Its {broken[0]} is unusable; the {next(iter(usable))} is taken, other readers may take the broken one.",
            "Copy the good statement over the broken one, for example with nibabel.",
        )
    if len(usable) == 2 and agree(usable["sform"], usable["qform"], shape):
        apart = Grid(shape, usable["sform"]).distance_to(Grid(shape, usable["qform"]))
        if apart > _WORTH_A_NOTE_MM:
            yield Finding(
                "note",
                "qform-sform",
                name,
                f"Its sform and qform lie {apart:.3f} mm apart at the worst corner.",
                "Nothing: that is rounding, and the sform is taken.",
            )
    if usable:
        sizes = np.linalg.norm(next(iter(usable.values()))[:3, :3], axis=0)
        said = np.abs(header["pixdim"][1:4].astype(float))
        if np.isfinite(said).all() and (np.abs(said - sizes) > _SAME_SIZE * sizes).any():
            yield Finding(
                "warning",
                "spacing",
                name,
                f"Its voxels are {_mm(said)} by pixdim and {_mm(sizes)} by the affine, which stepwarp takes.",
                "Save it again with a library that writes both, or tools measure different volumes.",
            )


def shear_findings(mm: float | None, name: str) -> Iterator[Finding]:
    """What is taken out of the axes of a file that is read all the same."""
    if mm is not None and mm > _WORTH_A_NOTE_MM:
        yield Finding(
            "note",
            "shear",
            name,
            f"Its axes are not quite perpendicular, which moves a corner by {mm:.3f} mm.",
            "Nothing: that is rounding of its directions, and it is taken out.",
        )


def grid_facts(grid: Grid) -> dict[str, Any]:
    """Shape, spacing, orientation and handedness, in words for people."""
    return {
        "shape": list(grid.shape),
        "spacing_mm": [round(float(s), 4) for s in grid.spacing],
        "orientation": "".join(nibabel.aff2axcodes(grid.affine)),
        "handedness": "right" if np.linalg.det(grid.linear) > 0 else "left",
        "oblique_degrees": round(_obliqueness(grid), 2),
    }


def grid_findings(grid: Grid, name: str) -> Iterator[Finding]:
    """What is unusual about size, spacing and direction."""
    spacing, shape = grid.spacing, np.array(grid.shape)
    if spacing.max() > _LONGEST * spacing.min():
        yield Finding(
            "warning",
            "spacing",
            name,
            f"Its voxels are {_mm(spacing)}: what is thinner than a slice cannot be aligned between slices.",
            "Use a 3D acquisition if there is one, and expect less accuracy across the slices.",
        )
    if spacing.min() < _FINEST_MM or (spacing.max() > _COARSEST_MM and not _is_sliced(spacing)):
        yield Finding(
            "warning",
            "spacing",
            name,
            f"Its voxels are {_mm(spacing)}, unusual for a scan of a person.",
            "Check the unit: the header must be in mm.",
        )
    if shape.min() < _FEWEST:
        yield Finding(
            "warning",
            "size",
            name,
            f"It has only {' x '.join(map(str, grid.shape))} voxels.",
            "Check that it is the whole volume, not a slab of it or a thumbnail.",
        )
    if _obliqueness(grid) > _OBLIQUE:
        yield Finding(
            "note",
            "orientation",
            name,
            f"Its axes are turned by {_obliqueness(grid):.0f} degrees, so no letter names them well.",
            "Nothing for stepwarp; viewers that ignore the turn show it tilted.",
        )


def _is_sliced(spacing: np.ndarray) -> bool:
    """Thick slices, remarked on already."""
    return bool(spacing.max() > _LONGEST * spacing.min())


def _obliqueness(grid: Grid) -> float:
    """Degrees between the axis of the grid that is furthest from the world's axes and the one nearest to it."""
    nearest = np.abs(grid.linear / grid.spacing).max(0).clip(max=1)
    return float(np.degrees(np.arccos(nearest)).max())


def _mm(sizes: np.ndarray) -> str:
    return f"{' x '.join(f'{s:.3g}' for s in sizes)} mm"
