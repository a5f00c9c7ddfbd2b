"""Seconds and memory of each stage, and word of where the work is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stepwarp.machine import peak_mib
from stepwarp.progress import Progress, ProgressReport

_PROCESSOR = torch.device("cpu")


def now(device: torch.device) -> float:
    """A `time.perf_counter`, once a GPU has done all that it was told: before that, the time is that of telling it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Clock:
    """Times stages.

    stages: {name, seconds, peak_mib} of each that ended; peak_mib is the process's, so far. device: where they
    compute; of a GPU a stage also has gpu_peak_mib, the most that torch had in use there during that stage."""

    def __init__(
        self, progress: Progress, stages: list[dict[str, Any]] | None = None, device: torch.device = _PROCESSOR
    ) -> None:
        self.progress = progress
        self.stages = [] if stages is None else stages
        self.device = device

    @contextmanager
    def stage(self, name: str, reports_itself: bool = False) -> Iterator[None]:
        """Time what happens inside. reports_itself: what happens inside tells its progress in smaller steps."""
        on_gpu = self.device.type == "cuda"
        started = now(self.device)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        if not reports_itself:
            self.progress(ProgressReport(name, 0, 1))
        yield
        if not reports_itself:
            self.progress(ProgressReport(name, 1, 1))
        stage = {"name": name, "seconds": round(now(self.device) - started, 3), "peak_mib": peak_mib()}
        self.stages.append(stage | {"gpu_peak_mib": peak_mib(self.device)} if on_gpu else stage)
