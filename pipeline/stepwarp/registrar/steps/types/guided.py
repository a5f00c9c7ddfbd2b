"""Descent on the local correlation, corrected by a network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stepwarp.networks.config import UNetConfig
from stepwarp.registrar.steps.guided import Guided
from stepwarp.registrar.steps.settings import StepSettings
from stepwarp.registrar.steps.step import Step


class GuidedConfig(StepSettings):
    """`Guided`; the network's input channels follow from the images' axes."""

    step: Literal["guided"] = "guided"
    net: UNetConfig = UNetConfig()
    radius: int = Field(default=2, ge=1, le=9)
    smooth_force: float = Field(default=1.7, ge=0, le=10)
    smooth_step: float = Field(default=1.0, ge=0, le=10)

    def build(self, dims: int) -> Step:
        net = self.net.model_copy(update={"in_channels": 2 * (1 + dims)}).build(dims)
        return Guided(net, self.radius, self.smooth_force, self.smooth_step)
