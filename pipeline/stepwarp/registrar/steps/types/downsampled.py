"""A step on coarser images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stepwarp.registrar.steps.sequences import Downsampled
from stepwarp.registrar.steps.settings import StepSettings
from stepwarp.registrar.steps.step import Step

if TYPE_CHECKING:
    from stepwarp.registrar.steps.config import StepConfig


class DownsampledConfig(StepSettings):
    """`Downsampled`."""

    step: Literal["downsampled"] = "downsampled"
    inner: StepConfig
    factor: int = Field(default=2, ge=2, le=32)
    corner_aligned: bool = False

    def build(self, dims: int) -> Step:
        return Downsampled(self.inner.build(dims), self.factor, self.corner_aligned)

    @property
    def parts(self) -> tuple[StepSettings, ...]:
        return (self.inner,)

    @property
    def count(self) -> int:
        return self.inner.count
