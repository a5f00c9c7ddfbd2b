"""The point lists of 3D Slicer, .fcsv and .mrk.json. They state their world; both are written as LPS, Slicer's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from stepwarp.errors import InputError
from stepwarp.files.json import parse_json
from stepwarp.files.lps import flip_vectors
from stepwarp.files.tables import Space, csv_text, guarded, number, parse_headless, space_named, to_ras

_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
#: What to do about a file that does not state its world.
_STATE_IN_FCSV = "Add a line '# CoordinateSystem = LPS' (or RAS) at its head"
_STATE_IN_MARKUPS = 'Add "coordinateSystem": "LPS" (or "RAS") beside its controlPoints'
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


def parse_fcsv(text: str, file: str, space: Space | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Names (labels) and points (N, 3) RAS mm. space: needed where the file states none."""
    table = parse_headless(text, file, _FCSV_COLUMNS)
    if not table.has("xyz"):
        raise InputError(f"{file}: its line '# columns' names no x, y, z. Export it again.")
    return table.names(), to_ras(
        table.numbers("xyz"), table.stated_space("coordinatesystem"), space, file, _STATE_IN_FCSV
    )


def parse_markups(text: str, file: str, space: Space | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Names (labels) and points (N, 3) RAS mm of all point lists. space: needed where a list states none."""
    content = parse_json(text, file)
    names: list[str] = []
    points = [np.empty((0, 3))]
    for count, markup in enumerate(_objects(content, "markups", file), 1):
        list_names, list_points = _point_list(markup, f"{file}, markup {count}", space)
        names += list_names
        points.append(list_points)
    return tuple(names), np.concatenate(points)


def fcsv_text(names: Sequence[str], points: np.ndarray) -> str:
    """The content of an .fcsv from RAS mm points (N, 3)."""
    head = f"# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n# columns = {_FCSV_COLUMNS}\n"
    rows = (
        (n, *point, 0, 0, 0, 1, 1, 1, 0, guarded(name), "", "")
        for n, (name, point) in enumerate(zip(names, flip_vectors(points).tolist(), strict=True), 1)
    )
    return head + csv_text(rows)


def markups_text(names: Sequence[str], points: np.ndarray) -> str:
    """The content of a .mrk.json with one point list from RAS mm points (N, 3)."""
    controls = [
        {"id": str(n), "label": name, "position": point, "positionStatus": "defined"}
        for n, (name, point) in enumerate(zip(names, flip_vectors(points).tolist(), strict=True), 1)
    ]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": controls}
    return json.dumps({"@schema": _SCHEMA, "markups": [markup]}, indent=1, ensure_ascii=False) + "\n"


def _point_list(markup: dict[str, Any], where: str, space: Space | None) -> tuple[list[str], np.ndarray]:
    kind, units = markup.get("type", "Fiducial"), markup.get("coordinateUnits", "mm")
    if kind != "Fiducial":
        raise InputError(f"{where}: is of type {kind}, not a point list (Fiducial).")
    if units not in ("mm", ["mm"] * 3):
        raise InputError(f"{where}: is measured in {units}. Export it in mm.")
    controls = _objects(markup, "controlPoints", where)
    positions = [_position(control, f"{where}, point {n}") for n, control in enumerate(controls, 1)]
    stated = markup.get("coordinateSystem")
    stated = None if stated is None else space_named(str(stated), f"{where}, coordinateSystem")
    names = [str(control.get("label") or control.get("id") or n) for n, control in enumerate(controls, 1)]
    return names, to_ras(np.reshape(positions, (-1, 3)), stated, space, where, _STATE_IN_MARKUPS)


def _position(control: dict[str, Any], where: str) -> list[float]:
    position = control.get("position")
    if control.get("positionStatus", "defined") != "defined" or not isinstance(position, list) or len(position) != 3:
        raise InputError(f"{where}: has no position. Place the point or delete it.")
    return [number(value, where) for value in position]


def _objects(content: object, key: str, where: str) -> list[dict[str, Any]]:
    """The list of objects under `key` of a JSON object."""
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InputError(f"{where}: has no list '{key}', so it is not a markups file of 3D Slicer.")
    return found
