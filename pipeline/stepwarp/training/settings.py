"""What the recipes of all trainings have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from torch.nn import Parameter
from torch.optim import Adam

from stepwarp.data.settings import DataSettings
from stepwarp.recipes import Strict

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(gt=0, allow_inf_nan=False)]
#: Decay of Adam's running mean of gradients.
_FIRST_MOMENT = 0.9


class OptimiserSettings(Strict):
    """Adam.

    lr: the learning rate, reached after `warm_up` iterations of every stage, falling along a cosine over the whole
    training to `final` times lr. clip: gradients longer than this are shortened to it. second_moment: decay of the
    running mean of squared gradients by which updates are scaled. ema: decay of the running mean of the weights, which
    is what is validated and kept; 0 keeps the weights themselves."""

    lr: Finite = 5e-4
    warm_up: NonNegativeInt = 20
    final: float = Field(default=0.05, gt=0, le=1)
    weight_decay: Weight = 0.0
    clip: Finite = 1.0
    second_moment: float = Field(default=0.999, ge=0, lt=1)
    ema: float = Field(default=0.99, ge=0, lt=1)

    def build(self, parameters: Iterable[Parameter]) -> Adam:
        """The optimiser of these parameters, at the full learning rate."""
        return Adam(parameters, self.lr, betas=(_FIRST_MOMENT, self.second_moment), weight_decay=self.weight_decay)

    def rate(self, iteration: int, iterations: int, within: int) -> float:
        """The learning rate at one of so many iterations, counted from 0; within: its number in its stage."""
        cosine = self.final + (1 - self.final) * (1 + math.cos(math.pi * iteration / iterations)) / 2
        return self.lr * cosine * min(1, (within + 1) / (self.warm_up + 1))


class AnyStage(Strict):
    """A part of a training. lr: factor on the learning rate."""

    iterations: PositiveInt
    lr: Finite = 1.0


class AnyValidation(Strict):
    """On the pairs of the scans that are held out. every: iterations. pairs: at most so many, the first ones; of images
    that are painted so many in any case, because the same pair in another contrast is another one."""

    pairs: PositiveInt = 8
    every: PositiveInt = 200


class TrainingRecipe(Strict):
    """A whole recipe of `stepwarp train`.

    start: weights to begin with, a file or the name of shipped ones. precision: bf16 computes convolutions in half
    precision. checkpoint_every: iterations."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    description: str = ""
    data: DataSettings
    start: str | None = None
    optimiser: OptimiserSettings = OptimiserSettings()
    precision: Literal["fp32", "bf16"] = "fp32"
    curriculum: tuple[AnyStage, ...] = Field(min_length=1)
    validation: AnyValidation = AnyValidation()
    checkpoint_every: PositiveInt = 100
    seed: NonNegativeInt = 0

    @property
    def iterations(self) -> int:
        """Of all stages."""
        return sum(stage.iterations for stage in self.curriculum)

    @property
    def trains_with_labels(self) -> bool:
        """Whether weights depend on label maps, not only which of them are kept."""
        raise NotImplementedError

    def stage_at(self, iteration: int) -> tuple[int, int]:
        """The stage that an iteration belongs to, and its number within the stage, all counted from 0."""
        for number, stage in enumerate(self.curriculum):
            if iteration < stage.iterations:
                return number, iteration
            iteration -= stage.iterations
        raise IndexError("the training is over")

    def learning_rate(self, iteration: int) -> float:
        """At an iteration, counted from 0."""
        number, within = self.stage_at(iteration)
        return self.optimiser.rate(iteration, self.iterations, within) * self.curriculum[number].lr
