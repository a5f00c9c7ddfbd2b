"""How a long computation tells whoever waits for it where it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One report: `done` of `total` units of a stage, with the loss where the stage has one."""

    stage: str
    done: int
    total: int
    loss: float | None = None


Progress = Callable[[Step], None]


def silent(step: Step) -> None:
    """Nobody is waiting."""
