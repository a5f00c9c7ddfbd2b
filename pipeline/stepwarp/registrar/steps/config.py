"""Steps as settings: a registrar in a recipe's YAML, or in a checkpoint's header.

step: two_step
steps:
  - {step: downsampled, inner: {step: vector_field, net: {kind: unet}}}
  - {step: repeat, n: 2, inner: {step: velocity, net: {kind: unet, channels: [8, 16]}}}
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, field_validator

from stepwarp.config import Strict
from stepwarp.kernels.sampling import Outside
from stepwarp.networks.config import DenseNetConfig, EncoderConfig, SegmenterConfig, UNetConfig
from stepwarp.registrar.steps.guided import Guided
from stepwarp.registrar.steps.segmented import Segmented
from stepwarp.registrar.steps.sequences import Downsampled, Repeat, TwoStep
from stepwarp.registrar.steps.step import Step
from stepwarp.registrar.steps.steps import Matrix, Unit, VectorField, Velocity

#: More steps than any sensible network takes, few enough that a forged file cannot compute for ever.
MOST_STEPS = 1000


class VectorFieldConfig(Strict):
    """`VectorField`."""

    step: Literal["vector_field"] = "vector_field"
    net: DenseNetConfig = UNetConfig()
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    unit: Unit = "voxels"

    def build(self, dims: int) -> Step:
        return VectorField(self.net.build(dims), self.scale, self.unit)


class VelocityConfig(Strict):
    """`Velocity`."""

    step: Literal["velocity"] = "velocity"
    net: DenseNetConfig = UNetConfig()
    squarings: int = Field(default=6, ge=0, le=12)
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    unit: Unit = "voxels"

    def build(self, dims: int) -> Step:
        return Velocity(self.net.build(dims), self.squarings, self.scale, self.unit)


class GuidedConfig(Strict):
    """`Guided`; the network's input channels follow from the images' axes."""

    step: Literal["guided"] = "guided"
    net: UNetConfig = UNetConfig()
    radius: int = Field(default=2, ge=1, le=9)
    smooth_force: float = Field(default=1.7, ge=0, le=10)
    smooth_step: float = Field(default=1.0, ge=0, le=10)

    def build(self, dims: int) -> Step:
        net = self.net.model_copy(update={"in_channels": 2 * (1 + dims)}).build(dims)
        return Guided(net, self.radius, self.smooth_force, self.smooth_step)


class MatrixConfig(Strict):
    """`Matrix`."""

    step: Literal["matrix"] = "matrix"
    net: EncoderConfig = EncoderConfig()

    def build(self, dims: int) -> Step:
        return Matrix(self.net.build(dims))


class TwoStepConfig(Strict):
    """`TwoStep`, also of more than two: they are nested to the left."""

    step: Literal["two_step"] = "two_step"
    steps: tuple[StepConfig, ...] = Field(min_length=2, max_length=64)
    lazy: bool = False
    outside: Outside = "zero"

    def build(self, dims: int) -> Step:
        steps = [step.build(dims) for step in self.steps]
        return reduce(lambda first, second: TwoStep(first, second, self.lazy, self.outside), steps)


class DownsampledConfig(Strict):
    """`Downsampled`."""

    step: Literal["downsampled"] = "downsampled"
    inner: StepConfig
    factor: int = Field(default=2, ge=2, le=32)
    corner_aligned: bool = False

    def build(self, dims: int) -> Step:
        return Downsampled(self.inner.build(dims), self.factor, self.corner_aligned)


class RepeatConfig(Strict):
    """`Repeat`."""

    step: Literal["repeat"] = "repeat"
    inner: StepConfig
    n: int = Field(ge=1, le=1000)
    used: int | None = Field(default=None, ge=1, le=1000)
    lazy: bool = False
    outside: Outside = "zero"

    def build(self, dims: int) -> Step:
        return Repeat(self.inner.build(dims), self.n, self.lazy, self.outside, self.used)


class SegmentedConfig(Strict):
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


def leaves(config: StepConfig) -> Iterator[StepConfig]:
    """The steps that are not put together of others that see the same images, in their order."""
    if isinstance(config, TwoStepConfig):
        for step in config.steps:
            yield from leaves(step)
    elif isinstance(config, DownsampledConfig | RepeatConfig):
        yield from leaves(config.inner)
    else:
        yield config


def steps_of(config: StepConfig) -> int:
    """How many maps one pass finds, one after the other, as `steps_run` counts those of a step that is built."""
    if isinstance(config, TwoStepConfig):
        return sum(map(steps_of, config.steps))
    if isinstance(config, RepeatConfig):
        return max(config.n, config.used or 0) * steps_of(config.inner)
    if isinstance(config, DownsampledConfig | SegmentedConfig):
        return steps_of(config.inner)
    return 1


#: The settings of any step; `TypeAdapter(StepConfig)` reads them, `build` makes the step.
StepConfig = Annotated[
    VectorFieldConfig
    | VelocityConfig
    | GuidedConfig
    | MatrixConfig
    | TwoStepConfig
    | DownsampledConfig
    | RepeatConfig
    | SegmentedConfig,
    Field(discriminator="step"),
]

for _nested in (TwoStepConfig, DownsampledConfig, RepeatConfig, SegmentedConfig):
    _nested.model_rebuild()

_ADAPTER: TypeAdapter[StepConfig] = TypeAdapter(StepConfig)


def read_step(values: object) -> StepConfig:
    """Settings of a step from plain data, as YAML or JSON holds it. Raises pydantic's ValidationError."""
    return _ADAPTER.validate_python(values)


def build(config: StepConfig, dims: int) -> Step:
    """The step that the settings describe, for images of `dims` axes; untrained it finds the identity."""
    return config.build(dims)
