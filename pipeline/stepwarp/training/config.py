"""Recipes of trainings: `configs/<family>.yaml`, and changes to them from the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from stepwarp.errors import InputError
from stepwarp.networks.config import SegmenterConfig
from stepwarp.recipes import Strict, changed, configs_folder, first_problem, read_recipe
from stepwarp.registrar.steps.config import StepConfig
from stepwarp.registrar.steps.settings import leaves
from stepwarp.registrar.steps.types.segmented import SegmentedConfig
from stepwarp.registrar.steps.types.two_step import TwoStepConfig
from stepwarp.training.segmenter_config import SegmenterTraining
from stepwarp.training.settings import AnyStage, AnyValidation, Finite, TrainingRecipe, Weight
from stepwarp.training.similarities import DEFAULT, AnySimilarity

#: The study of `stepwarp mnist`, which is no recipe for scans.
_MNIST = "mnist"
#: Voxels this much larger or smaller are of the size that was meant.
_SAME_MM = 1e-6


class LossGrid(Strict):
    """A grid on which the similarity is measured: voxels of `mm`, a whole multiple of the data's; its weight."""

    mm: PositiveFloat
    weight: Finite = 1.0


class LossSettings(Strict):
    """What is made small: a sum of terms, each a mean over voxels times its weight, the same on grids of any spacing.

    similarity: on each of `grids`, their weights scaled to a sum of 1. The other terms are taken on the finest of these
    grids. regularity: of the displacement; diffusion has no unit, bending mm^-2. inverse_consistency: mean squared
    distance (mm^2) from the start after going there and back; gradicon: the same of the derivative, without unit.
    folding: how far below 0 Jacobian determinants are. dice: 1 - mean overlap of the label maps. supervision: mean
    squared distance to the teacher's map (mm^2).

    symmetric: train on both directions of a pair, for twice the time; inverse_consistency and gradicon do so anyway."""

    similarity: AnySimilarity = DEFAULT
    similarity_weight: Weight = 1.0
    grids: tuple[LossGrid, ...] = Field(min_length=1)
    regularity: Literal["diffusion", "bending"] = "diffusion"
    regularity_weight: Weight = 0.0
    inverse_consistency: Weight = 0.0
    gradicon: Weight = 0.0
    folding: Weight = 0.0
    dice: Weight = 0.0
    supervision: Weight = 0.0
    symmetric: bool = False

    @property
    def both_ways(self) -> bool:
        return self.symmetric or self.inverse_consistency > 0 or self.gradicon > 0

    @model_validator(mode="after")
    def _refuse_nothing(self) -> LossSettings:
        if not self.similarity_weight + self.dice + self.supervision > 0:
            raise ValueError("nothing brings the images together: similarity_weight, dice and supervision are all 0")
        return self


class Stage(AnyStage):
    """A part of the training of a registrar.

    steps: how many of the recipe's topmost steps take part, the first ones; all by default. frozen: so many of these
    stay as they are. grids: of the similarity, instead of the loss's. spacing_mm: images are averaged to voxels of
    this size before the registrar sees them; a whole multiple of the data's.

    segmenter: train the network of a `segmented` registrar that segments, by the label maps and by nothing else; in all
    other stages it stays as it is."""

    steps: PositiveInt | None = None
    frozen: NonNegativeInt = 0
    grids: tuple[LossGrid, ...] | None = Field(default=None, min_length=1)
    spacing_mm: PositiveFloat | None = None
    segmenter: bool = False


class ValidationSettings(AnyValidation):
    """On the manifest's pairs among the scans that are held out.

    keep_best_by: the measure that decides which weights are kept; mean_dice wants labels, and so does
    segmentation_dice, how well a registrar's segmenter finds them; loss is the dissimilarity on the finest grid."""

    keep_best_by: Literal["mean_dice", "segmentation_dice", "loss"] = "mean_dice"


class TrainingConfig(TrainingRecipe):
    """A whole recipe for a registrar.

    steps: see `registrar.steps.config`. start: weights of steps that are not segmented serve within ones that are."""

    steps: StepConfig
    loss: LossSettings
    curriculum: tuple[Stage, ...] = Field(min_length=1)
    validation: ValidationSettings = ValidationSettings()

    @property
    def segmenter(self) -> SegmenterConfig | None:
        """The network that segments, if the registrar has one."""
        return self.steps.segmenter if isinstance(self.steps, SegmentedConfig) else None

    @property
    def step_count(self) -> int:
        """How many topmost steps there are, for stages to count."""
        steps = self.steps.inner if isinstance(self.steps, SegmentedConfig) else self.steps
        return len(steps.steps) if isinstance(steps, TwoStepConfig) else 1

    @property
    def trains_segmenter(self) -> bool:
        return any(stage.segmenter for stage in self.curriculum)

    @property
    def trains_with_labels(self) -> bool:
        return self.loss.dice > 0 or self.trains_segmenter

    @model_validator(mode="after")
    def _check_stages(self) -> TrainingConfig:
        count = self.step_count
        for number, stage in enumerate(self.curriculum):
            active = count if stage.steps is None else stage.steps
            if active > count:
                raise ValueError(f"curriculum.{number}: {active} steps take part, and the registrar has {count}")
            self._check_segmenter(number, stage)
            if stage.frozen >= active:
                raise ValueError(f"curriculum.{number}: all {active} steps are frozen, so nothing is trained")
            sizes: dict[str, float | None] = {f"curriculum.{number}.spacing_mm": stage.spacing_mm}
            sizes |= {f"curriculum.{number}.grids.{n}.mm": grid.mm for n, grid in enumerate(stage.grids or ())}
            self._check_sizes(sizes)
        self._check_sizes({f"loss.grids.{n}.mm": grid.mm for n, grid in enumerate(self.loss.grids)})
        last = next((stage.spacing_mm for stage in reversed(self.curriculum) if not stage.segmenter), None)
        if last is not None and pooling(self.data.spacing_mm, last) != 1:
            raise ValueError(
                f"curriculum.{len(self.curriculum) - 1}.spacing_mm: the registrar will be used on images of"
                f" {self.data.spacing_mm:g} mm, so the last stage must train it on them"
            )
        return self

    @model_validator(mode="after")
    def _check_truth(self) -> TrainingConfig:
        if self.loss.dice and not self.data.labels:
            raise ValueError("loss.dice needs label maps: set data.labels to true")
        if self.trains_segmenter and not self.data.labels:
            raise ValueError("a stage that trains the segmenter needs label maps: set data.labels to true")
        segmented = any(isinstance(leaf, SegmentedConfig) for leaf in leaves(self.steps))
        if segmented and self.segmenter is None:
            raise ValueError("steps: segmented steps can be trained where they hold all others, not among them")
        if segmented and not self.trains_segmenter and self.start is None:
            raise ValueError("no stage trains the segmenter, and there is no start that holds a trained one")
        if self.loss.supervision and self.data.teacher is None:
            raise ValueError("loss.supervision needs data.teacher, the name of the manifest's transforms to learn from")
        best_by = self.validation.keep_best_by
        if best_by != "loss" and not self.data.labels:
            raise ValueError(
                f"validation.keep_best_by: {best_by} needs data.labels; without labels, keep_best_by: loss"
            )
        if best_by == "segmentation_dice" and not self.trains_segmenter:
            raise ValueError("validation.keep_best_by: segmentation_dice is for stages that train a segmenter")
        return self

    def _check_segmenter(self, number: int, stage: Stage) -> None:
        if stage.segmenter and self.segmenter is None:
            raise ValueError(f"curriculum.{number}.segmenter: is for segmented steps")
        others = [name for name in ("steps", "grids", "spacing_mm") if getattr(stage, name) is not None]
        others += ["frozen"] if stage.frozen else []
        if stage.segmenter and others:
            raise ValueError(f"curriculum.{number}.{others[0]}: is for the steps, and this stage trains the segmenter")
        if self.segmenter is not None and stage.spacing_mm is not None:
            raise ValueError(f"curriculum.{number}.spacing_mm: a segmenter knows images of the data's spacing alone")

    def _check_sizes(self, sizes: dict[str, float | None]) -> None:
        for place, mm in sizes.items():
            if mm is not None and pooling(self.data.spacing_mm, mm) is None:
                raise ValueError(f"{place}: {mm:g} mm is no whole multiple of the data's {self.data.spacing_mm:g} mm")


#: The recipe of any training.
AnyTraining = TrainingConfig | SegmenterTraining


def pooling(spacing_mm: float, mm: float) -> int | None:
    """How many voxels along an axis make one of `mm`; None if that is no whole number."""
    factor = max(1, round(mm / spacing_mm))
    return factor if abs(factor * spacing_mm - mm) < _SAME_MM else None


def read_config(source: str | Path, overrides: Iterable[str] = ()) -> AnyTraining:
    """The recipe in a YAML file, or one that comes with stepwarp by its name, changed by "a.b=c" texts.

    Raises InputError, one line that names the file, the place in it and the problem."""
    path = _config_path(source)
    return changed_config(read_recipe(path, "data, steps, loss and curriculum"), overrides, str(path))


def changed_config(values: dict[str, Any], overrides: Iterable[str], source: str) -> AnyTraining:
    """The recipe of plain data that came from `source`, changed by "a.b=c" texts. InputError as `read_config`."""
    return check_config(changed(values, overrides, _kind(values)), source)


def check_config(values: object, source: str) -> AnyTraining:
    """The recipe of plain data that came from `source`: for a segmenter where it has one, else for a registrar.
    InputError as `read_config`."""
    try:
        return _kind(values).model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {first_problem(error)}".replace("?.", "?")) from error


def _kind(values: object) -> type[TrainingConfig] | type[SegmenterTraining]:
    return SegmenterTraining if isinstance(values, dict) and "segmenter" in values else TrainingConfig


def training_recipes() -> list[str]:
    """The names of the recipes of trainings that come with stepwarp."""
    return sorted(path.stem for path in configs_folder().glob("*.yaml") if path.stem != _MNIST)


def _config_path(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError(f"{path}: is a folder. Name a recipe's file in it.")
    if path.name == str(source) and path.stem in training_recipes():
        return configs_folder() / f"{path.stem}.yaml"
    raise InputError(f"{source}: is neither a file nor one of the recipes {', '.join(training_recipes())}")
