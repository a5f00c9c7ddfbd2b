"""Judges a registration of any tool from its files: reads them, checks that they belong together, and measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepwarp.errors import InputError
from stepwarp.evaluation.evaluate import evaluate
from stepwarp.files import Landmarks, TrustRules, read_image, read_labels, read_landmarks, read_mask, sha256
from stepwarp.files.label_names import find_labels, read_label_names
from stepwarp.files.learn2reg import is_learn2reg, read_learn2reg
from stepwarp.files.tables import Space
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Image, Transform
from stepwarp.printable import worded
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.version import __version__
from stepwarp.workflow.clock import Clock
from stepwarp.workflow.folders import RegistrationFolder, Side, result_at
from stepwarp.workflow.journey import load, plan

#: A field may end this many of its own voxels before the fixed image does: beyond it nothing moves.
_SHORT_BY_VOXELS = 1.0

_INVERTED = "numerical inversion"


@dataclass(frozen=True, eq=False)
class _Read:
    """A transform, fixed world to moving world, and its inverse; their files as text, and where the inverse is from."""

    transform: Transform
    inverse: Transform
    files: tuple[str, ...]
    inverse_source: str
    notes: tuple[str, ...] = ()


def evaluate_files(
    fixed: str | Path,
    moving: str | Path,
    transforms: Sequence[str | Path] = (),
    *,
    fixed_labels: str | Path | None = None,
    moving_labels: str | Path | None = None,
    ignore_labels: Iterable[str] = (),
    label_names: str | Path | None = None,
    fixed_landmarks: str | Path | None = None,
    moving_landmarks: str | Path | None = None,
    unreliable_landmarks: Iterable[str] = (),
    space: Space | None = None,
    mask: str | Path | None = None,
    trust: str | Sequence[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """What `evaluation.evaluate` says of the files of one registration, JSON-ready.

    Parameters
    ----------
    fixed, moving : str or Path
        The two images.
    transforms : sequence of str or Path
        Fixed world to moving world: none for the identity in the world; a folder of `register` or of ANTs, or the
        prefix of ANTs' files; a chain of files in the order of antsApplyTransforms; one displacement of Learn2Reg
        (.nii.gz of four axes, .npz).
    fixed_labels, moving_labels : str or Path, optional
        A label map on the grid of each image; both or none.
    ignore_labels : iterable of str
        Ids, or names of the table `label_names`, that are not scored.
    label_names : str or Path, optional
        A table of ids and names.
    fixed_landmarks, moving_landmarks : str or Path, optional
        Landmarks of each image, paired up by name; both or none. One table may hold those of both, in columns such as
        fixed_x_ras and moving_x_ras.
    unreliable_landmarks : iterable of str
        Names or numbers of landmarks to leave out.
    space : {"ras", "lps", "voxel"}, optional
        The world of landmarks in a .csv that does not state it, or "voxel"; voxel indices are those of their image.
    mask : str or Path, optional
        On the fixed grid: non-zero where the field and the images are measured.
    trust : str or sequence of str, optional
        Which statement of a header to believe, see `files.TrustRules`.
    progress : callable
        Is told the stages, as `ProgressReport`.

    Returns
    -------
    dict
        Besides what `evaluation.evaluate` returns (distances in mm, volumes in ml): stepwarp (version), inputs {role:
        {path, sha256}}, transform [files], the key inverse_mm.source, trusted [see `files.TrustRules.record`], and
        notes [a sentence each] on what to look at.

    Raises
    ------
    InputError
        For files that cannot be used, that do not fit their image (how many mm), a result that belongs to other images,
        and whatever `evaluation.evaluate` refuses.
    """
    clock, rules = Clock(progress), TrustRules.of(trust)
    given = {
        "fixed": fixed,
        "moving": moving,
        "fixed_labels": fixed_labels,
        "moving_labels": moving_labels,
        "fixed_landmarks": fixed_landmarks,
        "moving_landmarks": moving_landmarks,
        "mask": mask,
        "label_names": label_names,
    }
    with clock.stage("read"):
        names = {} if label_names is None else read_label_names(label_names)
        ignored = find_labels(ignore_labels, names)
        images: dict[Side, Image] = {"fixed": read_image(fixed, trust=rules), "moving": read_image(moving, trust=rules)}
        inputs = {r: {"path": str(Path(p).resolve()), "sha256": sha256(p)} for r, p in given.items() if p is not None}
        labels = [None if p is None else read_labels(p, trust=rules) for p in (fixed_labels, moving_labels)]
        points = [
            None if p is None else read_landmarks(p, space, image.grid, of=side)
            for p, (side, image) in zip((fixed_landmarks, moving_landmarks), images.items(), strict=True)
        ]
        inside = None if mask is None else read_mask(mask, trust=rules)
    with clock.stage("transform"):
        hashes: dict[Side, str] = {side: inputs[side]["sha256"] for side in images}
        read = _read_transform(transforms, images, hashes, rules)
        notes = [*read.notes, *_notes_on_field(read, images["fixed"])]
    result = evaluate(
        images["fixed"],
        images["moving"],
        read.transform,
        inverse=read.inverse,
        fixed_labels=labels[0],
        moving_labels=labels[1],
        ignore_labels=ignored,
        label_names=names,
        fixed_landmarks=points[0],
        moving_landmarks=points[1],
        unreliable_landmarks=unreliable_landmarks,
        mask=inside,
        report=lambda stage, done, total: progress(ProgressReport(stage, done, total)),
    )
    result["inverse_mm"]["source"] = read.inverse_source
    notes += [note for side, found in zip(images, points, strict=True) for note in _missing(side, found)]
    notes += [*_outside("fixed", points[0], images), *_outside("moving", points[1], images)]
    about = {"stepwarp": __version__, "inputs": inputs, "transform": list(read.files)}
    return {**about, **result, "trusted": rules.record(), "notes": [*notes, *rules.notes()]}


def _read_transform(
    transforms: Sequence[str | Path], images: Mapping[Side, Image], hashes: Mapping[Side, str], trust: TrustRules
) -> _Read:
    if not transforms:
        still = Affine.identity(3)
        return _Read(still, still, (), "identity")
    fixed, moving = images["fixed"].grid, images["moving"].grid
    in_voxels = [path for path in transforms if Path(path).is_file() and is_learn2reg(path)]
    if in_voxels and len(transforms) > 1:
        raise InputError(f"{in_voxels[0]}: is in voxels from image to image, so nothing can follow it. Give it alone.")
    if in_voxels:
        transform = read_learn2reg(in_voxels[0], fixed, moving)
        return _Read(transform, _numerical_inverse(transform, fixed), (str(in_voxels[0]),), _INVERTED)
    result = result_at(Path(transforms[0])) if len(transforms) == 1 else None
    if isinstance(result, RegistrationFolder):
        result.require_images(images, hashes)
    journey = plan(transforms, None, None, inverse=False)
    forward = load(journey.lookup, trust)
    files, notes = tuple(map(str, forward.files)), (*journey.notes, *forward.notes)
    transform = forward.transform
    if isinstance(transform, Affine):
        return _Read(transform, transform.inverse(), files, "inverse of the affine", notes)
    if journey.in_folder:
        back = load(journey.send, trust)
        if not back.notes:  # nothing to note: no field had to be inverted
            return _Read(transform, back.transform, files, "file of the result", notes)
    return _Read(transform, _numerical_inverse(transform, fixed), files, _INVERTED, notes)


def _numerical_inverse(transform: Transform, grid: Grid) -> Transform:
    """The inverse, from a field on the grid after the inverse of the affine that is nearest to the transform.

    With the affine in it the field would lead out of the grid, beyond which there is nothing to invert."""
    points = grid.middles(8)
    solution = np.linalg.lstsq(np.column_stack([points, np.ones(len(points))]), transform(points), rcond=None)[0]
    try:
        nearest = Affine(solution.T)
    except ValueError:  # a transform that squeezes space into a plane has no inverse, and its residual will say so
        nearest = Affine.identity(3)
    return Composition.of(Composition.of(nearest.inverse(), transform).on(grid).inverse(), nearest.inverse())


def _notes_on_field(read: _Read, fixed: Image) -> list[str]:
    """A note if the first field that a fixed point meets has another grid than the fixed image.

    Raises InputError if it ends before the image does: then it is one of another image."""
    transform = read.transform
    parts = transform.parts if isinstance(transform, Composition) else (transform,)
    field = next((part for part in reversed(parts) if isinstance(part, DisplacementField)), None)
    if field is None or field.grid == fixed.grid:
        return []
    corners = fixed.grid.corners()
    if parts[-1] is not field:
        corners = Composition.of(*parts[parts.index(field) + 1 :])(corners)
    short = _short_by(field.grid, corners)
    files = ", ".join(read.files)
    grids = f"{field.grid} against {fixed.grid}"
    if short > _SHORT_BY_VOXELS * field.grid.spacing.max():
        raise InputError(
            f"{files}: its displacement field ends {short:.3g} mm before {fixed.name} does ({grids}), so it is not one "
            "of this fixed image. Check which files belong together, and their order."
        )
    return [f"the displacement field of {files} has another grid than the fixed image: {grids}"]


def _short_by(grid: Grid, points: np.ndarray) -> float:
    """How far (mm) the furthest of the world points (N, 3) lies from the outermost voxels of a grid."""
    index = grid.index(points)
    beyond = index - index.clip(0, np.array(grid.shape) - 1)
    return float(np.linalg.norm(beyond @ grid.linear.T, axis=1).max())


def _missing(side: Side, landmarks: Landmarks | None) -> list[str]:
    names = [] if landmarks is None else [name for _, name in landmarks.missing]
    return [f"the {side} landmarks give no position for {', '.join(names)}: left out"] if names else []


def _outside(side: Side, landmarks: Landmarks | None, images: Mapping[Side, Image]) -> list[str]:
    """A note on landmarks beyond their image: those of the other image, or LPS taken for RAS."""
    count = 0 if landmarks is None else landmarks.count_outside(images[side].grid)
    if not count:
        return []
    return [
        f"{count} of the {side} landmarks {worded(count, 'lies', 'lie')} outside their image: check which file "
        "is which, and their world"
    ]
