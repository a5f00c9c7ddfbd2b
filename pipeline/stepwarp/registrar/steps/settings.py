"""What the settings of any step have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from stepwarp.recipes import Strict
from stepwarp.registrar.steps.step import Step


class StepSettings(Strict):
    """step: the name of a file of `types`."""

    step: str

    @abstractmethod
    def build(self, dims: int) -> Step:
        """The step that the settings describe, for images of `dims` axes; untrained it finds the identity."""

    @property
    def parts(self) -> tuple[StepSettings, ...]:
        """The steps that it is put together of, where they see the images that it sees."""
        return ()

    @property
    def count(self) -> int:
        """How many maps one pass finds, one after the other, as `steps_run` counts those of a step that is built."""
        return 1


def leaves(settings: StepSettings) -> Iterator[StepSettings]:
    """The steps that are not put together of others that see the same images, in their order."""
    if not settings.parts:
        yield settings
    for part in settings.parts:
        yield from leaves(part)
