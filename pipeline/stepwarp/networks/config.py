"""Networks as settings: what a recipe's YAML and a checkpoint's header say of one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from stepwarp.networks.encoder import Encoder
from stepwarp.networks.icon_unet import IconUNet
from stepwarp.networks.layers import Norm
from stepwarp.networks.mlp import FCNet
from stepwarp.networks.segmenter import Segmenter
from stepwarp.networks.unet import Down, UNet
from stepwarp.recipes import Strict

#: More than any sensible network has, little enough that a forged file cannot ask for all the memory.
Channels = Annotated[int, Field(ge=1, le=4096)]
Levels = Annotated[tuple[Channels, ...], Field(min_length=1, max_length=12)]


class UNetConfig(Strict):
    """`UNet`."""

    kind: Literal["unet"] = "unet"
    channels: Levels = (16, 32, 32, 32)
    convolutions: int = Field(default=1, ge=1, le=8)
    down: Down = "strided"
    norm: Norm = "none"
    in_channels: Channels = 2

    def build(self, dims: int) -> UNet:
        return UNet(dims, self.channels, self.convolutions, self.down, self.norm, self.in_channels)


class IconUNetConfig(Strict):
    """`IconUNet`."""

    kind: Literal["icon_unet"] = "icon_unet"
    down: Levels = (2, 16, 32, 64, 256, 512)
    up: Levels = (16, 32, 64, 128, 256)

    def build(self, dims: int) -> IconUNet:
        return IconUNet(dims, self.down, self.up)


class FCNetConfig(Strict):
    """`FCNet`."""

    kind: Literal["fcnet"] = "fcnet"
    shape: tuple[PositiveInt, ...] = (28, 28)
    hidden: Levels = (50, 50)

    def build(self, dims: int) -> FCNet:
        if len(self.shape) != dims:
            raise ValueError(f"an fcnet of shape {self.shape} cannot work in {dims} dimensions")
        return FCNet(self.shape, self.hidden)


class EncoderConfig(Strict):
    """`Encoder`."""

    kind: Literal["encoder"] = "encoder"
    channels: Levels = (16, 32, 64, 64)
    norm: Norm = "none"
    in_channels: Channels = 2

    def build(self, dims: int) -> Encoder:
        return Encoder(dims, self.channels, self.norm, self.in_channels)


class SegmenterConfig(Strict):
    """`Segmenter`. classes: with the background."""

    classes: int = Field(ge=2, le=512)
    channels: Levels = (48, 64, 96)
    convolutions: int = Field(default=2, ge=1, le=8)

    def build(self, dims: int) -> Segmenter:
        return Segmenter(dims, self.classes, self.channels, self.convolutions)


#: A network whose output is a vector at every voxel.
DenseNetConfig = Annotated[UNetConfig | IconUNetConfig | FCNetConfig, Field(discriminator="kind")]
