"""Which maps lead from one space to another: the files of a registration's result, or a chain of transform files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stepwarp.errors import InputError
from stepwarp.files import TrustRules, read_transform, unbracketed
from stepwarp.geometry import Composition, DisplacementField, Grid, Transform, inverse_residual
from stepwarp.workflow.folders import Link, RegistrationFolder, Result, Side, result_at


@dataclass(frozen=True)
class Journey:
    """From one space to another: what volumes look up through, what landmarks are sent through, and how to call it.

    in_folder: whether one result says what both spaces are; then grid is that of the space gone to, left that of the
    other, if the result records them. default: whether the direction is the default one, which nobody asked for.
    outside, sha256: what the image left was said to be beyond its grid, and its file's digest, where they are known."""

    lookup: tuple[Link, ...]
    send: tuple[Link, ...]
    words: str
    in_folder: bool = False
    grid: Grid | None = None
    left: Grid | None = None
    default: bool = False
    outside: float | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PointMap:
    """A transform with the files that it was read from, in the order in which a point meets them."""

    transform: Transform
    files: tuple[Link, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return ", then ".join(map(str, self.files))


def plan(transforms: Sequence[str | Path], source: Side | None, target: Side | None, inverse: bool) -> Journey:
    """The journey that a user's words mean: see `workflow.apply.apply` for the arguments and the errors."""
    links = [link_of(str(text)) for text in transforms]
    result = result_at(links[0].path) if len(links) == 1 and not links[0].inverted else None
    if result is not None:
        return _in_folder(links[0], result, source, target, inverse)
    if not links:
        raise InputError("there is no transform to apply. Name a folder or files with --transform.")
    if source or target:
        raise InputError("--from, --to: only the folder of one registration says what is fixed and what is moving.")
    chain = tuple(link.flipped() for link in reversed(links)) if inverse else tuple(links)
    return Journey(chain, chain, "inverse of the chain as listed" if inverse else "chain as listed")


def _in_folder(link: Link, result: Result, source: Side | None, target: Side | None, inverse: bool) -> Journey:
    if inverse:
        raise InputError(f"--inverse: {link.path} knows both directions. Say --from fixed, or --from moving.")
    default = source is None and target is None
    source, target = sides(source, target)
    lookup, send = (link, link.flipped()) if target == "fixed" else (link.flipped(), link)
    notes = ("the verdict on this registration was: fail",) if result.failed else ()
    grid, left = result.grids[target], result.grids[source]
    outside, sha256 = None, None
    if isinstance(result, RegistrationFolder) and source == "moving":
        outside, sha256 = result.outside, result.inputs["moving"].get("sha256")
    return Journey((lookup,), (send,), f"{source} to {target}", True, grid, left, default, outside, sha256, notes)


def sides(source: Side | None, target: Side | None) -> tuple[Side, Side]:
    """Where to go from, and where to: from moving to fixed unless said otherwise."""
    other: dict[Side, Side] = {"fixed": "moving", "moving": "fixed"}
    for side in (source, target):
        if side not in (None, *other):
            raise InputError(f"there is no image '{side}' to go from or to; there are {', '.join(other)}")
    source = source or (other[target] if target else "moving")
    target = target or other[source]
    if source == target:
        raise InputError(f"--from {source} --to {target}: there is nothing to do. Name two different images.")
    return source, target


def load(links: tuple[Link, ...], trust: TrustRules) -> PointMap:
    """The links' files as one map; a field whose inverse is in no file is inverted numerically. trust: for files that
    are named one by one; those of a result say where they lie."""
    files = [(file, trust if link.files() == (link,) else None) for link in links for file in link.files()]
    parts, notes = [], []
    for file, rules in files:
        transform = read_transform(file.path, trust=rules)
        if file.inverted:
            inverted = transform.inverse()
            notes += _residual(file.path, transform, inverted)
            transform = inverted
        parts.append(transform)
    return PointMap(Composition.of(*reversed(parts)), tuple(file for file, _ in files), tuple(notes))


def link_of(text: str) -> Link:
    """A path, or as antsApplyTransforms writes it, [path,1] for its inverse."""
    path, inverted = unbracketed(text)
    return Link(Path(path), inverted)


def absolute(text: str) -> str:
    """The same entry of a chain from whatever folder."""
    link = link_of(text)
    return str(Link(link.path.absolute(), link.inverted))


def _residual(path: Path, transform: Transform, inverse: Transform) -> list[str]:
    """How exact the numerical inverse of a transform with a field is; nothing to say of an affine."""
    parts = transform.parts if isinstance(transform, Composition) else (transform,)
    grid = next((part.grid for part in parts if isinstance(part, DisplacementField)), None)
    if grid is None:
        return []
    error = np.percentile(inverse_residual(inverse, transform, grid.middles(8)), 95)
    return [f"{path} was inverted numerically, 95 % of points to {error:.2g} mm"]
