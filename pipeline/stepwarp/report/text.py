"""Records as text: numbers, nested tables, and a paragraph for a paper. Whatever is returned as HTML is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from stepwarp.printable import counted, worded

#: A group of more rows than this starts folded.
FOLDED = 14


def plain(value: Any) -> str:
    """A value of a record as people write it: four digits, yes or no, a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{label(key)} {plain(item)}" for key, item in value.items()) or "-"
    return str(value)


def label(key: object) -> str:
    """A key of a record in words."""
    return str(key).replace("_", " ")


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The (path of labels, text) of every leaf of a nested record, in order."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, label(key)))
    else:
        yield path, plain(value)


def record_table(record: Mapping[str, Any]) -> str:
    """A nested record as one table, a heading per nested key of the first level; long groups start folded."""
    single = {key: value for key, value in record.items() if not isinstance(value, Mapping)}
    groups = {key: value for key, value in record.items() if isinstance(value, Mapping)}
    return (_rows(single) if single else "") + "".join(_group(label(key), value) for key, value in groups.items())


def _group(title: str, record: Mapping[str, Any]) -> str:
    count = sum(1 for _ in leaves(record))
    if count <= FOLDED:
        return f"<h3>{escape(title)}</h3>{_rows(record)}"
    return (
        f"<details><summary>{escape(title)} <small>{counted(count, 'value')}</small></summary>{_rows(record)}</details>"
    )


def _rows(record: Mapping[str, Any]) -> str:
    rows = (f"<tr><th>{escape(' · '.join(path))}</th><td>{escape(text)}</td></tr>" for path, text in leaves(record))
    return f"<table>{''.join(rows)}</table>"


def before_after_table(rows: Mapping[str, tuple[Any, Any]]) -> str:
    """Rows of label -> (before, after) as a table."""
    body = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(plain(before))}</td><td><b>{escape(plain(after))}</b></td></tr>"
        for name, (before, after) in rows.items()
    )
    return f"<table><thead><tr><th></th><td>before</td><td>after</td></tr></thead><tbody>{body}</tbody></table>"


def stage_bars(stages: list[Mapping[str, Any]]) -> str:
    """Seconds and peak memory per stage as horizontal bars."""
    longest = max((stage["seconds"] for stage in stages), default=0) or 1
    return "".join(
        f'<div class="bar"><span>{escape(label(stage["name"]))}</span>'
        f'<i style="--share:{stage["seconds"] / longest:.4f}"></i>'
        f"<span>{stage['seconds']:.1f} s</span><span>{stage['peak_mib']:,.0f} MiB</span></div>"
        for stage in stages
    )


def methods(record: Mapping[str, Any], fixed: str, moving: str, grid: str) -> str:
    """What was done, as a paragraph of plain text for a paper; says only what the record holds."""
    name = f"stepwarp {plain(record['version'])}" if "version" in record else "stepwarp"
    sentences = [
        f"{moving} was registered to {fixed} ({grid}) with {name}.",
        _further_sentence(record),
        _start_sentence(record),
        _stages_sentence(record),
        _network_sentence(record),
        "The transform maps points of the fixed image to points of the moving image; the moving image was interpolated "
        f"once, {_interpolated(record)}, through the composed transform.",
        _run_sentence(record),
    ]
    return " ".join(filter(None, sentences))


def _interpolated(record: Mapping[str, Any]) -> str:
    cubic = record.get("settings", {}).get("interpolation") == "cubic"
    return "by cubic B-splines" if cubic else "linearly"


def _further_sentence(record: Mapping[str, Any]) -> str:
    further = record.get("further")
    if not further:
        return ""
    compared = (
        f"by {plain(pair['similarity'])}, with a weight of {plain(pair['weight'])}" for pair in further.values()
    )
    more = f"{counted(len(further), 'more pair')} of images of the same subjects"
    return f"{more} drove it as well, compared {', and '.join(compared)}."


def _start_sentence(record: Mapping[str, Any]) -> str:
    start = record.get("initial")
    if not start:
        return ""
    given = ", then ".join(Path(file["path"]).name for file in start["files"] if file["path"]) or start["name"]
    became = "refined" if start["refined"] else "kept"
    return f"It began at a {start['kind']} transform that was given ({given}), whose linear part was {became}."


def _stages_sentence(record: Mapping[str, Any]) -> str:
    names = [label(stage["name"]) for stage in record.get("stages", [])]
    rows = record.get("loss", [])
    levels = list(dict.fromkeys(f"{row['level_mm']:g}" for row in rows if row["level_mm"] is not None))
    if not names:
        return ""
    resolutions = (
        f", at resolutions of {', '.join(levels)} mm and {counted(len(rows), 'iteration')} in all" if levels else ""
    )
    return f"It ran in {counted(len(names), 'stage')} ({', '.join(names)}){resolutions}."


def _network_sentence(record: Mapping[str, Any]) -> str:
    network = record.get("network")
    if not network or not network["used"]:
        return ""
    known = "" if network["sha256"] is None else f" (weights with the SHA-256 {network['sha256']})"
    refined = ", from which the optimisation went on" if record.get("loss") else ""
    return (
        f"The network {network['name']}{known} found the deformation in {plain(network['steps'])} "
        f"{worded(network['steps'], 'step')}{refined}."
    )


def _run_sentence(record: Mapping[str, Any]) -> str:
    if not record.keys() >= {"stages", "device", "threads"}:
        return ""
    seconds = sum(stage["seconds"] for stage in record["stages"])
    return (
        f"The computation took {seconds:.0f} s on {plain(record['device'])} with {plain(record['threads'])} "
        f"{worded(record['threads'], 'thread')}."
    )
