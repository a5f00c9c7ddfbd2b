"""Where a file says its voxels lie in the world: the choice between its statements, and what makes them unusable."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from stepwarp.errors import InputError
from stepwarp.files.trust import Trust, TrustRules
from stepwarp.geometry import Grid

#: The cosines of a direction with three decimals, as DICOM's converters often leave them, are that far off.
_THREE_DECIMALS = 6e-4

#: No image lies further away (mm), and beyond it float32 has no tenths of a millimetre left.
FARTHEST_MM = 1e6

_SPATIAL_UNITS = {1: "metres", 3: "micrometres"}


class UnplacedError(InputError):
    """A header that does not say where the voxels lie. reason: what is wrong with it, without name and remedy."""

    def __init__(self, name: str, reason: str, remedy: str) -> None:
        super().__init__(f"{name}: {reason}. {remedy}")
        self.reason = reason


def affine_of(
    header: Nifti1Header, shape: tuple[int, ...], name: str, trust: Trust | TrustRules | None = None
) -> np.ndarray:
    """The (4, 4) map from voxel index to RAS+ mm that a NIfTI header states, or, where it states none, that `trust`
    picks from it.

    A statement counts if its code is above 0 and it is finite and invertible. Raises UnplacedError where none counts
    and where both do and put the voxels elsewhere, and InputError where lengths are not in mm."""
    unit = _SPATIAL_UNITS.get(int(header["xyzt_units"]) & 7)
    if unit:
        raise InputError(f"{name}: its lengths are in {unit}, and readers disagree on what to do. Save it in mm.")
    rules = TrustRules.of(trust)
    try:
        affine = _stated(header, shape, name)
    except UnplacedError as refusal:
        choice = rules.choice(name)
        if choice is None:
            raise
        affine = _trusted(header, name, choice)
        rules.followed(name, choice, refusal.reason, statements(header))
    else:
        rules.needless(name)
    return affine


def _stated(header: Nifti1Header, shape: tuple[int, ...], name: str) -> np.ndarray:
    stated = statements(header)
    usable = {form: affine for form, affine in stated.items() if affine is not None}
    if not stated:
        raise UnplacedError(
            name,
            "it does not say where it lies (sform and qform code are 0), and readers disagree on it, left and right "
            "included",
            f"Set its header, or choose with --trust sform, qform or base (voxel sizes alone){_for_one(name)}.",
        )
    if not usable:
        raise UnplacedError(
            name,
            f"its affine is singular or not finite, or leads a kilometre away ({' and '.join(stated)})",
            f"Set its header, or use --trust base (voxel sizes alone){_for_one(name)}.",
        )
    if len(usable) == 2 and not agree(usable["sform"], usable["qform"], shape):
        sform, qform = usable["sform"], usable["qform"]
        degrees = degrees_between(sform, qform)
        turn = "by a mirror" if degrees is None else f"{degrees:.3g} degrees"
        apart = Grid(shape, sform).distance_to(Grid(shape, qform))
        raise UnplacedError(
            name,
            f"its sform and qform contradict each other, by {apart:.3g} mm at a corner and {turn}",
            f"Choose with --trust sform or --trust qform{_for_one(name)}.",
        )
    return next(iter(usable.values()))


def agree(sform: np.ndarray, qform: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether two statements of one header are the same but for what encoding them costs. A qform has no shear: it is
    compared with the sform without the shear that is rounding."""
    first, second = Grid(shape, sform), Grid(shape, qform)
    straight = straightened(first)
    return first.coincides_with(second) or (_is_rounding(first, straight) and straight.coincides_with(second))


def _for_one(name: str) -> str:
    """How to choose for this file and no other."""
    return f"; for this file alone: --trust {shlex.quote(Path(name).name + '=sform')} or the like"


def statements(header: Nifti1Header) -> dict[str, np.ndarray | None]:
    """What a NIfTI header states (code above 0), sform and qform, each as its affine or None where that is unusable."""
    codes = {"sform": int(header["sform_code"]), "qform": int(header["qform_code"])}
    return {form: _form(header, form) for form, code in codes.items() if code > 0}


def degrees_between(first: np.ndarray, second: np.ndarray) -> float | None:
    """The turn from one affine's axes to another's; None where it is no turn, but a mirror."""
    left, _, right = np.linalg.svd(first[:3, :3] @ np.linalg.inv(second[:3, :3]))
    rotation = left @ right
    if np.linalg.det(rotation) < 0:
        return None
    return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))


def grid_of(shape: tuple[int, ...], affine: np.ndarray, name: str) -> Grid:
    """The grid of an affine that came from outside: invertible, and with perpendicular axes as ITK needs them.

    Shear that is rounding (a tenth of a voxel at the worst corner, or directions of three decimals) is removed, about
    the centre, so that what is written later means the same to every reader; above that InputError says how large it
    is."""
    if not _is_usable(affine):
        raise InputError(f"{name}: its affine is singular or not finite, or leads a kilometre away. Set its header.")
    grid = Grid(shape, affine)
    straight = straightened(grid)
    if grid == straight:
        return grid
    if not _is_rounding(grid, straight):
        raise InputError(
            f"{name}: its axes are not perpendicular, which moves a corner by {grid.distance_to(straight):.3g} mm, and "
            "ITK knows no shear. Resample it onto a grid without shear."
        )
    return straight


def _is_rounding(grid: Grid, straight: Grid) -> bool:
    cosines = np.abs(grid.linear / grid.spacing - straight.linear / straight.spacing).max()
    return grid.coincides_with(straight) or bool(cosines <= _THREE_DECIMALS)


def straightened(grid: Grid) -> Grid:
    """The grid with the same shape, spacing and centre whose axes are the nearest perpendicular ones (polar factor)."""
    left, _, right = np.linalg.svd(grid.linear / grid.spacing)
    affine = grid.affine.copy()
    affine[:3, :3] = left @ right * grid.spacing
    affine[:3, 3] = grid.centre - affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2)
    return Grid(grid.shape, affine)


def _trusted(header: Nifti1Header, name: str, trust: Trust) -> np.ndarray:
    affine = header.get_base_affine() if trust == "base" else _form(header, trust)
    if affine is None or not _is_usable(affine):
        raise InputError(
            f"{name}: its {trust} is singular or not finite, or leads a kilometre away. Trust another one, or set its "
            "header."
        )
    return affine


def _form(header: Nifti1Header, form: str) -> np.ndarray | None:
    """One of the header's two statements, whatever its code; None if it is not an affine."""
    if form == "sform":
        affine = header.get_sform()
    else:
        try:
            affine = _with_handedness(header).get_qform()
        except (HeaderDataError, ValueError):
            return None
    return affine if _is_usable(affine) else None


def _with_handedness(header: Nifti1Header) -> Nifti1Header:
    """The standard: a handedness (pixdim[0]) of 0 means 1."""
    header = header.copy()
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1
    return header


def _is_usable(affine: np.ndarray) -> bool:
    """Finite, within FARTHEST_MM, and invertible as `Grid` wants it."""
    if not np.isfinite(affine).all() or np.abs(affine).max() > FARTHEST_MM:
        return False
    return bool(abs(np.linalg.det(affine[:3, :3])) > 1e-12 and np.linalg.cond(affine[:3, :3]) < 1e9)
