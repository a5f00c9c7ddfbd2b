"""Write the tables of the README and the guide from the committed results.

python benchmarks/readme.py            # rewrite the blocks between the markers
python benchmarks/readme.py --check    # exit 1 if it would change: what the tests run"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepwarp.evaluation.metrics import METRICS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

#: Methods in the README, in the order of their seconds; the tables of `results/` have more.
_METHODS = {
    "ants-affine": "ANTs affine",
    "stepwarp-affine": "**stepwarp** `--affine-only`",
    "simpleitk-demons": "SimpleITK demons",
    "ants-syn": "ANTs `SyN`, the ANTsPy default",
    "ants-syn-quick": "ANTs `antsRegistrationSyNQuick[s]`",
    "ants-syn-best": "ANTs `antsRegistrationSyN[s]`",
    "stepwarp-fast": "**stepwarp** `fast`",
    "stepwarp-default": "**stepwarp** `default`",
    "stepwarp-best": "**stepwarp** `best`",
    "stepwarp-network": "**stepwarp** `--weights brain-t1 --no-refine`",
    "stepwarp-labels": "**stepwarp** `--weights brain-t1-labels --no-refine`",
    "stepwarp-labels-default": "**stepwarp** `--weights brain-t1-labels`, `default`",
    "stepwarp-labels-best": "**stepwarp** `--weights brain-t1-labels`, `best`",
    "stepwarp-ct": "**stepwarp** `ct`",
}
#: What the pairs of the chest are called in the guide.
_CHEST = {"same_scan": "the same scan, breathed out: TRE mm", "other_scan": "another scan: TRE mm"}

#: Metric of summary.json -> its format here; folds are summed over the pairs, the rest are means.
_COLUMNS = {
    "mean_dice": ".3f",
    "mean_hd95_mm": ".2f",
    "tre_mm": ".2f",
    "std_log_jacobian": ".2f",
    "corner_folds": ".0f",
    "inverse_p95_mm": ".2f",
    "seconds": ".3g",
    "cpu_seconds": ".3g",
    "peak_mib": ".0f",
}
#: What is trivial of an affine.
_OF_A_DEFORMATION = ("std_log_jacobian", "corner_folds", "inverse_p95_mm")


def chest() -> str:
    """The guide's table, as it belongs between the markers: landmarks of each pair, and what both cost in the mean."""
    cases = [row for row in _summary("chest")["cases"] if row["status"] == "done"]
    costs = {metric: _COLUMNS[metric] for metric in ("std_log_jacobian", "cpu_seconds")}
    lines = [["", *_CHEST.values(), *(METRICS[metric].column for metric in costs)], ["---"] * (len(_CHEST) + 3)]
    for method in ("identity", *_METHODS):
        rows = {row["pair"]: row for row in cases if row["method"] == method}
        if len(rows) == len(_CHEST):
            errors = [_cell([rows[pair]], "tre_mm", ".2f") for pair in _CHEST]
            name = _METHODS.get(method, "before")
            lines.append([name, *errors, *(_cell(list(rows.values()), *column) for column in costs.items())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def memory() -> str:
    """The guide's table of what a pair of 0.5 mm takes."""
    return (RESULTS / "half_millimetre" / "table.md").read_text()


def readme() -> str:
    """The README's tables, as they belong between the markers."""
    oasis, templates = _summary("oasis"), _summary("templates")
    pairs, slow = (_done(oasis["cases"], method) for method in ("stepwarp-default", "ants-syn-best"))
    machine = oasis["environment"]
    parts = [
        f"{len(pairs)} pairs of brains of different people (OASIS, 132 manual labels; means over pairs; corner "
        "folds are voxels that fold by a one-sided difference, summed):",
        _table(oasis["cases"], pairs, leave_out=("tre_mm",)),
        *_where_the_slow_preset_ran(oasis["cases"], pairs, slow),
        *_network(),
        "The pair among them with 30 human landmarks:",
        _table(oasis["cases"], ["1013_1019"], leave_out=("mean_hd95_mm", "peak_mib")),
        "Colin27 to MNI152, 32 human landmarks:",
        _table(templates["cases"], ["mni2009c_colin27"], leave_out=("mean_dice", "mean_hd95_mm")),
        f"{machine['threads']} threads on {machine['cores']} cores ({machine['cpu']}), no GPU. By `stepwarp "
        "benchmark`, from the files that each method wrote; [how](benchmarks/README.md). Other work shared the "
        "machine: compare the processor's seconds, not the clock's.",
    ]
    return "\n\n".join(parts) + "\n"


def _network() -> list[str]:
    """Dice and time of each setting, from the affine on and from the network on."""
    result = json.loads((RESULTS / "network_time" / "results.json").read_text())
    rows = result["settings"]
    cells = {row["setting"]: f"{row['mean_dice']:.3f} in {row['cpu_seconds']:.1f} s" for row in rows}
    after = [row["setting"] for row in rows if not row["network"] and row["setting"] != "affine"]
    without = ["affine alone", cells["affine"], *(cells[name] for name in after)]
    following = [
        [f"`{name}` first", cells[name], *(cells[f"{name} + {preset}"] for preset in after)]
        for name in result["weights"]
    ]
    lines = [["", "nothing", *after], ["---"] * (len(after) + 2), without, *following]
    commit = result["machine"]["commit"].split("-")[0]
    return [
        "What the network adds: mean Dice of the same pairs and processor seconds of the whole, followed by "
        f"([curve](benchmarks/results/network_time/curve.png); measured at {commit}, "
        "later changes of presets and weights are in the table above):",
        "\n".join("| " + " | ".join(line) + " |" for line in lines),
    ]


def _done(cases: list[dict[str, Any]], method: str) -> list[str]:
    return [row["pair"] for row in cases if row["method"] == method and row["status"] == "done"]


def _where_the_slow_preset_ran(cases: list[dict[str, Any]], pairs: list[str], slow: list[str]) -> list[str]:
    """A table of its own, as long as ANTs' slow preset has not been run on all pairs."""
    if len(slow) == len(pairs):
        return []
    methods = ("ants-syn-best", "stepwarp-fast", "stepwarp-default", "stepwarp-best")
    return [f"The {len(slow)} of them that ANTs' slow preset was run on:", _table(cases, slow, ("tre_mm",), methods)]


def _summary(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name / "summary.json").read_text())


def _table(
    cases: list[dict[str, Any]],
    pairs: list[str],
    leave_out: tuple[str, ...],
    methods: Iterable[str] = tuple(_METHODS),
) -> str:
    """One row per method that was run on all of the pairs."""
    columns = {metric: form for metric, form in _COLUMNS.items() if metric not in leave_out}
    lines = [
        "| | " + " | ".join(METRICS[metric].column for metric in columns) + " |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for method in methods:
        rows = [row for row in cases if row["method"] == method and row["pair"] in pairs and row["status"] == "done"]
        if len(rows) == len(pairs):
            lines.append(
                "| " + " | ".join([_METHODS[method], *(_cell(rows, *column) for column in columns.items())]) + " |"
            )
    return "\n".join(lines)


def _cell(rows: list[dict[str, Any]], metric: str, form: str) -> str:
    values = [row[metric] for row in rows if metric in row]
    nothing_to_say = metric in _OF_A_DEFORMATION and rows[0]["method"].endswith("affine")
    if nothing_to_say or len(values) < len(rows):
        return ""
    value = sum(values) if metric == "corner_folds" else sum(values) / len(values)
    return f"{value:.0f}" if value >= 100 else format(value, form)


def _with_tables(text: str, mark: str, tables: str) -> str:
    block = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    return block.sub(lambda found: found[1] + tables + found[2], text)


def main() -> None:
    blocks = [
        ("README.md", "results", readme),
        ("docs/guide.md", "results", chest),
        ("docs/guide.md", "memory", memory),
    ]
    for name, mark, block in blocks:
        before = (ROOT / name).read_text()
        after = _with_tables(before, mark, block())
        if "--check" not in sys.argv:
            (ROOT / name).write_text(after)
        elif before != after:
            sys.exit(f"{name}: its tables are not those of the results; run benchmarks/readme.py")


if __name__ == "__main__":
    main()
