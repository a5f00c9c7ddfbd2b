"""Progress on stderr: bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stepwarp.cli.terminal import cell, console, guarded_streams, tell

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from stepwarp.progress import Progress, ProgressReport

_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def shown_progress(silent: bool = False) -> Iterator[Progress]:
    """A receiver of reports that shows them while the block runs."""
    if silent:
        yield lambda step: None
    elif sys.stderr.isatty():
        with _bars() as bars, guarded_streams():  # rich has put streams of its own in their place
            shown = _BarPerStage(bars)
            yield shown
            shown.finish()
    else:
        yield _LineNowAndThen()


def _bars() -> Bars:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[loss]:<13}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console(stderr=True),
    )


class _BarPerStage:
    """One bar for each stage, full as soon as the next begins: a stage may end before all of its steps are done."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.stage: str | None = None

    def __call__(self, step: ProgressReport) -> None:
        if _ends_earlier_stage(step, self.stage):
            return
        if step.stage != self.stage:
            self.finish()
            self.stage, self.task = step.stage, self.bars.add_task(cell(step.stage), total=step.total, loss="")
        self.bars.update(self.task, completed=step.done, total=step.total, loss=_loss(step))

    def finish(self) -> None:
        if self.stage is not None:
            self.bars.update(self.task, completed=self.bars.tasks[-1].total)


class _LineNowAndThen:
    """A line when a stage begins, and every few seconds of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.stage: str | None = None

    def __call__(self, step: ProgressReport) -> None:
        now = self.clock()
        if _ends_earlier_stage(step, self.stage):
            return
        if step.stage != self.stage:
            self.stage, self.began, self.printed = step.stage, now, now
            tell(step.stage)
        elif now - self.printed >= _SECONDS_BETWEEN_LINES and step.done < step.total:
            self.printed = now
            parts = (f"{step.stage} {step.done}/{step.total}", _loss(step), _left(step, now - self.began))
            tell("  " + ", ".join(filter(None, parts)))


def _ends_earlier_stage(step: ProgressReport, current: str | None) -> bool:
    """Whether a report only says that a stage is over which others have followed, as one that consists of several."""
    return step.done == step.total and step.stage != current


def _loss(step: ProgressReport) -> str:
    return "" if step.loss is None else f"loss {step.loss:.4f}"


def _left(step: ProgressReport, seconds: float) -> str:
    """The time left if all steps take equally long; nothing while too few are done to say."""
    return f"about {seconds / step.done * (step.total - step.done):.0f} s left" if step.done > step.total / 10 else ""
