"""What a user holds in hand, carried along a registration that is in memory, in the words of the command `apply`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.files import Landmarks, TrustRules, as_either, given_back, read_landmarks
from stepwarp.files.tables import to_ras
from stepwarp.geometry import Grid, Image, LabelMap, Transform, Volume
from stepwarp.workflow.apply import (
    Space,
    is_landmarks,
    is_shape,
    refuse_nothing,
    refuse_wrong_side,
)
from stepwarp.workflow.journey import Journey, Side, sides
from stepwarp.workflow.reading import FOR_LABELS, Interpolation, continues, read_volume
from stepwarp.workflow.subjects import check_outside

if TYPE_CHECKING:
    from stepwarp.workflow.registered import RegisteredPair


def carry(
    registration: RegisteredPair,
    what: Any,
    source: Side | None,
    target: Side | None,
    reference: Any,
    interpolation: Interpolation,
    labels: bool,
    outside: float | None,
    space: Space | None,
    trust: str | Sequence[str] | None,
) -> Any:
    """What `Registration.apply` says, which explains the arguments."""
    default = source is None and target is None
    source, target = sides(source, target)
    grids = {"fixed": registration.fixed.grid, "moving": registration.moving.grid}
    send, lookup = registration.inverse, registration.transform
    if target == "moving":
        send, lookup = lookup, send
    if isinstance(what, str | Path) and is_shape(Path(what)):
        raise InputError(f"{what}: is carried from file to file. Save the registration, and use stepwarp.apply.")
    if _is_points(what):
        if reference is not None:
            raise InputError("points need no grid to land on; leave the reference out")
        return _sent(what, send, space, grids[source])
    if labels and (interpolation not in FOR_LABELS or outside is not None):
        raise InputError("labels have no values in between, and are 0 outside; leave interpolation and outside out")
    check_outside(outside)
    rules = TrustRules.of(trust)
    grid = grids[target] if reference is None else as_either(reference, trust=rules, unnamed="the reference")[1]
    volume, _ = read_volume(what, interpolation, labels, outside, rules)
    given = None
    if outside is None and source == "moving" and not isinstance(volume, LabelMap):
        given = registration.record.get("settings", {}).get("outside")
    if given is not None and (_is_same(volume, registration.moving) or continues(volume, float(given))):
        volume, _ = read_volume(what, interpolation, labels, float(given), rules)
    refuse_wrong_side(volume, Journey((), (), "", True, grids[target], grids[source], default))
    warped = volume.warp(lookup, onto=grid)
    refuse_nothing(volume, warped)
    return given_back(warped, what)


def _is_same(volume: Volume, image: Image) -> bool:
    return volume.grid == image.grid and torch.equal(volume.data, image.data)


def _is_points(what: Any) -> bool:
    if isinstance(what, str | Path):
        return is_landmarks(Path(what))
    return isinstance(what, Landmarks) or (isinstance(what, np.ndarray | Tensor) and what.ndim <= 2)


def _sent(what: Any, send: Transform, space: Space | None, grid: Grid) -> Any:
    """Points through a map: landmarks as landmarks, arrays (N, 3) as float64 arrays of their library."""
    if isinstance(what, str | Path):
        what = read_landmarks(what, space, grid)
    if isinstance(what, Landmarks):
        return what.moved(send(what.points))
    points = what.detach().cpu().numpy() if isinstance(what, Tensor) else what
    if points.shape[-1:] != (3,) or points.dtype.kind not in "iuf" or not np.isfinite(points).all():
        raise InputError(f"points of shape {points.shape} are none of a volume; give (N, 3) finite numbers in mm")
    world = space or "ras"
    sent = send(to_ras(points.astype(np.float64), world, None, "points"))
    sent = to_ras(sent, world, None, "points")  # the way back is the same change of signs
    return torch.from_numpy(sent).to(what.device) if isinstance(what, Tensor) else sent
