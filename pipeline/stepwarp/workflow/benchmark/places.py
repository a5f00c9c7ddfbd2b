"""Where a benchmark keeps what."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwarp.errors import InputError
from stepwarp.files import write_text
from stepwarp.files.atomic import clear_temporaries

RUN = "run.json"
#: What a benchmark writes into its folder.
OWN_NAMES = ("runs", "cases", "pictures", "environment.json", "summary.json", "table.md", "cases.csv", "index.html")


@dataclass(frozen=True)
class Places:
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
        return [read_json(path) for path in paths]


def is_environment(path: Path) -> bool:
    """Whether a file is what a benchmark or a batch notes of the machine."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"stepwarp", "cpu", "threads"} <= content.keys()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; InputError if there is none in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}). Remove it, and it is made again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a JSON object. Remove it, and it is made again.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object, whole or not at all; numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", overwrite=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value
