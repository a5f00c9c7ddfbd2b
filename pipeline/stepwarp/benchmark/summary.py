"""From cases to numbers: one row per case, one summary per method, the difference to a baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stepwarp.benchmark.statistics import METRICS, TEST, compared, described
from stepwarp.evaluation.bootstrap import INTERVAL
from stepwarp.files.tables import csv_text, guarded
from stepwarp.printable import counted

#: Where a case says a metric: the keys to follow, and what to multiply by.
_FOUND: Mapping[str, tuple[tuple[str, ...], float]] = {
    "mean_dice": (("evaluation", "mean_dice"), 1),
    "mean_hd95_mm": (("evaluation", "mean_hd95_mm"), 1),
    "mean_asd_mm": (("evaluation", "mean_asd_mm"), 1),
    "tre_mm": (("evaluation", "tre_mm", "mean"), 1),
    "folds_percent": (("evaluation", "folds", "share"), 100),
    "corner_folds": (("evaluation", "corner_folds", "count"), 1),
    "ndv_percent": (("evaluation", "ndv", "percent"), 1),
    "std_log_jacobian": (("evaluation", "std_log_jacobian"), 1),
    "inverse_mean_mm": (("evaluation", "inverse_mm", "mean"), 1),
    "inverse_p95_mm": (("evaluation", "inverse_mm", "p95"), 1),
    "seconds": (("run", "seconds"), 1),
    "cpu_seconds": (("run", "cpu_seconds"), 1),
    "peak_mib": (("run", "peak_mib"), 1),
    "lncc_after": (("evaluation", "similarity", "after", "lncc"), 1),
}
#: Metrics of a label that are averaged over a group of labels, and what the average is called.
_OF_LABELS = {"dice": "mean_dice", "hd95_mm": "mean_hd95_mm"}
#: Metrics that a label has only while its surface is there.
_OF_SURFACES = ("mean_hd95_mm", "mean_asd_mm")
#: By the first of these that a case has it is put before a better one.
_WORST_BY = ("mean_dice", "tre_mm", "lncc_after")

#: Metric -> heading and format in table.md.
_COLUMNS = {
    "mean_dice": ("Dice", ".4f"),
    "mean_hd95_mm": ("HD95 mm", ".2f"),
    "mean_asd_mm": ("ASD mm", ".3f"),
    "tre_mm": ("TRE mm", ".2f"),
    "folds_percent": ("folds %", ".4f"),
    "corner_folds": ("one-sided folds", ".1f"),
    "ndv_percent": ("NDV %", ".4f"),
    "std_log_jacobian": ("std log J", ".3f"),
    "inverse_mean_mm": ("inverse mm, mean", ".3f"),
    "inverse_p95_mm": ("inverse mm, 95 %", ".3f"),
    "lncc_after": ("LNCC", ".3f"),
    "seconds": ("seconds", ".1f"),
    "cpu_seconds": ("CPU seconds", ".1f"),
    "peak_mib": ("peak MiB", ".0f"),
}
#: What is compared with the baseline in table.md; summary.json compares every metric.
_COMPARED = ("mean_dice", "tre_mm", "mean_hd95_mm", "seconds")


def summarise(
    cases: Sequence[Mapping[str, Any]],
    *,
    manifest: Mapping[str, Any],
    titles: Mapping[str, str],
    baseline: str,
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """What summary.json holds.

    cases: as their files. manifest: {name, split, pairs: [ids], label_groups: {name: labels}}. titles: method ->
    title, in the order of the tables; cases of other methods are left out. A method is compared with the baseline on
    the pairs where both have the metric."""
    chosen = {name: [case for case in cases if case["method"] == name] for name in titles}
    chosen = {name: found for name, found in chosen.items() if found}
    rows = {name: [row(case) for case in found] for name, found in chosen.items()}
    return {
        "manifest": dict(manifest),
        "baseline": baseline,
        "environment": dict(environment),
        "notes": _notes(cases, baseline),
        "statistics": {"ci95": INTERVAL, "p_wilcoxon": TEST, "higher_is_better": dict(METRICS)},
        "methods": {name: _method(titles[name], found, rows, name, baseline) for name, found in chosen.items()},
        "groups": {group: _group(chosen, set(labels), baseline) for group, labels in manifest["label_groups"].items()},
        "cases": [one for found in rows.values() for one in sorted(found, key=_worst_first)],
    }


def row(case: Mapping[str, Any]) -> dict[str, Any]:
    """A case as one row: pair, method, status, the reason if it is not done, and the metrics it has."""
    flat = {key: case[key] for key in ("pair", "method", "status", "reason") if key in case}
    for metric, (keys, factor) in _FOUND.items():
        value: Any = case
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and not (metric in _OF_SURFACES and _leaves_out_lost(case)):
            flat[metric] = value * factor
    return flat


def _leaves_out_lost(case: Mapping[str, Any]) -> bool:
    """Whether a case was judged when distances of lost labels did not count: its means are over other structures."""
    evaluation = case.get("evaluation", {})
    lost = evaluation.get("surfaces_scored", 0) < evaluation.get("labels_scored", 0)
    return lost and "surfaces_penalised" not in evaluation


def csv_of(summary: Mapping[str, Any]) -> str:
    """The rows of a summary as CSV, safe to open in a spreadsheet."""
    columns = ("pair", "method", "status", *METRICS, "reason")
    rows = [[_cell(case.get(column, "")) for column in columns] for case in summary["cases"]]
    return csv_text([columns, *rows])


def table_of(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown: means, what is different from the baseline, and what there is no result of."""
    methods: Mapping[str, Any] = summary["methods"]
    manifest, environment = summary["manifest"], summary["environment"]
    measured = [name for name in _COLUMNS if any(name in method["metrics"] for method in methods.values())]
    split = f", {manifest['split']} split" if manifest["split"] else ""
    lines = [f"### {_text(manifest['name'])}{_text(split)}", ""]
    lines += _markdown(
        ["method", "cases", *(_COLUMNS[name][0] for name in measured)],
        [
            [_text(method["title"]), str(method["cases"]), *(_mean_sd(method["metrics"].get(m), m) for m in measured)]
            for method in methods.values()
        ],
    )
    lines += ["", "Mean over cases ± standard deviation.", *_against(summary), *_without_result(methods)]
    lines += [f"- {_text(note)}" for note in summary["notes"]]
    if environment:
        lines += ["", _where(environment)]
    return "\n".join(lines) + "\n"


def _method(
    title: str, cases: Sequence[Mapping[str, Any]], rows: Mapping[str, list[dict]], name: str, baseline: str
) -> dict[str, Any]:
    absent = [case["reason"] for case in cases if case["status"] == "absent"]
    reference = rows.get(baseline, []) if name != baseline else []
    return {
        "title": title,
        "cases": sum(case["status"] == "done" for case in cases),
        "failed": sum(case["status"] == "failed" for case in cases),
        "absent": absent[0] if len(absent) == len(cases) else None,
        "metrics": _metrics(rows[name], reference, METRICS),
    }


def _metrics(
    rows: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], metrics: Mapping[str, bool]
) -> dict[str, Any]:
    """The summary of each metric that a row has, beside the rows of the baseline."""
    result = {}
    for metric, higher_is_better in metrics.items():
        own, other = ({r["pair"]: float(r[metric]) for r in table if metric in r} for table in (rows, reference))
        if not own:
            continue
        both = [pair for pair in own if pair in other]
        here, there = (np.array([table[pair] for pair in both]) for table in (own, other))
        result[metric] = described(np.array(list(own.values()))) | {
            "against_baseline": compared(here, there, higher_is_better) if both else None
        }
    return result


def _group(chosen: Mapping[str, Sequence[Mapping[str, Any]]], labels: set[int], baseline: str) -> dict[str, Any]:
    """{method: {mean_dice and mean_hd95_mm as in the summary of a method}} over the labels of a group."""
    rows = {name: [_group_row(case, labels) for case in cases] for name, cases in chosen.items()}
    metrics = {name: METRICS[name] for name in _OF_LABELS.values()}
    found = {
        name: _metrics(own, rows.get(baseline, []) if name != baseline else [], metrics) for name, own in rows.items()
    }
    return {name: values for name, values in found.items() if values}


def _group_row(case: Mapping[str, Any], labels: set[int]) -> dict[str, Any]:
    scores = case.get("evaluation", {}).get("labels", {})
    inside = [score for label, score in scores.items() if int(label) in labels]
    flat: dict[str, Any] = {"pair": case["pair"]}
    for key, metric in _OF_LABELS.items():
        values = [score.get(key) for score in inside]
        if values and None not in values:  # else the mean would be over other structures than another method's
            flat[metric] = float(np.mean(values))
    return flat


def _worst_first(one: Mapping[str, Any]) -> tuple[bool, float]:
    """Cases without result come first, then the low of what should be high and the high of what should be low."""
    if one["status"] != "done":
        return False, 0.0
    metric = next((name for name in _WORST_BY if name in one), None)
    return True, 0.0 if metric is None else one[metric] * (1 if METRICS[metric] else -1)


def _notes(cases: Sequence[Mapping[str, Any]], baseline: str) -> list[str]:
    """What makes cases less comparable than they look."""
    runs = [case["run"] for case in cases if "run" in case]
    notes = []
    if any(map(_leaves_out_lost, cases)):
        notes.append("cases judged before lost labels counted have no HD95 and ASD here: judge them again")
    if penalised := _penalised(cases):
        notes.append(penalised)
    if not any(case["method"] == baseline and case["status"] == "done" for case in cases):
        notes.append(f"the baseline {baseline} has no finished case: nothing is compared with it")
    for key in ("cpu", "cores", "device", "threads", "seed", "stepwarp"):
        values = dict.fromkeys(str(run[key]) for run in runs if key in run)
        if len(values) > 1:
            notes.append(f"the cases were run with different {key}: {', '.join(values)}")
    return notes


def _penalised(cases: Sequence[Mapping[str, Any]]) -> str:
    """Which methods lost labels, how many in all; nothing where none was lost."""
    counts: dict[str, int] = {}
    for case in cases:
        counts[case["method"]] = counts.get(case["method"], 0) + case.get("evaluation", {}).get("surfaces_penalised", 0)
    said = ", ".join(f"{count} by {method}" for method, count in counts.items() if count)
    return f"labels lost, with the diagonal of the fixed grid for their HD95 and ASD: {said}" if said else ""


def _against(summary: Mapping[str, Any]) -> list[str]:
    """A line per method and metric, with its difference from the baseline; nothing where nothing is compared."""
    rows = []
    for method in summary["methods"].values():
        for metric in _COMPARED:
            found = method["metrics"].get(metric, {}).get("against_baseline")
            if found:
                title, form = _COLUMNS[metric]
                low, high = found["ci95"] or (None, None)
                extent = "" if low is None else f"{low:+{form}} to {high:+{form}}"
                counts = " / ".join(str(found[key]) for key in ("wins", "losses", "ties"))
                p = f"{found['p_wilcoxon']:.3g}"
                rows.append([_text(method["title"]), title, f"{found['difference']:+{form}}", extent, p, counts])
    if not rows:
        return []
    baseline = summary["methods"].get(summary["baseline"], {}).get("title", summary["baseline"])
    head = ["method", "metric", "difference", "95 % interval", "p", "better / worse / equal"]
    note = f"Differences are of pairs. Interval: {INTERVAL}. p: {TEST}."
    return ["", f"Against {_text(baseline)}:", "", *_markdown(head, rows), "", note]


def _without_result(methods: Mapping[str, Any]) -> list[str]:
    lines = []
    for method in methods.values():
        if method["absent"]:
            lines.append(f"- {_text(method['title'])}: absent, {_text(method['absent'])}")
        if method["failed"]:
            lines.append(f"- {_text(method['title'])}: failed on {method['failed']}")
    return ["", *lines] if lines else []


def _where(environment: Mapping[str, Any]) -> str:
    device = "no GPU" if environment["device"] == "cpu" else environment["device"]
    text = (
        f"{counted(environment['threads'], 'thread')} on {counted(environment['cores'], 'core')} "
        f"({environment['cpu']}), {device}"
    )
    return f"{text}; stepwarp {environment['stepwarp']}, {environment['date']}."


def _mean_sd(metric: Mapping[str, Any] | None, name: str) -> str:
    if metric is None:
        return ""
    form = _COLUMNS[name][1]
    spread = "" if metric["sd"] is None else f" ± {metric['sd']:{form}}"
    return f"{metric['mean']:{form}}{spread}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _text(value: str) -> str:
    """Text that stays one cell of a table."""
    return " ".join(value.replace("|", "\\|").split())


def _cell(value: Any) -> Any:
    return guarded(value) if isinstance(value, str) else value
