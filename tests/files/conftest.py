"""Another process that holds something, as a second run would."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import pytest


class Holder:
    """A process within `with hold:`, until it is told to leave or is killed. Forked: a new one would import torch."""

    def __init__(self, hold: AbstractContextManager[Any]) -> None:
        context = multiprocessing.get_context("fork")
        self._ours, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_within, args=(hold, theirs), daemon=True)
        self.process.start()
        assert self._ours.recv() == "held"

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def leave(self) -> None:
        self._ours.send("leave")
        self.process.join()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def _within(hold: AbstractContextManager[Any], pipe: Connection) -> None:
    with hold:
        pipe.send("held")
        pipe.recv()


@pytest.fixture
def held_elsewhere() -> Iterator[Callable[[AbstractContextManager[Any]], Holder]]:
    """held_elsewhere(hold) -> Holder, which is killed at the end."""
    with ExitStack() as ends:

        def make(hold: AbstractContextManager[Any]) -> Holder:
            holder = Holder(hold)
            ends.callback(holder.kill)
            return holder

        yield make
