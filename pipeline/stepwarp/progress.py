"""How a long computation tells whoever waits for it where it is, and learns that its time is up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressReport:
    """One report: `done` of `total` units of a stage, with the loss where the stage has one."""

    stage: str
    done: int
    total: int
    loss: float | None = None


Progress = Callable[[ProgressReport], None]


def is_over(deadline: float | None) -> bool:
    """Whether `time.monotonic` has passed the deadline, if there is one."""
    return deadline is not None and time.monotonic() > deadline


def silent(step: ProgressReport) -> None:
    """Nobody is waiting."""
