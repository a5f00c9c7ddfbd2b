"""What is left to do of a benchmark, and why."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stepwarp.baselines import Method
from stepwarp.benchmark.judged import standard
from stepwarp.benchmark.places import RUN, BenchmarkPlaces
from stepwarp.benchmark.results import is_complete
from stepwarp.data.manifest import Pair
from stepwarp.files import sha256
from stepwarp.files.json import read_record
from stepwarp.machine import versions
from stepwarp.version import __version__

#: run: register, then judge. judge: the run is there. absent: the method cannot run here. done: nothing.
Todo = Literal["run", "judge", "absent", "done"]


@dataclass(frozen=True)
class Asked:
    """How cases are to be run. device: "cpu", or the name of the GPU that methods see. again: whatever is there."""

    out: Path
    threads: int
    seed: int = 0
    device: str = "cpu"
    pictures: bool = True
    again: bool = False

    @property
    def places(self) -> BenchmarkPlaces:
        return BenchmarkPlaces(self.out)


@dataclass(frozen=True)
class BenchmarkCase:
    """One method on one pair. why: a few words on `todo`; empty where there is nothing to say."""

    pair: Pair
    method: Method
    todo: Todo
    why: str = ""

    def __str__(self) -> str:
        return f"{self.pair.id} {self.method.name}"


def plan(pairs: Sequence[Pair], methods: Sequence[Method], asked: Asked) -> list[BenchmarkCase]:
    """Every case, the methods in turn on each pair, so that what else the machine does meets all of them alike.

    Raises InputError for an image that cannot be read."""
    digest = functools.cache(sha256)
    missing = {method.name: method.missing() for method in methods}
    cases = []
    for pair in pairs:
        for method in methods:
            todo, why = _todo(pair, method, asked, digest)
            absent = missing[method.name]
            if todo == "run" and absent:
                todo, why = "absent", absent
            cases.append(BenchmarkCase(pair, method, todo, why))
    return cases


def _todo(pair: Pair, method: Method, asked: Asked, digest: Callable[[Path], str]) -> tuple[Todo, str]:
    if asked.again:
        return "run", "asked for again"
    places = asked.places
    path, folder = places.case(pair.id, method.name), places.run(pair.id, method.name)
    case = read_record(path) if path.exists() else {}
    kept = (folder / RUN).exists() and is_complete(folder)
    run = read_record(folder / RUN) if kept else case.get("run")
    if run is None:
        return ("run", f"it failed before: {case['reason']}") if case.get("status") == "failed" else ("run", "")
    changed = _difference(run, pair, method, asked, digest)
    if changed:
        return "run", changed
    if case.get("status") == "done" and case["run"] == run:
        judged = _other_standard(case.get("judged", {}), standard(pair, digest))
        if not judged:
            drawn = not asked.pictures or not kept or places.picture(pair.id, method.name).exists()
            return ("done", "") if drawn else ("judge", "it has no picture")
        return ("judge", judged) if kept else ("run", f"{judged}, and the transform is not there any more")
    return ("judge", "it was run, but not judged") if kept else ("run", "")


def _difference(
    run: dict[str, Any], pair: Pair, method: Method, asked: Asked, digest: Callable[[Path], str]
) -> str | None:
    """In what a run is not the one that is asked for; None if it is."""
    for role, scan in (("fixed", pair.fixed), ("moving", pair.moving)):
        if run["inputs"][role] != digest(scan.image):
            return f"the {role} image has changed"
    wanted: dict[str, Any] = {"threads": asked.threads, "seed": asked.seed, "device": asked.device}
    wanted["stepwarp"] = __version__
    for key, value in wanted.items():
        if run.get(key) != value:
            return f"{key} was {run.get(key)}, now {value}"
    for package, version in versions(run.get("packages", {})).items():
        if run["packages"][package] != version:
            return f"{package} was {run['packages'][package]}, now {version}"
    settings = getattr(method, "settings", None)
    if settings is not None and run["record"].get("settings") != settings:
        return "the method's settings have changed"
    return None


def _other_standard(judged: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """What a case was judged by that is not what is wanted; None if all is the same."""
    changed = [key for key in wanted if judged.get(key) != wanted[key]]
    if not changed:
        return None
    return f"what it is judged by has changed: {', '.join(key.replace('_', ' ') for key in changed)}"
