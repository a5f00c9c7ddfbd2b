"""Is a failed registration known? Verdicts on pairs that are spoilt in many ways, and on good ones.

    python benchmarks/verdicts.py calibrate [--data FOLDER]    # training pairs: the limits of workflow/verdict.py
    python benchmarks/verdicts.py [--data FOLDER]              # validation pairs and others: what those limits achieve

Brains of OASIS at 2 mm, preset fast, one thread; the moving one is spoilt as made_to_fail.py says. What really failed
is told by the labels: a mean Dice below FAILED of what the pair reaches unspoilt; above GOOD it is good, between the
two it counts for neither. Registrations that are done are kept (benchmarks/work/verdicts) and judged anew. Writes
results/verdicts/{verdicts.json, table.md}."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import stepwarp  # before torch
from stepwarp.data.manifest import Pair, Scan, data_root, pairs, read_manifest
from stepwarp.errors import StepwarpError
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_image, read_labels, write_text
from stepwarp.files.json import write_json
from stepwarp.geometry import Affine, Image, LabelMap
from stepwarp.geometry.orientation import canonical
from stepwarp.machine import machine
from stepwarp.workflow.verdict import judge

from made_to_fail import WAYS, torso  # isort: skip

HERE = Path(__file__).parent
WORK, OUT = HERE / "work" / "verdicts", HERE / "results" / "verdicts"
FAILED, GOOD = 0.75, 0.9
UNSPOILT = "as it is"
#: How many of the pairs are spoilt, each in every way.
SPOILT = {"training": 4, "validation": 6}
#: Pairs of other kinds that are taken to be registered well, for nobody has labelled them: fixed, moving, similarity.
OTHERS = {
    "Colin27, MNI152": ("templates/tpl-MNIColin27_brain_T1w", "templates/tpl-MNI152NLin2009cAsym_brain_T1w", "auto"),
    "T1, T2 of an average brain, mi": ("multimodal/avg152T1", "multimodal/avg152T2", "mi"),
    "T1, PD of an average brain, mi": ("multimodal/avg152T1", "multimodal/avg152PD", "mi"),
    "two whole heads": ("wholehead/1000_T1w_2mm", "wholehead/1001_T1w_2mm", "auto"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["calibrate", "report"], default="report")
    parser.add_argument("--data", type=Path, help="the data root; $STEPWARP_DATA by default")
    arguments = parser.parse_args()
    root = data_root(arguments.data, "oasis")
    for folder in (WORK, OUT):
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.what == "calibrate":
        print(json.dumps(calibration(list(cases("training", root))), indent=1))
        return
    rows = [*cases("validation", root), *others(root)]
    content = {
        "preset": "fast",
        "spacing_mm": 2,
        "failed_below": FAILED,
        "good_from": GOOD,
        "machine": machine(threads=1),
        "calibration": calibration(list(cases("training", root, only_kept=True))),
        "summary": summary(rows),
        "cases": rows,
    }
    write_json(OUT / "verdicts.json", content, overwrite=True)
    write_text(OUT / "table.md", table(content["summary"]), overwrite=True)
    print(table(content["summary"]))


def cases(split: str, root: Path, only_kept: bool = False) -> Iterator[dict[str, Any]]:
    """Every pair as it is, and the first ones spoilt in every way. Training pairs are tried once, as limits are for the
    first try."""
    all_pairs = pairs(read_manifest("oasis"), root, split)
    for number, pair in enumerate(all_pairs):
        ways = {UNSPOILT: lambda *scan: scan} | (WAYS if number < SPOILT[split] else {})
        best = None
        for way, spoil in ways.items():
            path = WORK / f"{pair.id}__{way.replace(' ', '-').replace(chr(39), '')}.json"
            if not path.exists() and not only_kept:
                row = register(pair, spoil, escalate=split == "validation") | {"pair": pair.id, "way": way}
                write_json(path, row)
            if path.exists():
                row = judged(json.loads(path.read_text()))
                best = row["dice"] if way == UNSPOILT else best
                yield row | {"truth": truth(row["dice"], best)}


def register(pair: Pair, spoil: Any, escalate: bool) -> dict[str, Any]:
    fixed, fixed_labels = scan(pair.fixed)
    moving, moving_labels = spoil(*scan(pair.moving))
    found = attempt(fixed, moving, "auto", escalate)
    if "refused" in found:
        return found | {"dice": 0.0}
    transform = found.pop("transform")
    scores = dice(fixed_labels, moving_labels.warp(transform, fixed.grid), pair.ignore_labels)
    return found | {"dice": round(mean_dice(scores), 4)}


def attempt(fixed: Image, moving: Image, similarity: Any, escalate: bool) -> dict[str, Any]:
    """The transform with what the record says of it; or why there is none, which is the clearest of verdicts."""
    try:
        found = stepwarp.register(
            fixed, moving, preset="fast", similarity=similarity, escalate=escalate, threads=1, device="cpu"
        )
    except StepwarpError as error:
        return {"refused": str(error)}
    kept = {key: found.record[key] for key in ("measures", "escalation")}
    return kept | {"transform": found.transform, "similarity": similarity}


def others(root: Path) -> Iterator[dict[str, Any]]:
    """The good pairs without labels, and a trunk in place of one of the heads."""
    for title, (fixed, moving, similarity) in OTHERS.items():
        yield other(title, root / f"{fixed}.nii.gz", root / f"{moving}.nii.gz", similarity, "good")
    head = root / "wholehead/1000_T1w_2mm.nii.gz"
    yield other("a whole head, a torso phantom", head, None, "auto", "failed")


def other(title: str, fixed: Path, moving: Path | None, similarity: str, known: str) -> dict[str, Any]:
    path = WORK / f"{title.replace(' ', '-').replace(',', '')}.json"
    if not path.exists():
        a = at_2_mm(read_image(fixed))
        b = torso(a, LabelMap(a.data.int(), a.grid))[0] if moving is None else at_2_mm(read_image(moving))
        row = attempt(a, b, similarity, escalate=True)
        row.pop("transform", None)
        write_json(path, row | {"pair": title, "way": title, "dice": None})
    return judged(json.loads(path.read_text())) | {"truth": known}


def scan(of: Scan) -> tuple[Image, LabelMap]:
    assert of.labels is not None
    image = at_2_mm(read_image(of.image))
    return image, read_labels(of.labels).warp(Affine.identity(3), image.grid)


def at_2_mm(image: Image) -> Image:
    image = canonical(image)
    return image.coarser(max(1, round(2 / float(image.grid.spacing.mean()))))


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """A kept row with today's verdicts on what was measured: on the first try, and on what was kept in the end."""
    if "refused" in row:
        return row | {"first": "fail", "verdict": "fail"}
    multimodal = row["similarity"] == "mi"
    tried = (row["escalation"] or {}).get("first")
    first = row["measures"] if tried is None else tried["measures"]
    return row | {
        "first": judge(first, multimodal=multimodal)["status"],
        "verdict": judge(row["measures"], multimodal=multimodal)["status"],
    }


def truth(found: float, best: float | None) -> str:
    assert best is not None
    return "failed" if found < FAILED * best else "good" if found >= GOOD * best else "worse"


def calibration(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The ranges of what the verdict looks at, of the good and of the failed pairs; mirrored brains apart, since no
    measure tells them from others."""
    keys = {
        "information after the linear transform": lambda m: m["information"]["affine"],
        "information in the end": lambda m: m["information"]["final"],
        "stretch": lambda m: m["stretch"],
        "std_log_jacobian": lambda m: m["regularity"]["std_log_jacobian"],
        "overlap": lambda m: m["overlap"],
    }
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "measures" in row:
            name = "mirrored" if row["way"] == next(iter(WAYS)) else row["truth"]
            groups.setdefault(name, []).append(row["measures"])
    return {
        name: {"pairs": len(found)}
        | {key: [min(values), max(values)] for key, read in keys.items() if (values := [read(m) for m in found])}
        for name, found in groups.items()
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per way: how many, how many really failed, and of these and of the good ones how many are flagged."""
    ways = {way: count([row for row in rows if row["way"] == way]) for way in dict.fromkeys(row["way"] for row in rows)}
    mirrored = next(iter(WAYS))
    rest = [row for row in rows if row["way"] != mirrored]
    return ways | {"all": count(rows), "all but left and right exchanged": count(rest)}


def count(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def of(truth: str, *verdicts: str) -> int:
        return sum(row["truth"] == truth and row["verdict"] in verdicts for row in rows)

    anything = ("pass", "check", "fail")
    return {
        "pairs": len(rows),
        "good": of("good", *anything),
        "worse": of("worse", *anything),
        "failed": of("failed", *anything),
        "failed_and_fail": of("failed", "fail"),
        "failed_and_check_or_fail": of("failed", "check", "fail"),
        "good_and_fail": of("good", "fail"),
        "good_and_check_or_fail": of("good", "check", "fail"),
        "second_try": sum((row.get("escalation") or {}).get("tried") is not None for row in rows),
        "second_try_kept": sum((row.get("escalation") or {}).get("kept") == "second" for row in rows),
        "second_try_rescued": sum(row["first"] == "fail" and row["truth"] == "good" for row in rows),
    }


def table(ways: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| the moving image | pairs | good / worse / failed | failed: `fail` | failed: `fail` or `check` "
        "| good: `fail` | good: `fail` or `check` | second try: made / kept / rescued |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, n in ways.items():
        found = [
            way,
            n["pairs"],
            f"{n['good']} / {n['worse']} / {n['failed']}",
            *(share(n, "failed", flag) for flag in ("fail", "check_or_fail")),
            *(share(n, "good", flag) for flag in ("fail", "check_or_fail")),
            f"{n['second_try']} / {n['second_try_kept']} / {n['second_try_rescued']}",
        ]
        lines.append("| " + " | ".join(map(str, found)) + " |")
    return "\n".join(lines) + "\n"


def share(n: dict[str, Any], truth: str, flag: str) -> str:
    return f"{n[f'{truth}_and_{flag}']} of {n[truth]}" if n[truth] else ""


if __name__ == "__main__":
    main()
