"""Learn2Reg's evaluation configs: which measures of which pairs, and where the files of each pair are.

A config names images alone. What else there is of one lies under the same path with another word for `images`:
labelsTr/, masksTr/, keypointsTr/, landmarksTr/ beside imagesTr/. It lists its measures, or, in the first form of 2022,
it is a table of their labels; that of LUMIR calls the task `name` and has maps of landmarks in place of lists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from stepwarp.data.manifest import DataPath, located
from stepwarp.errors import InputError
from stepwarp.files.json import read_json
from stepwarp.presence import why_absent
from stepwarp.recipes import first_problem

_LARGEST_FILE = 16 * 2**20
_OVERLAPS = ("dice", "hd95")
#: The metrics that are known; the challenge's script passes over any other.
METRICS = ("sdlogj", "ndv", *_OVERLAPS, "tre")
#: In the table of the first form: its key, and the name and the metric of what the script of that time reported.
_FIRST_FORM = {
    "sdlogj": ("LogJacDetStd", "sdlogj"),
    "dice": ("DiceCoefficient", "dice"),
    "dice_secret": ("DiceCoefficient_Secret", "dice"),
    "hd95": ("HausdorffDistance95", "hd95"),
    "hd95_secret": ("HausdorffDistance95_Secret", "hd95"),
    "tre": ("TRE", "tre"),
}
#: SUBJECT_MODALITY.nii.gz, or SUBJECT.nii.gz of the first form.
_NUMBERS = re.compile(r"(?:(\d{4})_)?(\d{4})\.nii\.gz$", re.ASCII)
_FIRST_MODALITY = "0000"


def _image(path: str) -> str:
    if "images" not in path or not _NUMBERS.search(path):
        raise ValueError(f"'{path}' is no image of the challenge: these are called imagesTr/TASK_0001_0000.nii.gz")
    return path


def _measures(given: Any) -> Any:
    """The table of the first form as the list that took its place."""
    if not isinstance(given, dict):
        return given
    named = [(_FIRST_FORM.get(key, (key, key)), value) for key, value in given.items() if value is not False]
    return [
        {"name": name, "metric": metric, "dest": "landmarks", "labels": value if isinstance(value, list) else ()}
        for (name, metric), value in named
    ]


ImagePath = Annotated[DataPath, AfterValidator(_image)]


class Measure(BaseModel):
    """One measure of a config. labels: those it is the mean over. dest: what lists of points lie in, without Tr."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(min_length=1)
    metric: str
    labels: tuple[int, ...] = ()
    dest: str = Field(default="", pattern=r"^[A-Za-z0-9_-]*$")

    @model_validator(mode="after")
    def _check_what_it_is_of(self) -> Measure:
        if self.metric in _OVERLAPS and not self.labels:
            raise ValueError(f"'{self.name}' ({self.metric}) lists no labels")
        if self.metric == "tre" and not self.dest:
            raise ValueError(f"'{self.name}' (tre) has no dest, such as keypoints")
        return self


class EvaluationPair(BaseModel):
    """Two images, paths below the data root."""

    model_config = ConfigDict(frozen=True)

    fixed: ImagePath
    moving: ImagePath

    @property
    def id(self) -> str:
        """As the script writes it: 0001_0000<--0004_0000."""
        return "<--".join(f"{subject}_{modality}" for subject, modality in self._numbers)

    @property
    def predictions(self) -> tuple[str, ...]:
        """The names, without suffix, that the displacement of this pair may have, in the order of the script."""
        (fixed, first), (moving, second) = self._numbers
        short = (f"disp_{fixed}_{moving}",) if self._is_plain else ()
        return (*short, f"disp_{fixed}_{first}_{moving}_{second}")

    def folder_of_points(self, dest: str) -> str:
        """What takes the place of `images`: keypoints of images 0 and 2 of a subject lie in keypoints02Tr/."""
        if dest != "keypoints" or self._is_plain:
            return dest
        return dest + "".join(map(str, sorted(int(modality) for _, modality in self._numbers)))

    @property
    def _numbers(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Of the fixed and of the moving image, subject and modality."""
        return _numbered(self.fixed), _numbered(self.moving)

    @property
    def _is_plain(self) -> bool:
        """Whether the modalities are the same, or the first and the second: then no name tells them."""
        first, second = (modality for _, modality in self._numbers)
        return first == second or (first, second) == (_FIRST_MODALITY, "0001")


class EvaluationConfig(BaseModel):
    """An evaluation config; keys that are not here have no influence.

    name: of the task. shape: of a displacement, with its axis of three components. masked: the spread of the Jacobian
    is taken inside the fixed image's mask, where there is one."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(validation_alias=AliasChoices("task_name", "name"))
    shape: tuple[int, int, int, int] = Field(validation_alias="expected_shape")
    measures: Annotated[tuple[Measure, ...], BeforeValidator(_measures)] = Field(
        validation_alias="evaluation_methods", min_length=1
    )
    pairs: tuple[EvaluationPair, ...] = Field(validation_alias="eval_pairs", min_length=1)
    masked: bool = Field(default=False, validation_alias="masked_evaluation")

    @model_validator(mode="after")
    def _refuse_names_that_are_there_twice(self) -> EvaluationConfig:
        names = [measure.name for measure in self.measures]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"the measure '{twice[0]}' is there twice")
        return self

    def of_metrics(self, *metrics: str) -> tuple[Measure, ...]:
        """The measures that are of these metrics."""
        return tuple(measure for measure in self.measures if measure.metric in metrics)


@dataclass(frozen=True)
class EvaluationCase:
    """A pair of a config and its files, absolute. Each is of the fixed and of the moving image.

    labels: where a measure is of labels. mask: of the fixed image, where that is asked for and there is one. points:
    by the name of a measure, lists of points (.csv) or maps of landmarks (.nii.gz)."""

    pair: EvaluationPair
    images: tuple[Path, Path]
    labels: tuple[Path, Path] | None
    mask: Path | None
    points: dict[str, tuple[Path, Path]]

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them that must be there."""
        return (*self.images, *(self.labels or ()), *(path for both in self.points.values() for path in both))


def read_evaluation_config(path: str | Path) -> EvaluationConfig:
    """The evaluation config in a JSON file, of 2022 or later.

    Raises InputError, one line that names file, place and problem, for anything else, and for a path that leaves the
    data root."""
    path = Path(path)
    content = read_json(path, _LARGEST_FILE, "evaluation config")
    if isinstance(content, dict) and "evaluation_methods" not in content and "numTraining" in content:
        raise InputError(
            f"{path}: lists a dataset of Learn2Reg, and says nothing of its evaluation. Give the challenge's "
            "TASK_VAL_evaluation_config.json."
        )
    try:
        return EvaluationConfig.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: is no evaluation config of Learn2Reg. {first_problem(error)}") from None


def evaluation_cases(config: EvaluationConfig, root: Path) -> list[EvaluationCase]:
    """The pairs of a config with their files below the data root.

    Raises InputError if files are missing (the first, and how many), and for links that lead out of the root."""
    found = [_case(pair, config, root) for pair in config.pairs]
    files = list(dict.fromkeys(path for case in found for path in case.files))
    missing = [path for path in files if not path.exists()]
    if missing:
        raise InputError(
            f"{missing[0]}: {why_absent(missing[0])} Absent are {len(missing)} of {len(files)} files of "
            f"'{config.name}'. The data root is {root}; name another with --data."
        )
    return found


def _case(pair: EvaluationPair, config: EvaluationConfig, root: Path) -> EvaluationCase:
    sides = pair.fixed, pair.moving

    def both(folder: str) -> tuple[Path, Path]:
        fixed, moving = (located(side.replace("images", folder), root) for side in sides)
        return fixed, moving

    def points(dest: str) -> tuple[Path, Path]:
        maps = both(pair.folder_of_points(dest))
        lists = tuple(path.with_name(path.name.removesuffix(".nii.gz") + ".csv") for path in maps)
        return maps if maps[0].exists() and not lists[0].exists() else (lists[0], lists[1])

    mask = both("masks")[0] if config.masked else None
    return EvaluationCase(
        pair=pair,
        images=(_image_file(located(sides[0], root)), _image_file(located(sides[1], root))),
        labels=both("labels") if config.of_metrics(*_OVERLAPS) else None,
        mask=mask if mask is not None and mask.exists() else None,
        points={measure.name: points(measure.dest) for measure in config.of_metrics("tre")},
    )


def _image_file(named: Path) -> Path:
    """The first form names images without their modality, which their files have."""
    with_modality = named.with_name(named.name.removesuffix(".nii.gz") + f"_{_FIRST_MODALITY}.nii.gz")
    return with_modality if with_modality.exists() and not named.exists() else named


def _numbered(image: str) -> tuple[str, str]:
    found = _NUMBERS.search(image)
    assert found is not None  # ImagePath
    first, last = found.groups()
    return (last, _FIRST_MODALITY) if first is None else (first, last)
