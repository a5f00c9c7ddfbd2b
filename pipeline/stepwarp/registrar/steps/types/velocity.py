"""A network's output as a stationary velocity."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stepwarp.networks.config import DenseNetConfig, UNetConfig
from stepwarp.registrar.steps.settings import StepSettings
from stepwarp.registrar.steps.step import Step
from stepwarp.registrar.steps.steps import Unit, Velocity

_Positive = Annotated[float, Field(gt=0, le=1000)]


class VelocityConfig(StepSettings):
    """`Velocity`. kernel: (standard deviation in mm, weight) of each Gaussian."""

    step: Literal["velocity"] = "velocity"
    net: DenseNetConfig = UNetConfig()
    squarings: int = Field(default=6, ge=0, le=12)
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    unit: Unit = "voxels"
    kernel: tuple[tuple[_Positive, _Positive], ...] = Field(default=(), max_length=8)

    def build(self, dims: int) -> Step:
        return Velocity(self.net.build(dims), self.squarings, self.scale, self.unit, self.kernel)
