"""Writing a registration, and proving that the files say what was computed.

Everything is written and verified in a hidden folder beside the target and moved there at the end, registration.json
last: a folder that holds registration.json is complete, and a run that fails leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwarp import files
from stepwarp.errors import OutputError, VerificationError
from stepwarp.files import proof
from stepwarp.geometry import Affine, Image
from stepwarp.losses.intensities import scale_intensities
from stepwarp.registrar.progress import Progress
from stepwarp.workflow.clock import Clock

if TYPE_CHECKING:
    from stepwarp.workflow.register import Registration

AFFINE = "0GenericAffine.mat"
WARP = "1Warp.nii.gz"
INVERSE_WARP = "1InverseWarp.nii.gz"
MOVED = "Warped.nii.gz"
JACOBIAN = "Jacobian.nii.gz"
RECORD = "registration.json"
REPORT = "report.html"
NAMES = (AFFINE, WARP, INVERSE_WARP, MOVED, JACOBIAN, RECORD, REPORT)

#: What the files may differ from what was computed: points in mm, voxels as a share of the intensity range.
POINT_TOLERANCE_MM = 0.01
VOXEL_TOLERANCE = 1e-3
_POINTS = 1000


def check_target(out: Path, overwrite: bool) -> None:
    """Raises OutputError if `out` is a file, or holds any of the results and may not be overwritten."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; the results need a folder. Choose another name.")
    present = [name for name in NAMES if (out / name).exists()]
    if present and not overwrite:
        raise OutputError(f"{out}: holds {present[0]} already. Choose another folder, or replace it with --force.")


def save(
    registration: Registration,
    out: Path,
    *,
    overwrite: bool,
    progress: Progress,
    truth: dict[str, tuple[Any, Any]] | None,
) -> Path:
    """Write the registration into the folder `out` and return it.

    truth: rows for the report of a pair whose answer is known, label -> (before, after).

    Raises OutputError if it cannot be written, VerificationError if SimpleITK reads something else than was computed;
    then nothing is left under the final names."""
    check_target(out, overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out}: cannot be created, {(error.strerror or str(error)).lower()}.") from error
    try:
        record = dict(registration.record)
        record["stages"] = list(record["stages"])
        clock = Clock(progress, record["stages"])
        with clock.stage("write"):
            _write_volumes(registration, partial)
        with clock.stage("verify"):
            record["self_check"] = _verified(registration, partial)
        with clock.stage("report"):
            _write_report(registration, partial, record, truth)
        record["outputs"] = {path.name: files.sha256(path) for path in sorted(partial.iterdir())}
        files.write_text(partial / RECORD, json.dumps(record, indent=1, allow_nan=False) + "\n")
        _move_into_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    registration.record.update(record)
    return out


def _write_volumes(registration: Registration, folder: Path) -> None:
    """All but the record and the page; compression runs in parallel, it holds no lock."""
    work: list[tuple[Callable[[Path, Any], None], str, Any]] = [
        (files.write_affine, AFFINE, registration.affine),
        (files.write_volume, MOVED, registration.moved),
    ]
    if registration.warp is not None:
        work += [
            (files.write_displacement, WARP, registration.warp),
            (files.write_displacement, INVERSE_WARP, registration.inverse_warp),
            (files.write_volume, JACOBIAN, jacobian_image(registration)),
        ]
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(write, folder / name, content) for write, name, content in work]:
            job.result()


def jacobian_image(registration: Registration) -> Image:
    """How much volume the whole transform gives each voxel: above 1 where the moving image is larger."""
    assert registration.warp is not None
    linear = float(np.linalg.det(registration.affine.matrix[:-1, :-1]))
    warp = registration.warp
    return Image(warp.jacobian_determinant(warp.grid) * linear, warp.grid, "Jacobian")


def _verified(registration: Registration, folder: Path) -> dict[str, Any]:
    """What SimpleITK makes of the files. Raises VerificationError beyond the tolerances."""
    forward = [folder / AFFINE] if registration.warp is None else [folder / AFFINE, folder / WARP]
    points = _points_inside(registration.fixed)
    worst = proof.point_error(forward, registration.transform, points)
    voxel_error = proof.voxel_error(forward, registration.transform, registration.moving, folder / MOVED)
    result = {"reader": "SimpleITK", "points": len(points), "point_error_mm": worst, "voxel_error": voxel_error}
    if registration.inverse_warp is not None:
        back = proof.point_error([folder / INVERSE_WARP], registration.inverse_warp, points)
        result["inverse_point_error_mm"] = back
        worst = max(worst, back)
    if not (worst <= POINT_TOLERANCE_MM and voxel_error <= VOXEL_TOLERANCE):
        raise VerificationError(
            f"the written files do not say what was computed: SimpleITK maps points {worst:.3g} mm away (allowed "
            f"{POINT_TOLERANCE_MM}) and voxels differ by {voxel_error:.2g} of the range (allowed {VOXEL_TOLERANCE}). "
            "Nothing was kept; please report this with both headers."
        )
    return {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in result.items()}


def _points_inside(fixed: Image) -> np.ndarray:
    """Random world points (N, 3) well inside the fixed grid, the same every time."""
    generator = np.random.default_rng(0)
    top = np.array(fixed.grid.shape) - 1
    index = generator.uniform(0.02, 0.98, (_POINTS, fixed.grid.ndim)) * top
    return index @ fixed.grid.linear.T + fixed.grid.affine[:-1, -1]


def _write_report(
    registration: Registration, folder: Path, record: dict[str, Any], truth: dict[str, tuple[Any, Any]] | None
) -> None:
    from stepwarp.report.page import write_page
    from stepwarp.report.pair import PairPage
    from stepwarp.workflow.trace import step_views

    fixed, moving = registration.fixed, registration.moving
    centres = Affine(np.column_stack([np.eye(3), moving.grid.centre - fixed.grid.centre]))
    page = PairPage(
        fixed=fixed,
        moving_before=moving.warp(centres, fixed.grid),
        start="grid centres matched",
        affine_moved=moving.warp(registration.affine, fixed.grid),
        moved=registration.moved,
        warp=registration.warp,
        jacobian=None if registration.warp is None else jacobian_image(registration).data,
        mask=scale_intensities(fixed).data > 0.05,
        record=record,
        truth=truth,
        moving=moving,
        steps=step_views(registration.trace, registration.affine),
    )
    write_page(folder / REPORT, page)


def _move_into_place(partial: Path, out: Path) -> None:
    """A new folder appears at once; in an existing one the old record goes first and the new one comes last."""
    partial.chmod(0o755)
    if not out.exists():
        partial.replace(out)
        return
    (out / RECORD).unlink(missing_ok=True)
    for name in NAMES:
        if name != RECORD and not (partial / name).exists():
            (out / name).unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == RECORD):
        path.replace(out / path.name)
