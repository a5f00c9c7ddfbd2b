"""Runs what a plan leaves to do, case by case, so that being killed costs the case in hand and no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stepwarp.benchmark import child, judged
from stepwarp.benchmark.methods import OWN
from stepwarp.benchmark.places import OWN_NAMES
from stepwarp.benchmark.plan import Asked, BenchmarkCase
from stepwarp.evaluation import metrics
from stepwarp.files.json import read_record, write_record
from stepwarp.files.lock import locked
from stepwarp.machine import environment
from stepwarp.progress import Progress, ProgressReport, silent

_PACKAGE = "stepwarp.benchmark"
_STAGE = "benchmark, seconds"
#: What a case takes, in seconds, as long as none has shown it.
_GUESS = {"run": 60.0, "judge": 15.0}

#: Says one line to whoever waits.
Tell = Callable[[str], None]


def run(
    cases: Sequence[BenchmarkCase], asked: Asked, *, progress: Progress = silent, tell: Tell = lambda line: None
) -> int:
    """Run, judge or note as absent each case that is not done, in order; the number of cases that failed.

    A case that fails is recorded as failed, with the reason, and the next one begins. What is done is written at once:
    after any interruption, even kill -9, the same call goes on. tell: told of each case as it ends.

    Raises OutputError if another benchmark is writing into the same folder."""
    with locked(asked.out, "benchmark", OWN_NAMES, known=asked.places.known):
        asked.places.tidy()
        work = [case for case in cases if case.todo != "done"]
        if any(case.todo == "run" for case in work):
            methods = dict.fromkeys(case.method.name for case in work if case.todo == "run")
            warm = _warm_up([name for name in methods if name in OWN], asked)
            write_record(asked.places.environment, _environment(asked) | {"warm_up": warm})
        forecast = Forecast(work, progress)
        failed = 0
        for number, case in enumerate(work, 1):
            forecast.begin(case)
            content = _do(case, asked, forecast.tick)
            forecast.end()
            failed += content["status"] == "failed"
            tell(f"[{number}/{len(work)}] {case}: {_line(content)}")
    return failed


class Forecast:
    """Tells progress in seconds, spent and expected: methods take from none to thousands, so cases are no measure."""

    def __init__(
        self, cases: Sequence[BenchmarkCase], progress: Progress, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cases, self.progress, self.clock = list(cases), progress, clock
        self.spent, self.begun = 0.0, 0
        #: todo -> method -> seconds of the cases that ended.
        self.known: dict[str, dict[str, list[float]]] = {}

    def begin(self, case: BenchmarkCase) -> None:
        self.case, self.since = case, self.clock()
        self.begun += 1
        self.tick()

    def tick(self) -> None:
        """Tell how far it is: to be called now and then."""
        elapsed = self.clock() - self.since
        later = sum(self.expected(case) for case in self.cases[self.begun :])
        total = self.spent + max(elapsed, self.expected(self.case)) + later
        self.progress(ProgressReport(_STAGE, round(self.spent + elapsed), max(1, round(total))))

    def end(self) -> None:
        elapsed = self.clock() - self.since
        self.spent += elapsed
        self.known.setdefault(self.case.todo, {}).setdefault(self.case.method.name, []).append(elapsed)

    def expected(self, case: BenchmarkCase) -> float:
        """Seconds of a case: the mean of those of its method, else of all methods', else a guess."""
        alike = self.known.get(case.todo, {})
        seconds = alike.get(case.method.name) or [one for others in alike.values() for one in others]
        return sum(seconds) / len(seconds) if seconds else _GUESS.get(case.todo, 0.0)


def _do(case: BenchmarkCase, asked: Asked, tick: Callable[[], None]) -> dict[str, Any]:
    """Bring a case to its end; what its file holds then."""
    places, names = asked.places, (case.pair.id, case.method.name)
    path = places.case(*names)
    begun = {"pair": case.pair.id, "method": case.method.name}
    if case.todo == "absent":
        write_record(path, begun | {"status": "absent", "reason": case.why})
        return read_record(path)
    path.unlink(missing_ok=True)
    places.picture(*names).unlink(missing_ok=True)
    try:
        if case.todo == "run":
            _start("case", _job(case, asked), asked, places.log(*names), tick)
        job = judged.as_job(case.pair, case.method.name, case.method.title, asked.out, asked.pictures)
        _start("judged", job, asked, places.log(case.pair.id, f"{case.method.name}-judged"), tick)
    except child.ChildError as error:
        write_record(path, begun | {"status": "failed", "reason": str(error)})
    return read_record(path)


def _start(module: str, job: dict[str, Any], asked: Asked, log: Path, tick: Callable[[], None]) -> None:
    use_gpu = asked.device != "cpu"
    child.run(f"{_PACKAGE}.{module}", job, log, threads=asked.threads, use_gpu=use_gpu, tick=tick)


def _job(case: BenchmarkCase, asked: Asked) -> dict[str, Any]:
    return {
        "method": case.method.name,
        "fixed": str(case.pair.fixed.image.absolute()),
        "moving": str(case.pair.moving.image.absolute()),
        "folder": str(asked.places.run(case.pair.id, case.method.name).absolute()),
        "threads": asked.threads,
        "seed": asked.seed,
    }


def _warm_up(methods: list[str], asked: Asked) -> str:
    """Let stepwarp compile what it has to, so that no case pays for it; what was done, in words."""
    if not methods:
        return "none: no method that compiles anything was run"
    started = time.monotonic()
    job = {"methods": methods, "threads": asked.threads}
    try:
        _start("warm_up", job, asked, asked.out / "runs" / "warm_up.log", lambda: None)
    except child.ChildError as error:
        return f"failed: {error}"
    return (
        f"before the first case, {', '.join(methods)} registered two small phantoms in a process of their own "
        f"({time.monotonic() - started:.0f} s), which compiles what is not compiled yet; each case loads it again, "
        "within its seconds"
    )


def _environment(asked: Asked) -> dict[str, Any]:
    return environment(asked.threads, asked.device) | {
        "seed": asked.seed,
        "clock": "around the method alone, images in memory before and transform in memory after; imports are not "
        "counted, nor reading and writing by the benchmark",
        "order": "methods in turn on each pair, one process per case, one case at a time",
    }


def _line(content: dict[str, Any]) -> str:
    if content["status"] != "done":
        return f"{content['status']}, {content['reason']}"
    found = [(metric, metric.in_case(content)) for metric in metrics.shown("headline")]
    said = [metric.said(value) for metric, value in found if value is not None]
    return ", ".join([f"{content['run']['seconds']:.1f} s", *said])
