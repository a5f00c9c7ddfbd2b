"""Writing a registration, and proving that the files say what was computed before they get their names."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwarp import files
from stepwarp.errors import VerificationError
from stepwarp.files import proof
from stepwarp.files.json import write_json
from stepwarp.geometry import Affine, Image
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.layout import AFFINE, FURTHER_MOVED, INVERSE_WARP, JACOBIAN, MOVED, NAMES, RECORD, REPORT, WARP
from stepwarp.progress import Progress
from stepwarp.registrar.subject import SHOWN
from stepwarp.workflow.clock import Clock
from stepwarp.workflow.result_folder import ResultFolder

if TYPE_CHECKING:
    from stepwarp.workflow.registered import RegisteredPair

#: What the files may differ from what was computed: points in mm and in voxels, intensities
#: as a share of their range.
POINT_TOLERANCE_MM, POINT_TOLERANCE_VOXELS = 0.01, 0.05
VOXEL_TOLERANCE = 1e-3
_POINTS = 1000
_RESULT = ResultFolder("registration", NAMES, RECORD)


def check_target(out: Path, overwrite: bool) -> None:
    """Raises OutputError as `ResultFolder.check`."""
    _RESULT.check(out, overwrite)


def claimed(out: Path, overwrite: bool) -> AbstractContextManager[Path]:
    """Lend a folder to work in for a registration, as `ResultFolder.claimed`."""
    return _RESULT.claimed(out, overwrite)


def is_result(folder: Path) -> bool:
    """Whether a registration has written its record there."""
    return bool(_RESULT.written(folder))


def save(
    registration: RegisteredPair,
    out: Path,
    *,
    overwrite: bool,
    progress: Progress,
    truth: dict[str, tuple[Any, Any]] | None,
    place: Path | None,
) -> Path:
    """Write the registration into the folder `out` and return it.

    truth: rows for the report of a pair whose answer is known, label -> (before, after). place: of `claimed`, if that
    holds the folder already.

    Raises OutputError if it cannot be written, VerificationError if SimpleITK reads something else than was computed;
    then nothing is left under the final names."""
    with nullcontext(place) if place is not None else claimed(out, overwrite) as partial:
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
        write_json(partial / RECORD, record)
        _RESULT.publish(partial, out, overwrite)
    registration.record.update(record)
    return out


def _write_volumes(registration: RegisteredPair, folder: Path) -> None:
    """All but the record and the page; compression runs in parallel, it holds no lock."""
    work: list[tuple[Callable[[Path, Any], None], str, Any]] = [
        (files.write_affine, AFFINE, registration.affine),
        (files.write_volume, MOVED, registration.moved),
        *(
            (files.write_volume, name, image)
            for name, image in zip(FURTHER_MOVED, registration.further_moved, strict=False)
        ),
        *((files.write_volume, name, mask) for name, mask in registration.found_masks.items()),
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


def jacobian_image(registration: RegisteredPair) -> Image:
    """How much volume the whole transform gives each voxel: above 1 where the moving image is larger."""
    assert registration.warp is not None
    linear = float(np.linalg.det(registration.affine.matrix[:-1, :-1]))
    warp = registration.warp
    return Image(warp.jacobian_determinant(warp.grid) * linear, warp.grid, "Jacobian")


def _verified(registration: RegisteredPair, folder: Path) -> dict[str, Any]:
    """What SimpleITK makes of the files. Raises VerificationError beyond the tolerances."""
    names = [AFFINE] if registration.warp is None else [AFFINE, WARP]
    forward = proof.read_chain([folder / name for name in names])
    points = _points_inside(registration.fixed)
    point_errors = [proof.point_error(forward, registration.transform, points)]
    voxel_error = proof.voxel_error(
        forward,
        registration.transform,
        registration.as_interpolated(registration.moving),
        registration.moved,
        folder / MOVED,
    )
    del forward  # a field in double precision, as is the one that is read next
    result = {
        "reader": "SimpleITK",
        "points": len(points),
        "point_error_mm": point_errors[0],
        "voxel_error": voxel_error,
    }
    if registration.inverse_warp is not None:
        back = proof.point_error(proof.read_chain([folder / INVERSE_WARP]), registration.inverse_warp, points)
        result["inverse_point_error_mm"] = back
        point_errors.append(back)
    worst = float(np.max(point_errors))  # NaN, if one of them is
    allowed = min(POINT_TOLERANCE_MM, POINT_TOLERANCE_VOXELS * float(registration.fixed.grid.spacing.min()))
    if not (worst <= allowed and voxel_error <= VOXEL_TOLERANCE):
        raise VerificationError(
            f"the written files do not say what was computed: SimpleITK maps points {worst:.3g} mm away (allowed "
            f"{allowed:.3g}) and voxels differ by {voxel_error:.2g} of the range (allowed {VOXEL_TOLERANCE}). "
            "Nothing was kept; please report this with both headers."
        )
    return {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in result.items()}


def _points_inside(fixed: Image) -> np.ndarray:
    """Random world points (N, 3) well inside the fixed grid, the same every time."""
    generator = np.random.default_rng(0)
    top = np.array(fixed.grid.shape) - 1
    index = generator.uniform(0.02, 0.98, (_POINTS, fixed.grid.ndim)) * top
    return fixed.grid.world(index)


def _write_report(
    registration: RegisteredPair, folder: Path, record: dict[str, Any], truth: dict[str, tuple[Any, Any]] | None
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
        mask=scale_intensities(fixed).data > SHOWN,
        record=record,
        truth=truth,
        moving=moving,
        steps=step_views(registration.trace, registration.affine),
    )
    write_page(folder / REPORT, page)
