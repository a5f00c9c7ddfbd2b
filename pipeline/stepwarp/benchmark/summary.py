"""From cases to numbers: one row per case, one summary per method, the difference to a baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stepwarp.benchmark.statistics import TEST, TEST_ON_PEOPLE, People, added_by_people, compared, described
from stepwarp.evaluation import metrics
from stepwarp.evaluation.bootstrap import INTERVAL, INTERVAL_OVER_PEOPLE
from stepwarp.evaluation.metric import Direction, Metric
from stepwarp.files.tables import csv_text, guarded
from stepwarp.printable import counted

#: Means that, in cases judged when distances of lost labels did not count, are over other structures.
_OF_SURFACES = ("mean_hd95_mm", "mean_asd_mm")
#: On how many pairs a method is better, worse and equal.
_COUNTS = ("wins", "losses", "ties")
#: Whether more of a metric is better, as a summary says it.
_HIGHER: Mapping[Direction, bool | None] = {"higher": True, "lower": False, None: None}


def summarise(
    cases: Sequence[Mapping[str, Any]],
    *,
    manifest: Mapping[str, Any],
    titles: Mapping[str, str],
    baseline: str,
    environment: Mapping[str, Any],
    people: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """What summary.json holds.

    cases: as their files. manifest: {name, split, pairs: [ids], label_groups: {name: labels}}. titles: method ->
    title, in the order of the tables; cases of other methods are left out. A method is compared with the baseline on
    the pairs where both have the metric. people: of each pair; where they are in several, and the pairs tell what each
    of them adds, it is people that intervals and tests are about."""
    by_people = None if people is None or not _tells_people_apart(people) else people
    chosen = {name: [case for case in cases if case["method"] == name] for name in titles}
    chosen = {name: found for name, found in chosen.items() if found}
    rows = {name: [row(case) for case in found] for name, found in chosen.items()}
    return {
        "manifest": dict(manifest),
        "baseline": baseline,
        "environment": dict(environment),
        "notes": _notes(cases, baseline, people if by_people is None else None),
        "statistics": _statistics(by_people is not None),
        "methods": {
            name: _method(titles[name], found, rows, name, baseline, by_people) for name, found in chosen.items()
        },
        "groups": {
            group: _group(chosen, set(labels), baseline, by_people)
            for group, labels in manifest["label_groups"].items()
        },
        "cases": [one for found in rows.values() for one in sorted(found, key=_worst_first)],
    }


def row(case: Mapping[str, Any]) -> dict[str, Any]:
    """A case as one row: pair, method, status, the reason if it is not done, and the metrics it has."""
    flat = {key: case[key] for key in ("pair", "method", "status", "reason") if key in case}
    for metric in metrics.shown("benchmark"):
        value = metric.in_case(case)
        if value is not None and not (metric.key in _OF_SURFACES and _leaves_out_lost(case)):
            flat[metric.key] = value
    return flat


def _tells_people_apart(people: Mapping[str, tuple[str, str]]) -> bool:
    """Whether pairs share people, and say what each of them adds."""
    return _share_people(people) and added_by_people(np.zeros(len(people)), list(people.values())) is not None


def _share_people(people: Mapping[str, tuple[str, str]]) -> bool:
    every = [person for pair in people.values() for person in set(pair)]  # two scans of one person share nobody
    return len(set(every)) < len(every)


def _statistics(by_people: bool) -> dict[str, Any]:
    interval, test = (INTERVAL_OVER_PEOPLE, f"{TEST}, {TEST_ON_PEOPLE}") if by_people else (INTERVAL, TEST)
    return {"ci95": interval, "p_wilcoxon": test, "higher_is_better": _directions()}


def _directions() -> dict[str, bool | None]:
    return {metric.key: _HIGHER[metric.better] for metric in metrics.shown("benchmark")}


def _leaves_out_lost(case: Mapping[str, Any]) -> bool:
    """Whether a case was judged when distances of lost labels did not count: its means are over other structures."""
    evaluation = case.get("evaluation", {})
    lost = evaluation.get("surfaces_scored", 0) < evaluation.get("labels_scored", 0)
    return lost and "surfaces_penalised" not in evaluation


def csv_of(summary: Mapping[str, Any]) -> str:
    """The rows of a summary as CSV, safe to open in a spreadsheet."""
    columns = ("pair", "method", "status", *(metric.key for metric in metrics.shown("benchmark")), "reason")
    rows = [[_cell(case.get(column, "")) for column in columns] for case in summary["cases"]]
    return csv_text([columns, *rows])


def table_of(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown: means, what is different from the baseline, and what there is no result of."""
    methods: Mapping[str, Any] = summary["methods"]
    manifest, environment = summary["manifest"], summary["environment"]
    benchmarked = metrics.shown("benchmark")
    measured = [metric for metric in benchmarked if any(metric.key in method["metrics"] for method in methods.values())]
    split = f", {manifest['split']} split" if manifest["split"] else ""
    lines = [f"### {_text(manifest['name'])}{_text(split)}", ""]
    lines += _markdown(
        ["method", "cases", *(metric.column for metric in measured)],
        [
            [
                _text(method["title"]),
                str(method["cases"]),
                *(_mean_sd(method["metrics"], m) for m in measured),
            ]
            for method in methods.values()
        ],
    )
    lines += ["", "Mean over cases ± standard deviation.", *_against(summary), *_without_result(methods)]
    lines += [f"- {_text(note)}" for note in summary["notes"]]
    if environment:
        lines += ["", _where(environment)]
    return "\n".join(lines) + "\n"


def _method(
    title: str,
    cases: Sequence[Mapping[str, Any]],
    rows: Mapping[str, list[dict]],
    name: str,
    baseline: str,
    people: Mapping[str, tuple[str, str]] | None,
) -> dict[str, Any]:
    absent = [case["reason"] for case in cases if case["status"] == "absent"]
    reference = rows.get(baseline, []) if name != baseline else []
    return {
        "title": title,
        "cases": sum(case["status"] == "done" for case in cases),
        "failed": sum(case["status"] == "failed" for case in cases),
        "absent": absent[0] if len(absent) == len(cases) else None,
        "metrics": _summaries(rows[name], reference, metrics.shown("benchmark"), people),
    }


def _summaries(
    rows: Sequence[Mapping[str, Any]],
    reference: Sequence[Mapping[str, Any]],
    wanted: Iterable[Metric],
    people: Mapping[str, tuple[str, str]] | None,
) -> dict[str, Any]:
    """The summary of each metric that a row has, beside the rows of the baseline."""
    result = {}
    for metric in wanted:
        key = metric.key
        own, other = ({r["pair"]: float(r[key]) for r in table if key in r} for table in (rows, reference))
        if not own:
            continue
        both = [pair for pair in own if pair in other]
        here, there = (np.array([table[pair] for pair in both]) for table in (own, other))
        result[key] = described(np.array(list(own.values())), _of(people, own)) | {
            "against_baseline": compared(here, there, metric.better, _of(people, both)) if both else None
        }
    return result


def _of(people: Mapping[str, tuple[str, str]] | None, pairs: Iterable[str]) -> People | None:
    return None if people is None else [people[pair] for pair in pairs]


def _group(
    chosen: Mapping[str, Sequence[Mapping[str, Any]]],
    labels: set[int],
    baseline: str,
    people: Mapping[str, tuple[str, str]] | None,
) -> dict[str, Any]:
    """{method: {each metric that labels have, as in the summary of a method}} over the labels of a group."""
    rows = {name: [_group_row(case, labels) for case in cases] for name, cases in chosen.items()}
    found = {
        name: _summaries(own, rows.get(baseline, []) if name != baseline else [], _of_labels(), people)
        for name, own in rows.items()
    }
    return {name: values for name, values in found.items() if values}


def _group_row(case: Mapping[str, Any], labels: set[int]) -> dict[str, Any]:
    scores = case.get("evaluation", {}).get("labels", {})
    inside = [score for label, score in scores.items() if int(label) in labels]
    flat: dict[str, Any] = {"pair": case["pair"]}
    for metric in _of_labels():
        values = [score.get(metric.of_label) for score in inside]
        if values and None not in values:  # else the mean would be over other structures than another method's
            flat[metric.key] = float(np.mean(values))
    return flat


def _of_labels() -> list[Metric]:
    return [metric for metric in metrics.shown("benchmark") if metric.of_label]


def _worst_first(one: Mapping[str, Any]) -> tuple[bool, float]:
    """Cases without result come first, then the worst by the first measure of accuracy that a case has."""
    if one["status"] != "done":
        return False, 0.0
    metric = next((metric for metric in metrics.of_family("accuracy") if metric.key in one), None)
    return True, 0.0 if metric is None else one[metric.key] * (1 if metric.better == "higher" else -1)


def _notes(
    cases: Sequence[Mapping[str, Any]], baseline: str, people: Mapping[str, tuple[str, str]] | None
) -> list[str]:
    """What makes cases less comparable than they look. people: of each pair, where nothing tells them apart."""
    runs = [case["run"] for case in cases if "run" in case]
    notes = []
    if people is not None and _share_people(people):
        notes.append("pairs share people, and are too few to tell: intervals and tests take them for independent")
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
        for metric in metrics.shown("against"):
            found = method["metrics"].get(metric.key, {}).get("against_baseline")
            if found:
                extent = " to ".join(metric.plain(end, signed=True) for end in found["ci95"] or ())
                counts = " / ".join("-" if found[key] is None else str(found[key]) for key in _COUNTS)
                p = "" if found["p_wilcoxon"] is None else f"{found['p_wilcoxon']:.3g}"
                difference = metric.plain(found["difference"], signed=True)
                rows.append([_text(method["title"]), metric.column, difference, extent, p, counts])
    if not rows:
        return []
    baseline = summary["methods"].get(summary["baseline"], {}).get("title", summary["baseline"])
    head = ["method", "metric", "difference", "95 % interval", "p", "better / worse / equal"]
    statistics = summary["statistics"]
    note = f"Differences are of pairs. Interval: {statistics['ci95']}. p: {statistics['p_wilcoxon']}."
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


def _mean_sd(summaries: Mapping[str, Any], metric: Metric) -> str:
    found = summaries.get(metric.key)
    if found is None:
        return ""
    spread = "" if found["sd"] is None else f" ± {metric.plain(found['sd'])}"
    return f"{metric.plain(found['mean'])}{spread}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _text(value: str) -> str:
    """Text that stays one cell of a table."""
    return " ".join(value.replace("|", "\\|").split())


def _cell(value: Any) -> Any:
    return guarded(value) if isinstance(value, str) else value
