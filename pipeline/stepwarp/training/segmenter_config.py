"""Recipes of segmenters: networks that name the structures of one image."""

from __future__ import annotations

from pydantic import Field, PositiveInt, model_validator

from stepwarp.networks.config import Levels, SegmenterConfig
from stepwarp.recipes import Strict
from stepwarp.training.settings import TrainingRecipe


class StructureSettings(Strict):
    """A structure to be found, left and right together.

    id: in the label maps that are written. labels: those of the training's maps that are it; its id alone by default.
    brain: whether it is a part of the brain; else it is around it."""

    id: PositiveInt
    name: str = Field(min_length=1)
    labels: tuple[int, ...] = ()
    brain: bool = True

    @property
    def own_labels(self) -> tuple[int, ...]:
        return self.labels or (self.id,)


class SegmenterSettings(Strict):
    """channels, convolutions: as of `networks.segmenter.Segmenter`. structures: its classes from 1 on; what is none of
    them is background."""

    channels: Levels = (48, 64, 96)
    convolutions: int = Field(default=2, ge=1, le=8)
    structures: tuple[StructureSettings, ...] = Field(min_length=1, max_length=511)

    @property
    def network(self) -> SegmenterConfig:
        return SegmenterConfig(classes=1 + len(self.structures), channels=self.channels, convolutions=self.convolutions)

    @property
    def classes(self) -> dict[int, int]:
        """Label of the training's maps -> class."""
        return {label: number for number, each in enumerate(self.structures, 1) for label in each.own_labels}

    @model_validator(mode="after")
    def _refuse_twice(self) -> SegmenterSettings:
        ids = [each.id for each in self.structures]
        labels = [label for each in self.structures for label in each.own_labels]
        for what, values in (("id", ids), ("label", labels)):
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"structures: the {what} {twice} is of two of them")
        return self


class SegmenterTraining(TrainingRecipe):
    """A whole recipe for a segmenter: it learns from both images of each pair, and what is kept is what finds the
    structures best in the images that are held out."""

    segmenter: SegmenterSettings

    @property
    def trains_with_labels(self) -> bool:
        return True

    @model_validator(mode="after")
    def _refuse_teachers(self) -> SegmenterTraining:
        if self.data.teacher is not None:
            raise ValueError("data.teacher: a segmenter learns from label maps, not from transforms")
        return self
