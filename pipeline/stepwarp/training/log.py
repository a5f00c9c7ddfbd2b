"""What a training tells: JSON lines for programs, TensorBoard for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from stepwarp.files import write_text
from stepwarp.files.lock import open_own, refuse_links

LOG, BOARD = "log.jsonl", "tensorboard"


class Log:
    """`log.jsonl` and the folder `tensorboard` of a run's folder; both are added to when a training goes on.

    after: the iteration from which the training goes on. Lines of later ones, which an interrupted run wrote after its
    last checkpoint, are dropped."""

    def __init__(self, folder: Path, after: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / LOG
        refuse_links(folder / BOARD)
        _cut(self._path, after)
        self._board = SummaryWriter(str(folder / BOARD), purge_step=after + 1 if after else None)

    def write(self, kind: str, iteration: int, values: Mapping[str, float | str]) -> None:
        """One line, and one scalar for each number. kind: train, validation."""
        line = {"kind": kind, "iteration": iteration, **{name: _plain(value) for name, value in values.items()}}
        with open_own(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{kind}/{name}", value, iteration)

    def picture(self, name: str, iteration: int, strip: Tensor) -> None:
        """A picture (height, width) of greys from 0 to 1."""
        self._board.add_image(name, strip, iteration, dataformats="HW")

    def close(self) -> None:
        self._board.close()


def _plain(value: float | str) -> float | str | None:
    """JSON knows no NaN: such a number becomes null."""
    if isinstance(value, str) or math.isfinite(value):
        return round(value, 8) if isinstance(value, float) else value
    return None


def _cut(path: Path, after: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["iteration"] <= after:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a process that was killed
    write_text(path, "".join(f"{line}\n" for line in kept), overwrite=True)
