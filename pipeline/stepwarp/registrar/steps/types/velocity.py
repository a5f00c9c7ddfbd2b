"""A network's output as a stationary velocity."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stepwarp.networks.config import DenseNetConfig, UNetConfig
from stepwarp.registrar.steps.settings import StepSettings
from stepwarp.registrar.steps.step import Step
from stepwarp.registrar.steps.steps import Unit, Velocity


class VelocityConfig(StepSettings):
    """`Velocity`."""

    step: Literal["velocity"] = "velocity"
    net: DenseNetConfig = UNetConfig()
    squarings: int = Field(default=6, ge=0, le=12)
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    unit: Unit = "voxels"

    def build(self, dims: int) -> Step:
        return Velocity(self.net.build(dims), self.squarings, self.scale, self.unit)
