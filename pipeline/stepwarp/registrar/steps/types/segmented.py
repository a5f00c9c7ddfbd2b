"""Steps that are shown a segmentation beside each image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from stepwarp.networks.config import SegmenterConfig
from stepwarp.registrar.steps.segmented import Segmented
from stepwarp.registrar.steps.settings import StepSettings, leaves
from stepwarp.registrar.steps.step import Step

if TYPE_CHECKING:
    from stepwarp.registrar.steps.config import StepConfig


class SegmentedConfig(StepSettings):
    """`Segmented`."""

    step: Literal["segmented"] = "segmented"
    segmenter: SegmenterConfig
    inner: StepConfig
    codes: int = Field(default=8, ge=1, le=256)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @field_validator("inner")
    @classmethod
    def _guided_alone(cls, inner: StepConfig) -> StepConfig:
        others = [leaf.step for leaf in leaves(inner) if leaf.step != "guided"]
        if others:
            raise ValueError(f"a segmentation is shown to guided steps alone, and {others[0]} is none")
        return inner

    def build(self, dims: int) -> Step:
        return Segmented(self.segmenter.build(dims), self.inner.build(dims), self.codes, self.weight)

    @property
    def count(self) -> int:
        return self.inner.count
