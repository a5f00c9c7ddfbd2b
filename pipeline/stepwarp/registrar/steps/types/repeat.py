"""A step several times, with the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stepwarp.kernels.sampling import Outside
from stepwarp.registrar.steps.sequences import Repeat
from stepwarp.registrar.steps.settings import StepSettings
from stepwarp.registrar.steps.step import Step

if TYPE_CHECKING:
    from stepwarp.registrar.steps.config import StepConfig


class RepeatConfig(StepSettings):
    """`Repeat`."""

    step: Literal["repeat"] = "repeat"
    inner: StepConfig
    n: int = Field(ge=1, le=1000)
    used: int | None = Field(default=None, ge=1, le=1000)
    lazy: bool = False
    outside: Outside = "zero"

    def build(self, dims: int) -> Step:
        return Repeat(self.inner.build(dims), self.n, self.lazy, self.outside, self.used)

    @property
    def parts(self) -> tuple[StepSettings, ...]:
        return (self.inner,)

    @property
    def count(self) -> int:
        return max(self.n, self.used or 0) * self.inner.count
