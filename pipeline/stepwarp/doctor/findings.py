"""What the doctor says: facts about each file, and findings with their remedies."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from stepwarp.errors import StepwarpError
from stepwarp.geometry import Grid

#: error: stepwarp refuses the file. warning: it works with it, and the result may be wrong. note: good to know.
Severity = Literal["error", "warning", "note"]
Kind = Literal["image", "labels", "mask", "transform", "landmarks", "weights", "file"]


@dataclass(frozen=True)
class Finding:
    """One thing to know. check: which check found it. file: whose; several files are joined by commas."""

    severity: Severity
    check: str
    file: str
    text: str
    remedy: str


@dataclass(frozen=True, eq=False)
class Examined:
    """One file. facts: JSON-ready. grid: of a volume that has a place. content: a hash of a volume's voxels."""

    path: Path
    kind: Kind
    facts: dict[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    grid: Grid | None = None
    content: str | None = None


@dataclass(frozen=True, eq=False)
class DoctorReport:
    """All that was examined. together: findings on several files, or on the machine. machine: its facts, if asked."""

    files: tuple[Examined, ...] = ()
    together: tuple[Finding, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """The worst first."""
        found = [*self.together, *(finding for file in self.files for finding in file.findings)]
        return sorted(found, key=lambda finding: get_args(Severity).index(finding.severity))

    @property
    def counts(self) -> dict[str, int]:
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in get_args(Severity)}

    def joined(self, other: DoctorReport) -> DoctorReport:
        """Both in one."""
        return DoctorReport(self.files + other.files, self.together + other.together, self.machine | other.machine)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        files = [{"file": str(file.path), "kind": file.kind, **file.facts} for file in self.files]
        content = {"counts": self.counts, "findings": [asdict(finding) for finding in self.findings], "files": files}
        return content | ({"machine": self.machine} if self.machine else {})


def refusal(path: Path, check: str, error: StepwarpError) -> Finding:
    """The finding that a reader's error is: its last sentence is the remedy."""
    message = str(error).removeprefix(f"{path}: ")
    text, _, remedy = message.rstrip(".").rpartition(". ")
    return Finding("error", check, str(path), f"{text or remedy}.", f"{remedy}." if text else "")
