"""Seconds and memory of each stage, and word of where the work is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stepwarp.machine import peak_mib
from stepwarp.progress import Progress, ProgressReport


class Clock:
    """Times stages. stages: {name, seconds, peak_mib} of each that ended; peak_mib is the process's, so far."""

    def __init__(self, progress: Progress, stages: list[dict[str, Any]] | None = None) -> None:
        self.progress = progress
        self.stages = [] if stages is None else stages

    @contextmanager
    def stage(self, name: str, reports_itself: bool = False) -> Iterator[None]:
        """Time what happens inside. reports_itself: what happens inside tells its progress in smaller steps."""
        started = time.perf_counter()
        if not reports_itself:
            self.progress(ProgressReport(name, 0, 1))
        yield
        if not reports_itself:
            self.progress(ProgressReport(name, 1, 1))
        self.stages.append({"name": name, "seconds": round(time.perf_counter() - started, 3), "peak_mib": peak_mib()})
