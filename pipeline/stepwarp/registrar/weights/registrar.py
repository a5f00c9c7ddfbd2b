"""A trained registrar: steps with their weights, and the recipe of what they want to be given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import llvmlite.binding
import torch

from stepwarp.geometry import Composition, DisplacementField, Image, Transform
from stepwarp.registrar.steps import Images, Step, describe
from stepwarp.registrar.steps.config import StepConfig
from stepwarp.registrar.weights.card import Card
from stepwarp.registrar.weights.recipe import Prepared, Recipe


@dataclass(frozen=True, eq=False)
class Registrar:
    """Registers images of any size, spacing and orientation: fixed world -> moving world, RAS+ mm.

    config: the settings that `step` was built from, None for one built by hand."""

    step: Step
    recipe: Recipe
    card: Card
    config: StepConfig | None = None

    @torch.no_grad()
    def register(self, fixed: Image, moving: Image, start: Transform | None = None) -> Transform:
        """The transform found in one pass of the network, on the device where its weights are.

        start: a transform, usually an affine, from which the network goes on; without one, see the recipe's grid.
        Returns start after a displacement field on the network's grid. Raises InputError for images that the recipe
        cannot prepare, or that are too small for the network."""
        prepared = self.recipe.prepare(fixed, moving, start)
        return Composition.of(prepared.start, self.found(prepared))

    @torch.no_grad()
    def found(self, prepared: Prepared) -> DisplacementField:
        """What one pass of the network finds for a pair as its recipe prepares it: on the pair's grid, to be followed
        by the pair's start, on the device of the weights. Raises InputError for images that are too small."""
        with self._precision():
            return self.step(*self._images(prepared)).on(prepared.fixed.grid)

    @torch.no_grad()
    def trace(self, fixed: Image, moving: Image, start: Transform | None = None) -> Iterator[Transform]:
        """The transform after each step, the last one that of `register`."""
        prepared = self.recipe.prepare(fixed, moving, start)
        for field in self.found_by_step(prepared):
            yield Composition.of(prepared.start, field)

    @torch.no_grad()
    def found_by_step(self, prepared: Prepared) -> Iterator[DisplacementField]:
        """What has been found after each step, the last one that of `found`."""
        steps = self.step.trace(*self._images(prepared))
        while True:
            with self._precision():  # around each step: what the caller does between them is none of its business
                found = next(steps, None)
            if found is None:
                return
            yield found.on(prepared.fixed.grid)

    def _images(self, prepared: Prepared) -> tuple[Images, Images]:
        return Images.stack([prepared.fixed], self.device), Images.stack([prepared.moving], self.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((weights.device for weights in self.step.parameters()), torch.device("cpu"))

    def _precision(self) -> torch.autocast:
        return in_half_where_fast(self.device, self.recipe.precision == "bf16")

    def __repr__(self) -> str:
        return f"{self.card.name}\n{describe(self.step)}"


def in_half_where_fast(device: torch.device, wanted: bool = True) -> torch.autocast:
    """Within it, convolutions are in half precision, if that is wanted and the processor is made for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and _fast_in_half(device))


def _fast_in_half(device: torch.device) -> bool:
    """Whether bfloat16 is what the processor multiplies by itself; elsewhere it is emulated, slower than single."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = llvmlite.binding.get_host_cpu_features()
    return any(features.get(name, False) for name in ("avx512bf16", "amx-bf16", "bf16"))
