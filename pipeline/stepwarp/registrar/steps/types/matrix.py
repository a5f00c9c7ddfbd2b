"""A network's output as an affine."""

from __future__ import annotations

from typing import Literal

from stepwarp.networks.config import EncoderConfig
from stepwarp.registrar.steps.settings import StepSettings
from stepwarp.registrar.steps.step import Step
from stepwarp.registrar.steps.steps import Matrix


class MatrixConfig(StepSettings):
    """`Matrix`."""

    step: Literal["matrix"] = "matrix"
    net: EncoderConfig = EncoderConfig()

    def build(self, dims: int) -> Step:
        return Matrix(self.net.build(dims))
