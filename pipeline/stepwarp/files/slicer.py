"""The point lists of 3D Slicer, .fcsv and .mrk.json. They state their world; new ones are LPS, Slicer's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwarp.errors import InputError
from stepwarp.files.json import parse_json
from stepwarp.files.lps import flip_vectors
from stepwarp.files.point_tables import PointTable, fcsv_table
from stepwarp.files.tables import Space, csv_text, guarded, number, parse_headless, space_named, to_ras

_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
#: The status of a position that is missing, in an .fcsv.
_MISSING = 3
#: What to do about a file that does not state its world.
_STATE_IN_MARKUPS = 'Add "coordinateSystem": "LPS" (or "RAS") beside its controlPoints'
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


@dataclass(frozen=True, eq=False)
class Markups:
    """Point lists as a .mrk.json holds them. controls: the points of all lists, each with its list's world."""

    content: dict[str, Any]
    controls: tuple[tuple[dict[str, Any], Space], ...]

    def text(self, points: np.ndarray) -> str:
        """The same with new positions (N, 3) RAS mm where there is one; NaN leaves a point as it is."""
        for (control, space), point in zip(self.controls, points, strict=True):
            if np.isfinite(point).all():
                control["position"] = (flip_vectors(point) if space == "lps" else point).tolist()
        return json.dumps(self.content, indent=1, ensure_ascii=False) + "\n"


def parse_fcsv(text: str, file: str, space: Space | None) -> PointTable:
    """The points of an .fcsv. space: needed where the file states none."""
    return fcsv_table(parse_headless(text, file, _FCSV_COLUMNS), space)


def parse_markups(text: str, file: str, space: Space | None) -> tuple[tuple[str, ...], np.ndarray, Markups]:
    """Names (labels) and points (N, 3) RAS mm of all point lists, NaN for a point that is not placed; and the rest.

    space: needed where a list states none."""
    content = parse_json(text, file)
    names: list[str] = []
    points = [np.empty((0, 3))]
    controls: list[tuple[dict[str, Any], Space]] = []
    for count, markup in enumerate(_objects(content, "markups", file), 1):
        list_names, list_points, world = _point_list(markup, f"{file}, markup {count}", space)
        names += list_names
        points.append(list_points)
        controls += [(control, world) for control in markup["controlPoints"]]
    return tuple(names), np.concatenate(points), Markups(content, tuple(controls))


def fcsv_text(names: Sequence[str], points: np.ndarray) -> str:
    """The content of an .fcsv from RAS mm points (N, 3), NaN for one that is missing."""
    head = f"# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n# columns = {_FCSV_COLUMNS}\n"
    rows = (
        (n, *(flip_vectors(p).tolist() if placed else (0.0, 0.0, 0.0)), 0, 0, 0, 1, 1, 1, 0, guarded(name), "", "")
        + (() if placed else (_MISSING, 0))
        for n, (name, p, placed) in enumerate(zip(names, points, np.isfinite(points).all(1), strict=True), 1)
    )
    return head + csv_text(rows)


def markups_text(names: Sequence[str], points: np.ndarray) -> str:
    """The content of a .mrk.json with one point list from RAS mm points (N, 3), NaN for one that is missing."""
    controls = [
        {"id": str(n), "label": name}
        | ({"position": point.tolist(), "positionStatus": "defined"} if placed else {"positionStatus": "missing"})
        for n, (name, point, placed) in enumerate(
            zip(names, flip_vectors(points), np.isfinite(points).all(1), strict=True), 1
        )
    ]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": controls}
    return json.dumps({"@schema": _SCHEMA, "markups": [markup]}, indent=1, ensure_ascii=False) + "\n"


def _point_list(markup: dict[str, Any], where: str, space: Space | None) -> tuple[list[str], np.ndarray, Space]:
    kind, units = markup.get("type", "Fiducial"), markup.get("coordinateUnits", "mm")
    if kind != "Fiducial":
        raise InputError(f"{where}: is of type {kind}, not a point list (Fiducial).")
    if units not in ("mm", ["mm"] * 3):
        raise InputError(f"{where}: is measured in {units}. Export it in mm.")
    controls = _objects(markup, "controlPoints", where)
    positions = [_position(control, f"{where}, point {n}") for n, control in enumerate(controls, 1)]
    system = markup.get("coordinateSystem")
    stated = None if system is None else space_named(str(system), f"{where}, coordinateSystem")
    names = [str(control.get("label") or control.get("id") or n) for n, control in enumerate(controls, 1)]
    return (
        names,
        to_ras(np.reshape(positions, (-1, 3)), stated, space, where, _STATE_IN_MARKUPS),
        stated or space or "lps",
    )


def _position(control: dict[str, Any], where: str) -> list[float]:
    """NaN for a point that says that it is not placed."""
    if control.get("positionStatus", "defined") in ("missing", "undefined", "preview"):
        return [np.nan] * 3
    position = control.get("position")
    if not isinstance(position, list) or len(position) != 3:
        raise InputError(f"{where}: has no position. Place the point or delete it.")
    return [number(value, where) for value in position]


def _objects(content: object, key: str, where: str) -> list[dict[str, Any]]:
    """The list of objects under `key` of a JSON object."""
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InputError(f"{where}: has no list '{key}', so it is not a markups file of 3D Slicer.")
    return found
