"""Where a batch keeps what."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwarp.files.atomic import clear_temporaries
from stepwarp.files.json import read_record
from stepwarp.layout import RECORD
from stepwarp.machine import is_environment

#: What a batch writes into its folder, besides links for BIDS.
OWN_NAMES = ("cases", "failed", ".work", "environment.json", "summary.json", "cases.csv", "index.html")
#: The hidden folders beside those of cases: new results, old ones on their way out, and where they are written.
_UNFINISHED = re.compile(r"\.(.+\.(new|old)-[0-9a-f]{8}|.+\.partial-stepwarp)")

#: The picture of a case for the page, beside what `register` writes.
PICTURE = "picture.jpg"


@dataclass(frozen=True)
class BatchPlaces:
    """The output folder of a batch."""

    out: Path

    def case(self, case: str) -> Path:
        """The folder of a registration; it appears as a whole."""
        return self.cases / case

    def failure(self, case: str) -> Path:
        """Why a case failed; there as long as it has."""
        return self.failures / f"{case}.json"

    @property
    def cases(self) -> Path:
        return self.out / "cases"

    @property
    def failures(self) -> Path:
        return self.out / "failed"

    @property
    def bids(self) -> Path:
        return self.out / "bids"

    @property
    def scratch(self) -> Path:
        """What workers need while they run."""
        return self.out / ".work"

    @property
    def logs(self) -> Path:
        """What the jobs of a batch system print."""
        return self.out / "logs"

    @property
    def environment(self) -> Path:
        return self.out / "environment.json"

    @property
    def summary(self) -> Path:
        return self.out / "summary.json"

    @property
    def csv(self) -> Path:
        return self.out / "cases.csv"

    def read_cases(self) -> dict[str, dict[str, Any]]:
        """The record of every registration there is, by case."""
        # A name that begins with a dot is not finished.
        paths = sorted(path for path in self.cases.glob(f"*/{RECORD}") if not path.parent.name.startswith("."))
        return {path.parent.name: read_record(path) for path in paths}

    def read_failures(self) -> dict[str, dict[str, Any]]:
        """What is known of every case that failed, by case."""
        paths = sorted(path for path in self.failures.glob("*.json") if not path.name.startswith("."))
        return {path.stem: read_record(path) for path in paths}

    @property
    def known(self) -> bool:
        """Whether a batch has worked here, by what it notes in its first moment."""
        return not (self.out / "runs").exists() and is_environment(self.environment)

    def tidy(self) -> None:
        """Remove what was not finished: only to be called while no one writes, in a folder that is a batch's."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        for path in self.cases.glob(".*"):
            if _UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
        for folder in (self.out, self.cases, self.failures):
            clear_temporaries(folder)
