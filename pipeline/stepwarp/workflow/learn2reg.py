"""Judges predictions for a task of Learn2Reg: the challenge's own numbers, and those of `evaluate` beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from stepwarp.data.learn2reg import (
    METRICS,
    EvaluationCase,
    EvaluationConfig,
    evaluation_cases,
    read_evaluation_config,
)
from stepwarp.errors import InputError
from stepwarp.evaluation import learn2reg
from stepwarp.evaluation.evaluate import json_ready, measured_in, of_field, of_labels
from stepwarp.evaluation.landmarks import target_registration_error
from stepwarp.evaluation.regularity import non_diffeomorphic_volume
from stepwarp.files import TrustRules, read_image, read_labels, read_landmarks, sha256
from stepwarp.files.learn2reg import learn2reg_transform, read_displacement
from stepwarp.geometry import DisplacementField, Grid, Image, LabelMap, Transform, Volume
from stepwarp.printable import counted, worded
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.version import __version__

#: The metric of a config -> the key, in `evaluation.metrics`, of what is ours beside it.
_OURS = {
    "sdlogj": "std_log_jacobian",
    "num_foldings": "folds",
    "ndv": "ndv_percent",
    "dice": "mean_dice",
    "hd95": "mean_hd95_mm",
    "tre": "tre_mm",
}
#: What the script reports beside the spread of the Jacobian, without being asked.
_FOLDINGS = "num_foldings"
V = TypeVar("V", bound=Volume)

#: Values by the names of measures; NaN and infinity are results like others.
Values = dict[str, float]


def evaluate_learn2reg(
    config: str | Path,
    predictions: str | Path,
    *,
    data: str | Path | None = None,
    trust: str | Sequence[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """What Learn2Reg's script and `evaluate` say of a folder of predicted displacements, JSON-ready.

    All places are told by voxels, as the challenge does it: of headers only the images' own placement counts, for what
    is ours and in mm.

    Parameters
    ----------
    config : str or Path
        The challenge's evaluation config, TASK_VAL_evaluation_config.json.
    predictions : str or Path
        The folder of disp_0001_0004.nii.gz or .npz, as `files.learn2reg` takes them; where the modalities are not the
        same, or the first and the second, disp_0001_0001_0001_0000.
    data : str or Path, optional
        The folder in which the config's paths begin; its own by default.
    trust : str or sequence of str, optional
        Which statement of a header to believe, see `files.TrustRules`.
    progress : callable
        Is told the pairs, as `ProgressReport`.

    Returns
    -------
    dict
        stepwarp (version), task, config {path, sha256}, data, predictions (folders), measures [{name, metric, stepwarp:
        the key of ours in `evaluation.metrics`}], pairs [{pair, prediction, learn2reg {name: value}, stepwarp {name:
        value}, or reason in their place where there is no result}], aggregates {name: {learn2reg, stepwarp}}, each
        with mean, std, 30 and 70 of `evaluation.learn2reg.summary`, over the pairs that have a result, and notes. A
        value that is not finite is null.

    Raises
    ------
    InputError
        For a config that is none, files of the challenge that are missing, and a folder that is none.
    """
    config, folder, rules = Path(config), Path(predictions), TrustRules.of(trust)
    asked = read_evaluation_config(config)
    root = Path(data) if data is not None else config.parent
    for place, option in ((root, "--data"), (folder, "--predictions")):
        if not place.is_dir():
            raise InputError(f"{place}: is no folder. Name one with {option}.")
    cases = evaluation_cases(asked, root)
    rows = []
    for done, case in enumerate(cases):
        progress(ProgressReport("pairs", done, len(cases)))
        rows.append(_row(case, asked, folder, rules))
    progress(ProgressReport("pairs", len(cases), len(cases)))
    columns = _columns(asked)
    result = {
        "stepwarp": __version__,
        "task": asked.name,
        "config": {"path": str(config.resolve()), "sha256": sha256(config)},
        "data": str(root.resolve()),
        "predictions": str(folder.resolve()),
        "measures": columns,
        "pairs": rows,
        "aggregates": {column["name"]: _aggregate(column["name"], rows) for column in columns},
    }
    notes = [*_notes(asked, cases, rows), *rules.notes()]
    return json_ready(result) | {"trusted": rules.record(), "notes": notes}


@dataclass(frozen=True, eq=False)
class _ReadPair:
    """What is read of a case. Label maps and mask lie on their images' grids. displacement: (3, I, J, K) voxels."""

    fixed: Image
    moving: Image
    labels: tuple[LabelMap, LabelMap] | None
    mask: LabelMap | None
    displacement: np.ndarray
    transform: Transform


def _row(case: EvaluationCase, config: EvaluationConfig, folder: Path, trust: TrustRules) -> dict[str, Any]:
    """What is said of a case: its numbers, or why there are none."""
    row: dict[str, Any] = {"pair": case.pair.id, "prediction": None}
    try:
        prediction = _prediction(case, folder)
        row["prediction"] = str(prediction)
        pair = _read(case, config, prediction, trust)
        # What a warp folds or loses makes NaN of the script's means, which is their value.
        with np.errstate(invalid="ignore"):
            return row | {"learn2reg": _theirs(pair, case, config, trust), "stepwarp": _ours(pair, case, config, trust)}
    except InputError as error:
        return row | {"reason": str(error)}


def _prediction(case: EvaluationCase, folder: Path) -> Path:
    stems = case.pair.predictions
    names = [stem + suffix for stem in stems for suffix in (".npz", ".nii.gz")]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise InputError(
            f"{folder}: holds no {' or '.join(stems)}, .npz or .nii.gz. Predict this pair, or check the file's name."
        )
    return found


def _read(case: EvaluationCase, config: EvaluationConfig, prediction: Path, trust: TrustRules) -> _ReadPair:
    fixed, moving = (read_image(path, trust=trust) for path in case.images)
    _check_shape(config, fixed)
    displacement = read_displacement(prediction, fixed.grid)
    labels = None
    if case.labels is not None:
        maps = (read_labels(path, trust=trust) for path in case.labels)
        in_fixed, in_moving = (_by_voxel(m, image) for m, image in zip(maps, (fixed, moving), strict=True))
        labels = in_fixed, in_moving
    mask = None if case.mask is None else _by_voxel(read_labels(case.mask, trust=trust), fixed)
    transform = learn2reg_transform(displacement, fixed.grid, moving.grid)
    return _ReadPair(fixed, moving, labels, mask, displacement, transform)


def _check_shape(config: EvaluationConfig, fixed: Image) -> None:
    """InputError unless the config expects displacements of all or half the fixed image's voxels."""
    expected = config.shape[1:] if config.shape[0] == 3 else config.shape[:3]
    if expected not in (fixed.grid.shape, tuple(n // 2 for n in fixed.grid.shape)):
        raise InputError(
            f"{fixed.name}: has {_times(fixed.grid.shape)} voxels, and the config expects displacements of "
            f"{_times(expected)}. Check that the data are those of the config."
        )


def _by_voxel(volume: V, image: Image) -> V:
    """A volume on its image's grid, whatever its own header says."""
    if volume.grid.shape != image.grid.shape:
        raise InputError(
            f"{volume.name}: has {_times(volume.grid.shape)} voxels, and its image {image.name} has "
            f"{_times(image.grid.shape)}. Fetch the challenge's files again."
        )
    return replace(volume, grid=image.grid)


def _theirs(pair: _ReadPair, case: EvaluationCase, config: EvaluationConfig, trust: TrustRules) -> Values:
    """By the challenge's definitions."""
    values: Values = {}
    if pair.labels is not None:
        fixed, moving = (labels.data.numpy() for labels in pair.labels)
        warped = learn2reg.warped_labels(moving, pair.displacement)
        for measure in config.of_metrics("dice", "hd95"):
            of_label = learn2reg.dice if measure.metric == "dice" else learn2reg.hd95
            values[measure.name] = _mean(
                v for v in of_label(fixed, moving, warped, measure.labels) if not math.isnan(v)
            )
    for measure in config.of_metrics("sdlogj"):
        mask = None if pair.mask is None else pair.mask.data.numpy()
        values[measure.name], values[_FOLDINGS] = learn2reg.spread_and_folds(pair.displacement, mask)
    for measure in config.of_metrics("ndv"):
        values[measure.name] = _share_in_moving(pair)
    for measure in config.of_metrics("tre"):
        values[measure.name] = _mean(_their_errors(pair, case.points[measure.name], trust))
    return values


def _their_errors(pair: _ReadPair, files: tuple[Path, Path], trust: TrustRules) -> np.ndarray:
    if _are_maps(files):
        fixed, moving = _landmark_maps(pair, files, trust)
        return learn2reg.centre_errors(fixed, learn2reg.warped_labels(moving, pair.displacement))
    fixed, moving = _points(pair, files, trust)
    return learn2reg.landmark_errors(pair.displacement, fixed, moving, pair.moving.grid.spacing)


def _share_in_moving(pair: _ReadPair) -> float:
    """LUMIR's percentage of non-diffeomorphic volume: where the moving image is above 0, inside of its outermost
    voxels, although the displacement is one of the fixed image."""
    grid = Grid.isotropic(pair.fixed.grid.shape)
    if pair.moving.grid.shape != grid.shape:
        raise InputError(
            f"{pair.moving.name}: has {_times(pair.moving.grid.shape)} voxels, and {pair.fixed.name} has "
            f"{_times(grid.shape)}; the challenge's ndv needs as many."
        )
    inside = torch.zeros(grid.shape, dtype=torch.bool)
    core = (slice(1, -1),) * 3
    inside[core] = pair.moving.data[core] > 0
    field = DisplacementField(torch.from_numpy(np.ascontiguousarray(pair.displacement, np.float32))[None], grid)
    return non_diffeomorphic_volume(field, inside).percent if inside.any() else math.nan


def _ours(pair: _ReadPair, case: EvaluationCase, config: EvaluationConfig, trust: TrustRules) -> Values:
    """By the definitions of `evaluate`; labels are those of the config, and the mask is its, where it has one."""
    field = of_field(pair.transform, pair.fixed.grid, measured_in(pair.fixed, pair.mask)[0])
    values: Values = {}
    for measure in config.of_metrics("sdlogj"):
        values[measure.name], values[_FOLDINGS] = _number(field["std_log_jacobian"]), field["folds"]["count"]
    for measure in config.of_metrics("ndv"):
        values[measure.name] = field["ndv"]["percent"]
    scores = _our_scores(pair, config)
    for measure in config.of_metrics("dice", "hd95"):
        key = "dice" if measure.metric == "dice" else "hd95_mm"
        values[measure.name] = _mean(scores[n][key] for n in measure.labels if n in scores)
    for measure in config.of_metrics("tre"):
        fixed, moving = _world_points(pair, case.points[measure.name], trust)
        values[measure.name] = _mean(target_registration_error(pair.transform, fixed, moving))
    return values


def _our_scores(pair: _ReadPair, config: EvaluationConfig) -> dict[int, Mapping[str, float]]:
    """Of each label that a measure is of and that both maps hold."""
    if pair.labels is None:
        return {}
    wanted = {label for measure in config.of_metrics("dice", "hd95") for label in measure.labels}
    others = {int(n) for labels in pair.labels for n in torch.unique(labels.data)} - wanted
    found = of_labels(*pair.labels, pair.transform, frozenset(others))
    return {int(label): scores for label, scores in found["labels"].items()}


def _world_points(pair: _ReadPair, files: tuple[Path, Path], trust: TrustRules) -> tuple[np.ndarray, np.ndarray]:
    """Points that match by row, RAS mm; of maps, the centres of the landmarks that both of them hold."""
    if not _are_maps(files):
        fixed, moving = _points(pair, files, trust)
    else:
        maps = _landmark_maps(pair, files, trust)
        both = sorted({*np.unique(maps[0]).tolist()} & {*np.unique(maps[1]).tolist()} - {0})
        fixed, moving = (learn2reg.centres(labels, both) for labels in maps)
    return pair.fixed.grid.world(fixed), pair.moving.grid.world(moving)


def _are_maps(files: tuple[Path, Path]) -> bool:
    return files[0].suffix != ".csv"


def _points(pair: _ReadPair, files: tuple[Path, Path], trust: TrustRules) -> tuple[np.ndarray, np.ndarray]:
    """The rows of two lists, voxels."""
    grids = pair.fixed.grid, pair.moving.grid
    lists = [read_landmarks(path, "voxel", grid) for path, grid in zip(files, grids, strict=True)]
    fixed, moving = (len(points.listed()[0]) for points in lists)
    if fixed != moving or any(points.missing for points in lists):
        raise InputError(
            f"{files[0]}: lists {counted(fixed, 'point')}, and {files[1]} {moving}; both need as many, each with a "
            "position. Fetch the challenge's files again."
        )
    in_fixed, in_moving = (grid.index(points.points) for points, grid in zip(lists, grids, strict=True))
    return in_fixed, in_moving


def _landmark_maps(pair: _ReadPair, files: tuple[Path, Path], trust: TrustRules) -> tuple[np.ndarray, np.ndarray]:
    images = pair.fixed, pair.moving
    fixed, moving = (
        _by_voxel(read_labels(path, trust=trust), image).data.numpy() for path, image in zip(files, images, strict=True)
    )
    return fixed, moving


def _columns(config: EvaluationConfig) -> list[dict[str, str]]:
    """What there is a number of, in the order of the config."""
    columns = []
    for measure in config.of_metrics(*METRICS):
        columns.append({"name": measure.name, "metric": measure.metric, "stepwarp": _OURS[measure.metric]})
        if measure.metric == "sdlogj":
            columns.append({"name": _FOLDINGS, "metric": _FOLDINGS, "stepwarp": _OURS[_FOLDINGS]})
    return columns


def _aggregate(name: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, Values]:
    found = {side: [row[side][name] for row in rows if side in row] for side in ("learn2reg", "stepwarp")}
    with np.errstate(invalid="ignore"):  # of infinite values there is no spread
        return {side: learn2reg.summary(values) for side, values in found.items() if values}


def _notes(config: EvaluationConfig, cases: list[EvaluationCase], rows: list[dict[str, Any]]) -> list[str]:
    notes = []
    unknown = [measure for measure in config.measures if measure.metric not in METRICS]
    notes += [f"'{m.name}' is left out: there is no metric '{m.metric}' here, nor in the script" for m in unknown]
    without = [row["pair"] for row in rows if "reason" in row]
    if without:
        notes.append(
            f"{len(without)} of {counted(len(rows), 'pair')} {worded(len(without), 'has', 'have')} no result: what is "
            "said of all is of the others, where the challenge's script gives no number at all"
        )
    unmasked = [case.pair.id for case in cases if config.masked and case.mask is None]
    if unmasked:
        notes.append(
            f"there is no mask of the fixed image of {', '.join(unmasked)}: all of it counts, as in the script"
        )
    lost = [row["pair"] for row in rows if "learn2reg" in row and any(map(math.isinf, row["learn2reg"].values()))]
    if lost:
        notes.append(f"a label is lost in {', '.join(lost)}: the challenge's distance is infinite, and null in JSON")
    return notes


def _mean(values: Iterable[float]) -> float:
    """NaN where there are none."""
    values = list(values)
    return float(np.mean(values)) if values else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _times(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
