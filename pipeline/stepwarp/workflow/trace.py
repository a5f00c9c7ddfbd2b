"""The way to a result, step by step: fields, numbers, and the files that hold them."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from stepwarp import files
from stepwarp.errors import ForeignError, OutputError
from stepwarp.evaluation.metrics import METRICS
from stepwarp.evaluation.regularity import regularity
from stepwarp.evaluation.similarity import similarities
from stepwarp.files.json import write_json
from stepwarp.files.lock import refuse_links
from stepwarp.files.workspace import move, workspace
from stepwarp.geometry import Affine, Composition, DisplacementField, Image, Transform
from stepwarp.report.pair import StepView

Kind = Literal["affine", "network", "deformable"]

TRACE = "trace.json"


@dataclass(frozen=True, eq=False)
class TraceStep:
    """One step. field: the whole deformation after it, fixed world -> fixed world before the affine, on the grid that
    the step worked on, and on the processor; None for the affine. used: whether the result came by this way. row: its
    numbers in trace.json, once they are measured."""

    kind: Kind
    field: DisplacementField | None
    seconds: float
    used: bool = True
    row: dict[str, Any] | None = None

    def transform(self, affine: Affine) -> Transform:
        """Fixed world -> moving world as it stood after this step."""
        return affine if self.field is None else Composition.of(affine, self.field)


class Recorder:
    """Collects steps and times them."""

    def __init__(self) -> None:
        self.steps: list[TraceStep] = []
        self.begin()

    def begin(self) -> None:
        """The next step starts now."""
        self._started = time.perf_counter()

    def add(self, kind: Kind, field: DisplacementField | None, seconds: float | None = None) -> None:
        """A step ended. seconds: since the last one, or `begin`, if not given."""
        now = time.perf_counter()
        self.steps.append(TraceStep(kind, field, now - self._started if seconds is None else seconds))
        self.begin()

    def drop(self, kind: Kind) -> None:
        """What the steps of a kind found was not used."""
        self.steps = [replace(step, used=False) if step.kind == kind else step for step in self.steps]


def measured(steps: list[TraceStep], affine: Affine, fixed: Image, moving: Image, inside: Tensor) -> list[TraceStep]:
    """The steps with their numbers, all on the fixed grid inside the subject, so that they can be compared.

    fixed, moving: scaled to 0..1, as they were registered."""
    rows = list(_rows(steps, affine, fixed, moving, inside))
    return [replace(step, row=row) for step, row in zip(steps, rows, strict=True)]


def _rows(
    steps: list[TraceStep], affine: Affine, fixed: Image, moving: Image, inside: Tensor
) -> Iterator[dict[str, Any]]:
    device = fixed.data.device
    still = DisplacementField.identity(fixed.grid, device)
    before = reached = still
    kind: Kind = "affine"
    for number, step in enumerate(steps):
        if step.kind != kind:  # it began where the last way that was used ended
            kind, before = step.kind, reached
        field = still if step.field is None else step.field.to(device).on(fixed.grid)
        alike = similarities(fixed, moving.warp(Composition.of(affine, field), fixed.grid), inside)
        smooth = regularity(field, inside).as_dict()
        change = DisplacementField(field.displacement - before.displacement, fixed.grid)
        lengths = change.lengths()[inside]
        yield {
            "step": number,
            "kind": step.kind,
            "used": step.used,
            "file": None if step.field is None else field_name(number),
            "grid_mm": None if step.field is None else [round(float(s), 4) for s in step.field.grid.spacing],
            "lncc": alike["lncc"],
            "ncc": alike["ncc"],
            "folds": smooth["folds"],
            "corner_folds": smooth["corner_folds"],
            "std_log_jacobian": smooth["std_log_jacobian"],
            "step_mm": {"mean": round(float(lengths.mean()), 4), "max": round(float(lengths.max()), 4)},
            "seconds": round(step.seconds, 3),
        }
        before = field
        if step.used:
            reached = field


def step_views(steps: Sequence[TraceStep], affine: Affine) -> tuple[StepView, ...]:
    """The steps as the report's page shows them."""
    return tuple(
        StepView(_title(number, step), step.transform(affine), _facts(step), step.used)
        for number, step in enumerate(steps)
    )


def _title(number: int, step: TraceStep) -> str:
    if step.field is None:
        return step.kind
    return f"{number}. {step.kind}, {float(step.field.grid.spacing.max()):.2g} mm"


def _facts(step: TraceStep) -> tuple[str, ...]:
    row = step.row
    assert row is not None
    lncc, folds = METRICS["lncc_after"], METRICS["corner_folds"]
    alike, seconds = f"{lncc.title} {lncc.plain(row['lncc'])}", f"{row['seconds']:.2f} s"
    if step.field is None:
        return alike, seconds
    moved = f"moved {row['step_mm']['mean']:.2f} mm, max {row['step_mm']['max']:.1f}"
    return alike, moved, f"{folds.name}: {row['corner_folds']['count']}", seconds


_FIELD = re.compile(r"step\d{2,}_Warp\.nii\.gz")


def field_name(number: int) -> str:
    """The file of a step's field."""
    return f"step{number:02d}_Warp.nii.gz"


@contextmanager
def claimed_trace(folder: Path, overwrite: bool, result: Path | None = None) -> Iterator[Path | None]:
    """Lend a folder to work in for a trace in `folder`, to which nobody else can write as long as the block lasts.

    result: the folder of a result that is claimed already; None is lent for a trace that is to lie in it, since that
    folder appears with the result.

    Raises OutputError as `check_trace_target`, if another run has claimed it, and if it cannot be written to."""
    check_trace_target(folder, overwrite)
    if result is not None and folder.resolve().is_relative_to(result.resolve()):
        yield None
        return
    with workspace(folder, "trace") as place:
        check_trace_target(folder, overwrite)  # another run may have ended in the meantime
        yield place


def save_trace(steps: list[TraceStep], folder: Path, overwrite: bool, place: Path | None = None) -> None:
    """Write each step's field, as ANTs reads it, and trace.json with the numbers, which comes last. place: of
    `claimed_trace`, if that holds the folder already.

    Raises OutputError if the folder holds a trace and may not be overwritten, or cannot be written; then nothing is
    left of the new one."""
    with nullcontext(place) if place is not None else claimed_trace(folder, overwrite) as partial:
        assert partial is not None
        with ThreadPoolExecutor(2) as pool:
            for job in [
                pool.submit(files.write_displacement, partial / field_name(number), step.field)
                for number, step in enumerate(steps)
                if step.field is not None
            ]:
                job.result()
        rows = [step.row for step in steps]
        write_json(partial / TRACE, rows)
        check_trace_target(folder, overwrite)
        _move_into_place(partial, folder)


def check_trace_target(folder: Path, overwrite: bool) -> None:
    """Raises OutputError if `folder` is a file, or holds a trace that may not be overwritten."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; the steps need a folder. Choose another name.")
    present = _of_a_trace(folder)
    if present and not overwrite:
        raise OutputError(f"{present[0]}: exists already. Choose another folder, or replace it with --force.")
    foreign = [path for path in present if path.name not in _listed(folder / TRACE)]
    if foreign:
        raise ForeignError(f"{foreign[0]}: is there already, and no {TRACE} says that it is a trace's. Move it away.")
    for path in present:
        refuse_links(path)


def _listed(path: Path) -> set[str]:
    """The files of the trace that a trace.json is of, itself among them; none if it is no trace's."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {TRACE, *(row["file"] for row in rows if row["file"])} if rows[0]["kind"] == "affine" else set()
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        return set()


def _of_a_trace(folder: Path) -> list[Path]:
    """The files of an earlier trace, trace.json first."""
    found = (path for path in folder.glob("step*_Warp.nii.gz") if _FIELD.fullmatch(path.name))
    return [*folder.glob(TRACE), *sorted(found)]


def _move_into_place(partial: Path, folder: Path) -> None:
    """A new folder appears at once; in an existing one the old trace goes first."""
    if not folder.exists():
        partial.replace(folder)
        return
    for path in reversed(_of_a_trace(folder)):  # trace.json last: until then it says whose the others are
        path.unlink()
    for path in sorted(partial.iterdir(), key=lambda path: path.name == TRACE):
        move(path, folder / path.name)
