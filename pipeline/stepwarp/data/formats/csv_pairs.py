"""CSV tables with a pair in each line."""

from __future__ import annotations

import difflib
from typing import Any

from stepwarp.data.formats.draft import Draft
from stepwarp.errors import InputError
from stepwarp.files import unbracketed
from stepwarp.files.tables import parse_table
from stepwarp.options import START_WORDS

_SIDES = ("fixed", "moving")
_FACTS = ("labels", "mask", "landmarks", "subject")
_OF_THE_PAIR = ("id", "fixed", "moving", "split", "landmark_space", "initial")
COLUMNS = (*_OF_THE_PAIR, *(f"{side}_{fact}" for fact in _FACTS for side in _SIDES))


def read_csv(text: str, draft: Draft) -> None:
    """Collect the pairs of a table. The columns fixed and moving are needed, the others of COLUMNS may be there.

    The split of a line is its scans' too, except for an image that is in every line of several splits."""
    table = parse_table(text, str(draft.source))
    _check_columns(table.columns, draft)
    for line, row in table.rows:
        where = f"line {line}"
        pair: dict[str, Any] = {key: row[key] for key in ("id", "split") if row.get(key)}
        if row.get("initial"):
            pair["initial"] = _start(row["initial"], draft, where)
        for side in _SIDES:
            facts = {fact: value for fact in _FACTS if (value := row.get(f"{side}_{fact}"))}
            paths = {fact: draft.path(value, where) for fact, value in facts.items() if fact != "subject"}
            if "landmarks" in facts and row.get("landmark_space"):
                facts["landmark_space"] = row["landmark_space"].lower()
            pair[side] = draft.scan(draft.path(row[side], where), where, **(facts | paths))
        draft.pairs.append(pair)
    atlas = draft.shared_by_all_pairs() if len({pair.get("split") for pair in draft.pairs}) > 1 else set()
    for pair in draft.pairs:
        for side in _SIDES:
            if pair[side] not in atlas:
                draft.scan(pair[side], f"pair {pair.get('id', pair[side])}", split=pair.get("split"))


def _start(listed: str, draft: Draft, where: str) -> str:
    """A cell of the column initial, with its path below the data root."""
    path, inverted = unbracketed(listed)
    if path in START_WORDS:
        return path
    below = draft.path(path, where)
    return f"[{below},1]" if inverted else below


def _check_columns(columns: tuple[str, ...], draft: Draft) -> None:
    missing = [side for side in _SIDES if side not in columns]
    if missing:
        raise InputError(f"{draft.source}: has no column '{missing[0]}'. A table of pairs has {', '.join(COLUMNS)}.")
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], COLUMNS, 1)
        hint = f"Did you mean '{near[0]}'?" if near else f"There are {', '.join(COLUMNS)}."
        raise InputError(f"{draft.source}: unknown column '{unknown[0]}'. {hint}")
