"""Carries images, label maps, landmarks, surfaces and streamlines from one image's space to the other's, each with the
map that it needs.

A transform maps points of the fixed world to points of the moving world. An image is carried the other way: every voxel
of the new grid looks up its value where the map sends it. So an image and a landmark on the same journey need maps of
opposite direction. The folder of a registration holds both, and one says where to go; a transform file holds one, and
is used as antsApplyTransforms and antsApplyTransformsToPoints use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stepwarp.errors import InputError
from stepwarp.evaluation.overlap import label_changes
from stepwarp.files import (
    Landmarks,
    TrustRules,
    check_file_target,
    read_image,
    read_labels,
    read_landmarks,
    sha256,
    write_landmarks,
    write_volume,
)
from stepwarp.files.landmarks import LANDMARK_SUFFIXES, keeps_source
from stepwarp.files.point_tables import PointTable
from stepwarp.files.streamlines import STREAMLINE_SUFFIXES, read_streamlines
from stepwarp.files.surfaces import SURFACE_SUFFIX, Surface, read_surface
from stepwarp.files.tables import Space
from stepwarp.geometry import Grid, LabelMap, Volume
from stepwarp.printable import counted, worded
from stepwarp.workflow.journey import Journey, PointMap, Side, load, plan
from stepwarp.workflow.partial_volumes import list_of, write_partial_volumes
from stepwarp.workflow.reading import FOR_LABELS, Interpolation, continues, read_volume
from stepwarp.workflow.subjects import check_outside

Kind = Literal["image", "labels", "landmarks", "surface", "streamlines"]

_VOLUME_SUFFIXES = (".nii", ".nii.gz")
_SHAPE_SUFFIXES = (SURFACE_SUFFIX, *STREAMLINE_SUFFIXES)


@dataclass(frozen=True)
class Applied:
    """What became of one input. how: as what it was read, and which map carried it. notes: what to look at."""

    input: Path
    output: Path
    kind: Kind
    how: str
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return {**vars(self), "input": str(self.input), "output": str(self.output), "notes": list(self.notes)}


def apply(
    transforms: Sequence[str | Path],
    inputs: Sequence[str | Path],
    outputs: Sequence[str | Path],
    *,
    source: Side | None = None,
    target: Side | None = None,
    inverse: bool = False,
    reference: str | Path | None = None,
    interpolation: Interpolation = "auto",
    labels: bool = False,
    partial_volumes: bool = False,
    outside: float | None = None,
    space: Space | None = None,
    trust: str | Sequence[str] | None = None,
    overwrite: bool = False,
) -> list[Applied]:
    """Carry each input file to the output file at the same place of the list; say how.

    Each volume is interpolated once, however long the chain. What the arguments alone reveal is found before anything
    is written.

    Parameters
    ----------
    transforms : sequence of str or Path
        One folder written by `register`; or a chain of transform files and folders in the order of antsApplyTransforms:
        a point meets the first one first, so a warp comes before its affine. "[PATH,1]" is an inverse. With a chain,
        volumes are brought from the space where it ends to the one where it starts, and landmarks the other way; a call
        with both is refused.
    inputs, outputs : sequence of str or Path
        Files, as many of one as of the other: volumes, tables of landmarks, surfaces (.gii) and streamlines (.trk,
        .tck), which their names tell apart. Surfaces and streamlines move as landmarks do, RAS mm, and keep all else.
    source, target : {"fixed", "moving"}, optional
        With one folder, the image that the inputs belong to and the one they are brought to; by default from moving to
        fixed, landmarks as well as images.
    inverse : bool
        Use the inverse of the whole chain.
    reference : str or Path, optional
        An image on whose grid volumes land; with one folder, by default, the grid of its image `target`.
    interpolation : {"auto", "linear", "nearest", "cubic", "sinc"}
        "auto" reads label maps from the nearest voxel, images linearly; "cubic" is the cubic B-spline that passes
        through the voxels, "sinc" Lanczos' windowed sinc, for images without NaN: see `geometry.resampling`.
    labels : bool
        All volumes are label maps.
    partial_volumes : bool
        All volumes are label maps, and become how much of each voxel their labels fill, by linear interpolation: four
        axes, the last one for the labels, which a .json beside it lists as "LabelMap". Label 0 is among them, so that
        they sum to 1.
    outside : float, optional
        What images become where their own grid ends (NaN for nothing); by default what the registration of the folder
        was given, if that can be meant for the image, see `continues`; else their own background, the most frequent
        value on their faces if it covers half of them, else 0. Label maps become 0 there.
    space : {"ras", "lps", "voxel"}, optional
        The world of landmarks in a .csv that does not state it, and in which they are written; or "voxel", of the image
        in the folder that they belong to, from which they become RAS mm.
    trust : str or sequence of str, optional
        Which statement of a header to believe, see `files.TrustRules`.
    overwrite : bool
        Replace outputs that are there.

    Returns
    -------
    list of Applied
        What became of each input, in their order.

    Raises
    ------
    InputError
        For unusable files, for arguments that contradict each other, and for a volume of which nothing falls on its new
        grid.
    OutputError
        For what cannot be written.
    """
    jobs = _jobs(inputs, outputs, overwrite)
    kinds = {_is_points(path) for path, _ in jobs}
    journey = plan(transforms, source, target, inverse)
    if len(kinds) == 2 and not journey.in_folder:
        raise InputError(
            "images and points go opposite ways through transform files. Apply these in two calls, or give the "
            "folder of the registration."
        )
    if partial_volumes:
        _refuse_for_partial_volumes(jobs, interpolation, outside, overwrite)
    elif labels and interpolation not in FOR_LABELS:
        raise InputError(
            f"--labels with --interpolation {interpolation}: labels have no values in between. Leave one out."
        )
    if reference is not None and kinds == {True}:
        raise InputError(f"--reference {reference}: landmarks need no grid. Leave it out.")
    shape = next((path for path, _ in jobs if is_shape(path)), None)
    if shape is not None and space not in (None, "ras"):
        raise InputError(f"--space {space}: {shape} is in RAS mm by its format. Apply it in a call of its own.")
    if labels and outside is not None:
        raise InputError("--labels with --outside: label maps are 0 outside. Leave one out.")
    check_outside(outside)
    rules = TrustRules.of(trust)
    grid = journey.grid if reference is None else read_image(reference, trust=rules).grid
    if grid is None and False in kinds:
        raise InputError("volumes need a grid to land on. Name an image that has it with --reference.")
    carrier = _Carrier(journey, grid, interpolation, labels, partial_volumes, outside, space, rules, overwrite)
    done = [carrier.carry(*job) for job in jobs]
    return [*done[:-1], replace(done[-1], notes=(*done[-1].notes, *rules.notes()))]


@dataclass(frozen=True, eq=False)
class _Carrier:
    """Carries files along one journey; each map is read once, when the first file needs it."""

    journey: Journey
    grid: Grid | None
    interpolation: Interpolation
    labels: bool
    partial_volumes: bool
    outside: float | None
    space: Space | None
    trust: TrustRules
    overwrite: bool

    @cached_property
    def lookup(self) -> PointMap:
        return load(self.journey.lookup, self.trust)

    @cached_property
    def send(self) -> PointMap:
        return load(self.journey.send, self.trust)

    def carry(self, path: Path, output: Path) -> Applied:
        if is_landmarks(path):
            return self._carry_landmarks(path, output)
        if is_shape(path):
            return self._carry_shape(path, output)
        return self._carry_parts(path, output) if self.partial_volumes else self._carry_volume(path, output)

    def _carry_volume(self, path: Path, output: Path) -> Applied:
        volume, decision, said = self._read(path)
        refuse_wrong_side(volume, self.journey)
        warped = volume.warp(self.lookup.transform, onto=self.grid)
        refuse_nothing(volume, warped)
        write_volume(output, warped, overwrite=self.overwrite)
        how = f"{decision}, {volume.outside:g} outside; {self.journey.words}: each voxel of the new grid looks up its "
        how += f"place through {self.lookup}"
        notes = (*self.journey.notes, *self.lookup.notes, *said, *_elsewhere(volume, self.journey.left))
        if isinstance(volume, LabelMap) and isinstance(warped, LabelMap):
            return Applied(path, output, "labels", how, (*notes, *_lost(label_changes(volume, warped).lost)))
        return Applied(path, output, "image", how, notes)

    def _carry_parts(self, path: Path, output: Path) -> Applied:
        labels = read_labels(path, trust=self.trust)
        refuse_wrong_side(labels, self.journey)
        assert self.grid is not None
        values, lost = write_partial_volumes(output, labels, self.lookup.transform, self.grid, self.overwrite)
        how = f"label map, partial volumes of {counted(len(values), 'label')} (listed in {list_of(output)}), linear, "
        how += f"all of label 0 outside; {self.journey.words}: each voxel of the new grid looks up its place through "
        notes = (*self.journey.notes, *self.lookup.notes, *_elsewhere(labels, self.journey.left), *_lost(lost))
        return Applied(path, output, "labels", f"{how}{self.lookup}", notes)

    def _read(self, path: Path) -> tuple[Volume, str, tuple[str, ...]]:
        """A volume, why it is read as it is, and a note where what it is outside comes from the registration."""
        volume, decision = read_volume(path, self.interpolation, self.labels, self.outside, self.trust)
        given = self.journey.outside
        if self.outside is not None or given is None or isinstance(volume, LabelMap):
            return volume, decision, ()
        registered = self.journey.sha256 is not None and sha256(path) == self.journey.sha256
        if not (registered or continues(volume, given)):
            note = f"the registration was given --outside {given:g}, which is no value of this image: it has its own"
            return volume, decision, (f"{note} background there; say --outside if that is wrong",)
        volume, decision = read_volume(path, self.interpolation, self.labels, given, self.trust)
        return volume, decision, (f"{given:g} outside as given to the registration; --outside says another value",)

    def _carry_landmarks(self, path: Path, output: Path) -> Applied:
        landmarks = read_landmarks(path, self.space, self.journey.left)
        sent = landmarks.moved(self.send.transform(landmarks.points))
        write_landmarks(output, sent, self.space or "ras", self.overwrite)
        how = f"{counted(len(sent), 'landmark')}; {self.journey.words}: each point goes through {self.send}"
        outside = _outside(self._count_outside(landmarks.points), len(landmarks), "landmark")
        notes = (*self.journey.notes, *self.send.notes, *outside, *_not_carried(sent, output))
        return Applied(path, output, "landmarks", how, notes)

    def _carry_shape(self, path: Path, output: Path) -> Applied:
        shape = read_surface(path) if _ends(path, (SURFACE_SUFFIX,)) else read_streamlines(path)
        number, outside = 0, 0
        for points in shape.points():
            number += len(points)
            outside += self._count_outside(points)
        shape.write_moved(output, self.send.transform, self.overwrite)
        how = f"{counted(number, 'point')}; {self.journey.words}: each point goes through {self.send}"
        notes = (*self.journey.notes, *self.send.notes, *_outside(outside, number, "point"), *shape.remarks())
        return Applied(path, output, "surface" if isinstance(shape, Surface) else "streamlines", how, notes)

    def _count_outside(self, points: np.ndarray) -> int:
        return 0 if self.journey.left is None else self.journey.left.count_outside(points)


def _jobs(inputs: Sequence[str | Path], outputs: Sequence[str | Path], overwrite: bool) -> list[tuple[Path, Path]]:
    """Pairs of input and output that can be worth starting with."""
    if len(inputs) != len(outputs) or not inputs:
        raise InputError(
            f"{counted(len(inputs), 'input')} and {counted(len(outputs), 'output')} do not pair up. Give one "
            "output per input."
        )
    jobs = [(Path(path), Path(output)) for path, output in zip(inputs, outputs, strict=True)]
    taken = {path.resolve() for path, _ in jobs}
    for path, output in jobs:
        if output.resolve() in taken:
            raise InputError(f"{output}: is an input or another output as well. Choose another name.")
        taken.add(output.resolve())
        suffixes = _written_as(path)
        if not _ends(output, suffixes):
            raise InputError(f"{output}: what {path} becomes is written as {', '.join(suffixes)}. Choose such a name.")
        check_file_target(output, overwrite)
    return jobs


def _refuse_for_partial_volumes(
    jobs: list[tuple[Path, Path]], interpolation: Interpolation, outside: float | None, overwrite: bool
) -> None:
    if interpolation not in ("auto", "linear"):
        raise InputError(f"--partial-volumes with --interpolation {interpolation}: they are linear. Leave one out.")
    if outside is not None:
        raise InputError("--partial-volumes with --outside: label maps are 0 outside. Leave one out.")
    for path, output in jobs:
        if not _is_points(path):
            check_file_target(list_of(output), overwrite)


def is_landmarks(path: Path) -> bool:
    """Whether a file of that name holds landmarks."""
    return _ends(path, LANDMARK_SUFFIXES)


def is_shape(path: Path) -> bool:
    """Whether a file of that name holds a surface or streamlines."""
    return _ends(path, _SHAPE_SUFFIXES)


def _is_points(path: Path) -> bool:
    return is_landmarks(path) or is_shape(path)


def _written_as(path: Path) -> tuple[str, ...]:
    """How the names of files end that what a file holds can become."""
    if is_landmarks(path):
        return LANDMARK_SUFFIXES
    return next(((suffix,) for suffix in _SHAPE_SUFFIXES if _ends(path, (suffix,))), _VOLUME_SUFFIXES)


def _ends(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def refuse_wrong_side(volume: Volume, journey: Journey) -> None:
    """InputError for a volume on the very grid it should be brought to, if nobody said that it comes from the other."""
    if journey.default and journey.left != journey.grid and volume.grid == journey.grid:
        raise InputError(
            f"{volume.name}: lies on the grid of the fixed image, and without --from it would be taken for one of the "
            "moving image. Say --from fixed, or --from moving if that is right."
        )


def refuse_nothing(volume: Volume, warped: Volume) -> None:
    """InputError for a volume with something in it of which nothing is left."""
    if not _is_empty(volume) and _is_empty(warped):
        raise InputError(f"{volume.name}: nothing of it falls on the new grid. Check the transform and its direction.")


def _is_empty(volume: Volume) -> bool:
    """Whether a volume holds nothing but what it holds outside."""
    nothing = volume.data == volume.outside
    return bool((nothing if volume.missing is None else nothing | volume.missing).all())


def _elsewhere(volume: Volume, left: Grid | None) -> tuple[str, ...]:
    """A note on a volume with as many voxels as the image that was registered, in another place: that image may have
    been placed otherwise, by --trust, or this one be that of another scan."""
    if left is None or volume.grid.shape != left.shape or volume.grid.coincides_with(left):
        return ()
    away = volume.grid.distance_to(left)
    return (
        f"it has as many voxels as the image that was registered and lies up to {away:.3g} mm away from it; if it "
        "belongs to that image, its header must say the same place",
    )


def _lost(lost: Sequence[int]) -> tuple[str, ...]:
    return (
        (f"{counted(len(lost), 'label is', 'labels are')} no longer there: {', '.join(map(str, lost[:20]))}",)
        if lost
        else ()
    )


def _outside(count: int, number: int, what: str) -> tuple[str, ...]:
    """A note on points beyond the image that they are said to belong to: the wrong side, or LPS taken for RAS."""
    text = (
        f"{count} of {counted(number, what)} {worded(count, 'lies', 'lie')} outside the image "
        "they should belong to: check --from and --space"
    )
    return (text,) if count else ()


def _not_carried(landmarks: Landmarks, output: Path) -> tuple[str, ...]:
    """Notes on landmarks without a position, and on what their file held and the new one does not."""
    notes = []
    if landmarks.missing:
        notes.append(f"without a position, and still so: {', '.join(name for _, name in landmarks.missing)}")
    source = landmarks.source
    if source is not None and not keeps_source(output, landmarks):
        notes.append(f"{output.name} holds names and positions; further columns are kept in a file of the input's kind")
    elif isinstance(source, PointTable) and source.left_out:
        notes.append(f"the columns {', '.join(source.left_out)} say where the points were, and are left out")
    return tuple(notes)
