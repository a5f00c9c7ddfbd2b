"""Where a benchmark keeps what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwarp.files.atomic import clear_temporaries
from stepwarp.files.json import read_record
from stepwarp.machine import is_environment

RUN = "run.json"
#: What a benchmark writes into its folder.
OWN_NAMES = ("runs", "cases", "pictures", "environment.json", "summary.json", "table.md", "cases.csv", "index.html")


@dataclass(frozen=True)
class BenchmarkPlaces:
    """The output folder of a benchmark."""

    out: Path

    def case(self, pair: str, method: str) -> Path:
        """The run and the evaluation of one method on one pair."""
        return self.cases / f"{pair}__{method}.json"

    def run(self, pair: str, method: str) -> Path:
        """The folder of the transform that the method found; complete once it holds run.json."""
        return self.out / "runs" / pair / method

    def log(self, pair: str, method: str) -> Path:
        """What the method printed."""
        return self.out / "runs" / pair / f"{method}.log"

    def picture(self, pair: str, method: str) -> Path:
        return self.out / "pictures" / f"{pair}__{method}.jpg"

    @property
    def cases(self) -> Path:
        return self.out / "cases"

    @property
    def environment(self) -> Path:
        return self.out / "environment.json"

    @property
    def summary(self) -> Path:
        return self.out / "summary.json"

    @property
    def table(self) -> Path:
        return self.out / "table.md"

    @property
    def csv(self) -> Path:
        return self.out / "cases.csv"

    @property
    def index(self) -> Path:
        return self.out / "index.html"

    @property
    def known(self) -> bool:
        """Whether a benchmark has worked here: its first case leaves what it knows of the machine."""
        return (self.out / "runs").is_dir() and is_environment(self.environment)

    def tidy(self) -> None:
        """Remove what a killed benchmark left half-written."""
        for folder in (self.out, self.cases, self.out / "pictures"):
            clear_temporaries(folder)

    def read_cases(self) -> list[dict[str, Any]]:
        """Every case there is, by pair and method."""
        # A name that begins with a dot is what a killed run left of a file.
        paths = sorted(path for path in self.cases.glob("*.json") if not path.name.startswith("."))
        return [read_record(path) for path in paths]
