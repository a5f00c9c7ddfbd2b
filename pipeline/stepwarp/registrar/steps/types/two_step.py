"""Steps one after the other."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stepwarp.kernels.sampling import Outside
from stepwarp.registrar.steps.sequences import TwoStep
from stepwarp.registrar.steps.settings import StepSettings
from stepwarp.registrar.steps.step import Step

if TYPE_CHECKING:
    from stepwarp.registrar.steps.config import StepConfig


class TwoStepConfig(StepSettings):
    """`TwoStep`, also of more than two: they are nested to the left."""

    step: Literal["two_step"] = "two_step"
    steps: tuple[StepConfig, ...] = Field(min_length=2, max_length=64)
    lazy: bool = False
    outside: Outside = "zero"

    def build(self, dims: int) -> Step:
        steps = [step.build(dims) for step in self.steps]
        return reduce(lambda first, second: TwoStep(first, second, self.lazy, self.outside), steps)

    @property
    def parts(self) -> tuple[StepSettings, ...]:
        return self.steps

    @property
    def count(self) -> int:
        return sum(step.count for step in self.steps)
