"""Steps as settings: a registrar in a recipe's YAML, or in a checkpoint's header.

step: two_step
steps:
  - {step: downsampled, inner: {step: vector_field, net: {kind: unet}}}
  - {step: repeat, n: 2, inner: {step: velocity, net: {kind: unet, channels: [8, 16]}}}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field, TypeAdapter

from stepwarp import catalogue
from stepwarp.registrar.steps.settings import StepSettings
from stepwarp.registrar.steps.step import Step

#: The package whose files are the steps.
TYPES = "registrar.steps.types"
#: More steps than any sensible network takes, few enough that a forged file cannot compute for ever.
MOST_STEPS = 1000

_ALL = tuple(catalogue.load(TYPES, name, StepSettings) for name in catalogue.names(TYPES))  # type: ignore[type-abstract]
#: The settings of any step; `read_step` reads them, `build` makes the step.
if TYPE_CHECKING:
    StepConfig = StepSettings
else:
    StepConfig = Annotated[Union[_ALL], Field(discriminator="step")]  # noqa: UP007

# Steps hold steps of any type, which are known only now.
for _each in _ALL:
    _each.model_rebuild(_types_namespace={"StepConfig": StepConfig})

_BY_NAME = {each.__name__: each for each in _ALL}
_ADAPTER: TypeAdapter[StepConfig] = TypeAdapter(StepConfig)


def read_step(values: object) -> StepConfig:
    """Settings of a step from plain data, as YAML or JSON holds it. Raises pydantic's ValidationError."""
    return _ADAPTER.validate_python(values)


def build(config: StepConfig, dims: int) -> Step:
    """The step that the settings describe, for images of `dims` axes; untrained it finds the identity."""
    return config.build(dims)


def __getattr__(name: str) -> type[StepSettings]:
    """The settings of every type by the name of their class, such as `VectorFieldConfig`."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
