"""Runs what a plan leaves to do. Whatever dies, what is finished stays finished, and the same call does the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from distributed import Future

from stepwarp.batch.farm import Crew, Farm, FarmSize, workers
from stepwarp.batch.places import BatchPlaces
from stepwarp.batch.plan import BatchCase, Job
from stepwarp.batch.work import work
from stepwarp.errors import OutputError, RegistrationError
from stepwarp.files.json import write_record
from stepwarp.machine import today
from stepwarp.printable import counted
from stepwarp.progress import Progress, ProgressReport, silent

#: The first pause before a case is tried again, seconds; each further one is so many times longer.
_PAUSE, _LONGER = 2.0, 4.0
_POLL_SECONDS = 0.2
#: When to say that no worker has come yet, seconds.
_PATIENCE = 20.0

#: Says one line to whoever waits.
Tell = Callable[[str], None]


@dataclass
class _Try:
    """A case on its way: the attempts before this one, when this one is due, and its future once it is under way."""

    job: Job
    due: float = 0.0
    attempts: tuple[dict[str, Any], ...] = ()
    future: Future | None = None


def run(
    cases: Sequence[BatchCase],
    places: BatchPlaces,
    farm: Farm,
    size: FarmSize,
    *,
    retries: int = 2,
    progress: Progress = silent,
    tell: Tell = lambda line: None,
) -> None:
    """Register each case that is to be run, and note why others failed. To be called with the folder locked.

    retries: how often a case is tried again after a fault of the machine. tell: told of each case as it ends.

    Raises RegistrationError if the scheduler is lost, OutputError if the output folder cannot be written to; what was
    finished until then is kept."""
    places.tidy()
    try:
        for folder in (places.cases, places.failures):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{error.filename}: cannot be created, {(error.strerror or str(error)).lower()}.") from error
    jobs = []
    for case in cases:
        if case.todo == "failed":
            tell(f"{case.id}: failed, {case.why}")
            _note(places, case.id, {"status": "failed", "reason": case.why, "kind": "input"}, (), tell)
        elif case.job is not None and case.todo == "run":
            jobs.append(replace(case.job, threads=size.threads, gpu_mib=size.gpu_mib))
        else:
            places.failure(case.id).unlink(missing_ok=True)
    if not jobs:
        return
    try:
        with workers(farm, size, places) as crew:
            live = f"; live at {crew.dashboard}" if crew.dashboard else ""
            tell(f"{counted(len(jobs), 'case')} to run on {size}{live}")
            _Loop(crew, places, retries, progress, tell).run(jobs)
    finally:
        # Where the workers were started here they have ended, and what they had in hand is nobody's any more.
        if farm.scheduler is None:
            places.tidy()


class _Loop:
    """Hands cases to the workers and takes back what became of them."""

    def __init__(self, crew: Crew, places: BatchPlaces, retries: int, progress: Progress, tell: Tell) -> None:
        self.crew, self.places, self.retries, self.progress, self.tell = crew, places, retries, progress, tell
        self.count = self.ended = 0

    def run(self, jobs: Sequence[Job]) -> None:
        self.count = len(jobs)
        tries = [_Try(job) for job in jobs]
        since: float | None = time.monotonic()
        try:
            self.progress(ProgressReport("cases", 0, self.count))
            while tries:
                present = self.crew.present()
                self._require_scheduler(tries)
                self._submit(tries, present)
                over = [one for one in tries if one.future is not None and one.future.status != "pending"]
                for one in over:
                    if self._take(one):
                        tries.remove(one)
                if since is not None and (present or time.monotonic() - since > _PATIENCE):
                    since = None
                    if not present:
                        self.tell("no worker is there yet; waiting for the first")
                if over:
                    self.progress(ProgressReport("cases", self.ended, self.count))
                else:
                    time.sleep(_POLL_SECONDS)
        finally:
            if not self.crew.lost:
                self.crew.client.cancel([one.future for one in tries if one.future is not None], force=True)

    def _submit(self, tries: Sequence[_Try], present: int) -> None:
        """Hand out as many cases as there are workers: one that waited at a worker that dies would count as lost."""
        free = present - sum(one.future is not None for one in tries)
        due = [one for one in tries if one.future is None and one.due <= time.monotonic()]
        for one in due[: max(free, 0)]:
            one.future = self.crew.client.submit(work, one.job, key=f"{one.job.case}-{uuid4().hex}", pure=False)

    def _require_scheduler(self, tries: Sequence[_Try]) -> None:
        """RegistrationError once the scheduler is gone: it does not come back knowing these cases."""
        lost = [one for one in tries if one.future is not None and one.future.status in ("cancelled", "lost")]
        if lost or self.crew.lost:
            raise RegistrationError(
                f"the Dask scheduler is lost, {self.ended} of {self.count} cases had ended. Start it again, and run "
                "the same command: what is finished is kept."
            )

    def _take(self, one: _Try) -> bool:
        """What became of a try; whether its case has ended."""
        assert one.future is not None
        found = _outcome(one.future)
        one.future.release()
        one.future = None
        one.attempts = (*one.attempts, found)
        case, number = one.job.case, len(one.attempts)
        if found["status"] == "failed" and found["kind"] == "machine" and number <= self.retries:
            pause = _PAUSE * _LONGER ** (number - 1)
            one.due = time.monotonic() + pause
            self.tell(f"{case}: {found['reason']} Trying again in {pause:.0f} s.")
            return False
        self.ended += 1
        if found["status"] == "failed":
            self.tell(f"[{self.ended}/{self.count}] {case}: failed, {found['reason']}")
            _note(self.places, case, found, one.attempts, self.tell)
        else:
            self.tell(
                f"[{self.ended}/{self.count}] {case}: {found['verdict']}, local correlation {found['lncc']:.2f}, "
                f"{found['seconds']:.1f} s{_by_the_processor(found)}"
            )
            self.places.failure(case).unlink(missing_ok=True)
        return True


def _by_the_processor(found: dict[str, Any]) -> str:
    failure = found.get("gpu_failure")
    return "" if failure is None else f"; the GPU failed, and the processor computed it: {failure['reason']}"


def _outcome(future: Future) -> dict[str, Any]:
    """What `work` returned; if it could not even do that, the same for the process that died."""
    if future.status == "finished":
        return future.result()
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        reason = "its worker died, as it does when the system kills it or memory runs out."
    else:
        reason = f"it could not be started on a worker ({type(error).__name__}: {' '.join(str(error).split())[:300]})."
    return {"status": "failed", "reason": reason, "kind": "machine"}


def _note(
    places: BatchPlaces, case: str, found: dict[str, Any], attempts: Sequence[dict[str, Any]], tell: Tell
) -> None:
    """Leave the reason in a file; on a disk that takes nothing more, it was told all the same."""
    content = {"case": case, **found, "date": today(), "attempts": [one["reason"] for one in attempts]}
    try:
        write_record(places.failure(case), content)
    except (OutputError, OSError) as error:
        tell(f"{case}: the reason could not be written down ({error})")
