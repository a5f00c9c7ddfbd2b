"""stepwarp beside ANTs on real brain pairs, judged from the files that each wrote.

    python benchmarks/brain_pairs.py                     every method but ANTs' slow preset on every validation pair
    python benchmarks/brain_pairs.py --methods ants-syn-best --pairs 1013_1019

One JSON file per case under results/brain_pairs/cases: a run that is stopped goes on where it was, and table.md and
summary.json are made anew from all cases at the end. Transforms are kept in --work, for other judges.

Each case is a process of its own, methods in turn on each pair, with the same number of threads. `seconds` is the
registration itself for both: reading, searching, and no writing. `process_seconds` is stepwarp's whole command, with
imports, writing, the self-check and the report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import stepwarp
from pairs import RESULTS, ROOT, Pair, judge, load_pairs
from stepwarp.baselines import ants

OUT = RESULTS / "brain_pairs"
#: Methods in the order of the table, name -> what it is called there.
METHODS = {
    "ants-affine": "ANTs affine",
    "stepwarp-affine": "**stepwarp** affine",
    "ants-syn": "ANTs `SyN` (ANTsPy default)",
    "ants-syn-quick": "ANTs `antsRegistrationSyNQuick[s]`",
    "stepwarp-fast": "**stepwarp** `fast`",
    "ants-syn-best": "ANTs `antsRegistrationSyN[s]`",
    "stepwarp-default": "**stepwarp** `default`",
    "stepwarp-best": "**stepwarp** `best`",
}
SLOW = ("ants-syn-best",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[m for m in METHODS if m not in SLOW])
    parser.add_argument("--pairs", nargs="+", help="ids of pairs; all validation pairs by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--again", action="store_true", help="run and judge cases that have a result already")
    arguments = parser.parse_args()
    everything = load_pairs("oasis", "validation") + load_pairs("templates", "validation")
    chosen = [pair for pair in everything if arguments.pairs is None or pair.id in arguments.pairs]
    for number, pair in enumerate(chosen, 1):
        for method in arguments.methods:
            _run_case(pair, method, arguments)
            print(f"[{number}/{len(chosen)}] {pair.id} {method}", flush=True)
    summarise([pair.id for pair in everything])


def _run_case(pair: Pair, method: str, arguments: argparse.Namespace) -> None:
    path = OUT / "cases" / f"{pair.id}__{method}.json"
    if path.exists() and not arguments.again:
        return
    run: Callable = _run_ants if method.startswith("ants-") else _run_stepwarp
    folder = arguments.work / pair.id / method
    cost = run(pair, method.partition("-")[2], folder, arguments)
    case = {"pair": pair.id, "method": method, **cost, **judge(pair, folder)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(case | {"machine": machine(arguments.threads)}, indent=1) + "\n")


def _run_ants(pair: Pair, preset: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    record = ants.register(pair.fixed.image, pair.moving.image, folder, preset, threads=arguments.threads)
    return {key: record[key] for key in ("seconds", "cpu_seconds", "peak_mib", "antspyx", "type_of_transform", "seed")}


def _run_stepwarp(pair: Pair, preset: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    how = ["--affine-only"] if preset == "affine" else ["--preset", preset]
    images = ["--fixed", str(pair.fixed.image), "--moving", str(pair.moving.image)]
    command = [str(Path(sys.executable).with_name("stepwarp")), "register", *images, "--out", str(folder), *how]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [*command, "--threads", str(arguments.threads), "--device", "cpu", "--json"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    record = json.loads((folder / "registration.json").read_text())
    stages = {stage["name"]: stage["seconds"] for stage in record["stages"]}
    return {
        "seconds": round(sum(stages.get(name, 0) for name in ("read", "affine", "deformable")), 2),
        "process_seconds": round(seconds, 2),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak_mib": max(stage["peak_mib"] for stage in record["stages"]),
        "stages": stages,
        "verdict": record["verdict"]["status"],
        "self_check": record["self_check"],
        "stepwarp": record["version"],
        "seed": record["seed"],
    }


def machine(threads: int) -> dict[str, Any]:
    """Where the numbers were taken."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": "cpu",
        "load_at_the_end": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "stepwarp": stepwarp.__version__,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def summarise(order: list[str]) -> None:
    """Make table.md and summary.json from all cases there are."""
    cases = [json.loads(path.read_text()) for path in sorted((OUT / "cases").glob("*.json"))]
    by_method = {m: {c["pair"]: c for c in cases if c["method"] == m} for m in METHODS}
    groups = {
        "six pairs of different people": [p for p in order if p not in ("1019_1039", "mni2009c_colin27")],
        **{pair: [pair] for pair in ("1013_1019", "1019_1039", "mni2009c_colin27")},
    }
    summary = {
        name: {m: _mean(found, pairs) for m, found in by_method.items() if all(pair in found for pair in pairs)}
        for name, pairs in groups.items()
    }
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (OUT / "table.md").write_text("\n".join(_table(name, rows) for name, rows in summary.items()))


_COLUMNS: dict[str, tuple[str, str]] = {
    "dice": ("Dice", ".3f"),
    "tre_mm": ("TRE mm", ".2f"),
    "seconds": ("seconds", ".0f"),
    "cpu_seconds": ("CPU seconds", ".0f"),
    "peak_mib": ("peak MiB", ".0f"),
    "folds": ("folds", ".0f"),
    "corner_folds": ("folds, one-sided", ".1f"),
    "std_log_jacobian": ("std log J", ".2f"),
    "inverse_mean_mm": ("inverse mm, mean", ".3f"),
    "inverse_p95_mm": ("95 %", ".2f"),
}


def _mean(found: dict[str, dict[str, Any]], pairs: list[str]) -> dict[str, float]:
    """Means over the pairs that have the number; counts of folds are summed."""
    result = {}
    for key in (*_COLUMNS, "process_seconds"):
        values = [found[pair][key] for pair in pairs if key in found[pair]]
        if values:
            result[key] = round(float(np.sum(values) if "folds" in key else np.mean(values)), 5)
    return result


def _table(name: str, rows: dict[str, dict[str, float]]) -> str:
    head = ["method", *(title for title, _ in _COLUMNS.values())]
    lines = [f"### {name}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, row in rows.items():
        cells = [format(row[key], form) if key in row else "" for key, (_, form) in _COLUMNS.items()]
        lines.append("| " + " | ".join([METHODS[method], *cells]) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
