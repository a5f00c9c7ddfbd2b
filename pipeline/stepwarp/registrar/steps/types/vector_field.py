"""A network's output as a displacement."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stepwarp.networks.config import DenseNetConfig, UNetConfig
from stepwarp.registrar.steps.settings import StepSettings
from stepwarp.registrar.steps.step import Step
from stepwarp.registrar.steps.steps import Unit, VectorField


class VectorFieldConfig(StepSettings):
    """`VectorField`."""

    step: Literal["vector_field"] = "vector_field"
    net: DenseNetConfig = UNetConfig()
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    unit: Unit = "voxels"

    def build(self, dims: int) -> Step:
        return VectorField(self.net.build(dims), self.scale, self.unit)
