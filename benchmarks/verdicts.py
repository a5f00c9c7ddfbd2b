"""Is a failed registration known? Verdicts on pairs that are spoilt in many ways, and on good ones.

    python benchmarks/verdicts.py calibrate [--data FOLDER]    # training pairs: the limits of workflow/verdict.py
    python benchmarks/verdicts.py [--data FOLDER]              # validation pairs and others: what those limits achieve

Brains of OASIS at 2 mm, preset fast, one thread; the moving one is spoilt as spoilt_scans.py says, or the search is
sent to a wrong place. What really failed is told by the labels of what both images show: a mean Dice below FAILED of
what the pair reaches there unspoilt; from GOOD on it is good, between the two it counts for neither. Registrations that
are done are kept (benchmarks/work/verdicts) and judged anew. Writes results/verdicts/{verdicts.json, table.md}; about
an hour."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

import stepwarp
from stepwarp.data.manifest import Pair, Scan, data_root, pairs, read_manifest
from stepwarp.errors import StepwarpError
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_image, read_labels, write_text, write_volume
from stepwarp.files.json import write_json
from stepwarp.geometry import Affine, Grid, Image, LabelMap
from stepwarp.geometry.orientation import canonical
from stepwarp.machine import machine
from stepwarp.workflow.verdict import judge

from spoilt_scans import HARDER, TO_FAIL, WRONG_STARTS, torso, wrong_start  # isort: skip

HERE = Path(__file__).parent
WORK, OUT = HERE / "work" / "verdicts", HERE / "results" / "verdicts"
FAILED, GOOD = 0.75, 0.9
UNSPOILT = "as it is"
SPOILT_IMAGES = HARDER | TO_FAIL
WAYS = (*SPOILT_IMAGES, *WRONG_STARTS)
MIRRORED = next(iter(TO_FAIL))
#: How many of the pairs are spoilt, each in every way.
SPOILT = {"training": 4, "validation": 6}
_COLIN, _MNI = "templates/tpl-MNIColin27_brain_T1w", "templates/tpl-MNI152NLin2009cAsym_brain_T1w"
_HEAD, _CHEST = "wholehead/1000_T1w_2mm", "chest/moving_same_scan"
#: Pairs of other kinds, which nobody has labelled: fixed, moving, similarity, and what is known of them. Scans of other
#: scanners than those of OASIS are taken to be registered well; what is no head cannot be.
OTHERS = {
    "Colin27, MNI152": (_COLIN, _MNI, "auto", "good"),
    "MNI152, Colin27": (_MNI, _COLIN, "auto", "good"),
    "MNI152, T1 of an average brain": (_MNI, "multimodal/avg152T1", "auto", "good"),
    "T1, T2 of an average brain": ("multimodal/avg152T1", "multimodal/avg152T2", "auto", "good"),
    "T1, PD of an average brain": ("multimodal/avg152T1", "multimodal/avg152PD", "auto", "good"),
    "two whole heads": (_HEAD, "wholehead/1001_T1w_2mm", "auto", "good"),
    "a chest and its breath": ("chest/fixed_breath_out", _CHEST, "auto", "good"),
    "Colin27, a chest": (_COLIN, _CHEST, "auto", "failed"),
    "Colin27, a chest, mi": (_COLIN, _CHEST, "mi", "failed"),
    "a whole head, a chest": (_HEAD, _CHEST, "auto", "failed"),
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
    found = summary(rows)
    content = {
        "preset": "fast",
        "spacing_mm": 2,
        "failed_below": FAILED,
        "good_from": GOOD,
        "machine": machine(threads=1),
        "calibration": calibration(list(cases("training", root, only_kept=True))),
        "summary": found,
        "intervals": intervals(found[f"all but {MIRRORED}"]),
        "cases": rows,
    }
    write_json(OUT / "verdicts.json", content, overwrite=True)
    said = table(found) + shares(content["intervals"])
    write_text(OUT / "table.md", said, overwrite=True)
    print(said)


def cases(split: str, root: Path, only_kept: bool = False) -> Iterator[dict[str, Any]]:
    """Every pair as it is, and the first ones spoilt in every way. Training pairs are tried once, as limits are for the
    first try."""
    for number, pair in enumerate(pairs(read_manifest("oasis"), root, split)):
        for way in (UNSPOILT, *(WAYS if number < SPOILT[split] else ())):
            path = WORK / f"{pair.id}__{_as_name(way)}.json"
            if not path.exists() and not only_kept:
                write_json(path, _Case(pair, way, escalate=split == "validation").run() | {"pair": pair.id, "way": way})
            if path.exists():
                row = judged(json.loads(path.read_text()))
                yield row | {"truth": truth(row["dice"], row["dice_unspoilt"])}


class _Case:
    """A pair, spoilt in one way."""

    def __init__(self, pair: Pair, way: str, *, escalate: bool) -> None:
        self.pair, self.way, self.escalate = pair, way, escalate
        #: What the pair reaches as it is, which is made first.
        self.unspoilt = WORK / f"{pair.id}__{_as_name(UNSPOILT)}"

    def run(self) -> dict[str, Any]:
        """What was found, its mean Dice, and that of the same pair as it is where this one shows anything."""
        fixed, fixed_labels = scan(self.pair.fixed)
        moving, moving_labels = SPOILT_IMAGES.get(self.way, lambda *scan: scan)(*scan(self.pair.moving))
        found = attempt(fixed, moving, "auto", self.escalate, self._start(fixed.grid))
        if "refused" in found:
            return found | {"dice": 0.0, "dice_unspoilt": 1.0}
        transform = found.pop("transform")
        moved = moving_labels.warp(transform, fixed.grid)
        if self.way == UNSPOILT:
            write_volume(self.unspoilt.with_suffix(".nii.gz"), moved)
        shown = LabelMap(torch.ones_like(moving_labels.data), moving.grid).warp(transform, fixed.grid).data > 0
        return found | {
            "dice": self._dice(fixed_labels, moved, shown),
            "dice_unspoilt": self._dice(fixed_labels, read_labels(self.unspoilt.with_suffix(".nii.gz")), shown),
        }

    def _start(self, grid: Grid) -> Affine | None:
        """The place to which the search is sent, if it is."""
        if self.way not in WRONG_STARTS:
            return None
        right = json.loads(self.unspoilt.with_suffix(".json").read_text())["affine"]
        return wrong_start(Affine(np.array(right)), grid, *WRONG_STARTS[self.way])

    def _dice(self, fixed: LabelMap, moved: LabelMap, shown: torch.Tensor) -> float:
        both = (LabelMap(torch.where(shown, each.data, 0), fixed.grid, each.name) for each in (fixed, moved))
        scores = dice(*both, ignore=self.pair.ignore_labels)
        return round(mean_dice(scores), 4) if scores else 0.0


def attempt(
    fixed: Image, moving: Image, similarity: Any, escalate: bool, start: Affine | None = None
) -> dict[str, Any]:
    """The transform with what the record says of it; or why there is none, which is the clearest of verdicts."""
    given: dict[str, Any] = {} if start is None else {"initial": start, "transform": "none"}
    try:
        found = stepwarp.register(
            fixed,
            moving,
            preset="fast",
            similarity=similarity,
            escalate=escalate,
            threads=1,
            device="cpu",
            **given,
        )
    except StepwarpError as error:
        return {"refused": str(error)}
    record = found.record
    multimodal = similarity == "mi" or not (record["contrast"] or {"alike": True})["alike"]
    return {key: record[key] for key in ("measures", "escalation")} | {
        "transform": found.transform,
        "affine": record["affine"]["matrix"],
        "multimodal": multimodal,
        # What the stages had to say besides, as of a deformation that was dropped.
        "remarked": judge(record["measures"], multimodal=multimodal)["status"] != record["verdict"]["status"],
    }


def others(root: Path) -> Iterator[dict[str, Any]]:
    """The pairs without labels, and a trunk in place of one of the heads."""
    for title, (fixed, moving, similarity, known) in OTHERS.items():
        yield other(title, root / f"{fixed}.nii.gz", root / f"{moving}.nii.gz", similarity, known)
    head = root / f"{_HEAD}.nii.gz"
    yield other("a whole head, a torso phantom", head, None, "auto", "failed")


def other(title: str, fixed: Path, moving: Path | None, similarity: str, known: str) -> dict[str, Any]:
    path = WORK / f"{_as_name(title)}.json"
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
    tried = (row["escalation"] or {}).get("first")
    first = row["measures"] if tried is None else tried["measures"]
    verdict = judge(row["measures"], multimodal=row["multimodal"])["status"]
    return row | {
        "first": judge(first, multimodal=row["multimodal"])["status"],
        "verdict": "check" if verdict == "pass" and row["remarked"] else verdict,
    }


def truth(found: float, best: float) -> str:
    return "failed" if found < FAILED * best else "good" if found >= GOOD * best else "worse"


def calibration(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The ranges of what the verdict looks at, of the good and of the failed pairs; mirrored brains apart, since no
    measure tells them from others."""
    keys = {
        "information after the linear transform": lambda m: m["information"]["affine"],
        "information in the end": lambda m: m["information"]["final"],
        "stretch": lambda m: m["stretch"],
        "std_log_jacobian": lambda m: m["regularity"]["std_log_jacobian"],
        "overlap": lambda m: max(m["overlap"], m["overlap_of_moving"]),
        "structures after the linear transform": lambda m: m.get("structures", {}).get("affine"),
        "structures in the end": lambda m: m.get("structures", {}).get("final"),
    }
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "measures" in row:
            name = "mirrored" if row["way"] == MIRRORED else row["truth"]
            groups.setdefault(name, []).append(row["measures"])
    return {
        name: {"pairs": len(found)}
        | {key: [min(values), max(values)] for key, read in keys.items() if (values := _known(map(read, found)))}
        for name, found in groups.items()
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per way: how many, how many really failed, and of these and of the good ones how many are flagged."""
    ways = {way: count([row for row in rows if row["way"] == way]) for way in dict.fromkeys(row["way"] for row in rows)}
    rest = [row for row in rows if row["way"] != MIRRORED]
    return ways | {"all": count(rows), f"all but {MIRRORED}": count(rest)}


def intervals(n: dict[str, Any]) -> dict[str, list[float]]:
    """Of what `count` found, the shares of failed ones that are flagged and of good ones that are, between which and
    which with 95 % (Clopper and Pearson). As if pairs were independent, which those of one person are not."""
    shares = {
        "failed: check or fail": (n["failed_and_check_or_fail"], n["failed"]),
        "failed: fail": (n["failed_and_fail"], n["failed"]),
        "good: check or fail": (n["good_and_check_or_fail"], n["good"]),
        "good: fail": (n["good_and_fail"], n["good"]),
    }
    found = {name: (k, of, binomtest(k, of).proportion_ci(method="exact")) for name, (k, of) in shares.items() if of}
    return {name: [round(x, 4) for x in (k / of, ci.low, ci.high)] for name, (k, of, ci) in found.items()}


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


def shares(found: dict[str, list[float]]) -> str:
    """Markdown, a line each."""
    lines = [f"- {name}: {value:.1%} ({low:.1%} to {high:.1%})" for name, (value, low, high) in found.items()]
    return f"\nAll but {MIRRORED}, with 95 % intervals:\n\n" + "\n".join(lines) + "\n"


def share(n: dict[str, Any], truth: str, flag: str) -> str:
    return f"{n[f'{truth}_and_{flag}']} of {n[truth]}" if n[truth] else ""


def _as_name(title: str) -> str:
    return "".join(c for c in title.replace(" ", "-") if c.isalnum() or c == "-")


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


if __name__ == "__main__":
    main()
