"""The settings of the study: `configs/mnist.yaml`."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from stepwarp.errors import InputError
from stepwarp.recipes import Strict, configs_folder, first_problem
from stepwarp.training.settings import OptimiserSettings, Weight

NAME = "mnist.yaml"


class Training(Strict):
    """How a network is trained: Adam on batches of random pairs of different digits of one class."""

    batch: PositiveInt = 128
    iterations: PositiveInt = 840
    optimiser: OptimiserSettings


class Variation(Strict):
    """A training with some settings changed, to show what hangs on them.

    lr, second_moment: Adam's. constant: the rate is not lowered to the end, and the last weights are kept, not their
    mean."""

    batch: PositiveInt | None = None
    iterations: PositiveInt | None = None
    lr: float | None = Field(default=None, gt=0)
    clip: float | None = Field(default=None, gt=0)
    second_moment: float | None = Field(default=None, ge=0, lt=1)
    constant: bool = False

    def of(self, training: Training) -> Training:
        """The training so changed."""
        optimiser = training.optimiser
        given = {"lr": self.lr, "clip": self.clip, "second_moment": self.second_moment}
        changed = {name: value for name, value in given.items() if value is not None}
        if self.constant:
            changed |= {"final": 1.0, "warm_up": 0, "ema": 0.0}
        return Training(
            batch=self.batch or training.batch,
            iterations=self.iterations or training.iterations,
            optimiser=OptimiserSettings.model_validate({**optimiser.model_dump(), **changed}),
        )


class Scale(Strict):
    """How much is done. seeds: of every network. pairs: held out, for every probe. share: of each training's
    iterations. evaluations: of direct optimisation, where it is run to its end. examples: digits that the classifier is
    trained on, altogether."""

    seeds: PositiveInt = 5
    pairs: int = Field(default=500, ge=4)
    share: float = Field(default=1.0, gt=0, le=1)
    evaluations: PositiveInt = 300
    examples: PositiveInt = 120_000
    variations: bool = True


class Settings(Strict):
    """The whole study.

    steps: the trained number, with the same weights. hidden: widths of the network's layers. diffusion: lambda of
    icon_registration's loss, see `training.icon_weight`. equivariant: the training of the convolutional control.
    sensitivity, stability: name -> a variation of `training`. later: how many times the trained number of steps probe a
    goes on for."""

    name: str = "mnist"
    steps: PositiveInt = 9
    hidden: tuple[PositiveInt, ...] = (50, 50)
    diffusion: Weight = 0.05
    training: Training
    equivariant: Variation = Variation()
    sensitivity: dict[str, Variation] = Field(default_factory=dict)
    stability: dict[str, Variation] = Field(default_factory=dict)
    later: PositiveInt = 4
    full: Scale = Scale()
    quick: Scale = Scale()
    seed: NonNegativeInt = 0

    def scale(self, quick: bool) -> Scale:
        """What `--quick` decides."""
        return self.quick if quick else self.full


def read_settings(path: Path | None = None) -> Settings:
    """The settings in a YAML file, by default those of stepwarp. InputError names the file and the place."""
    path = configs_folder() / NAME if path is None else path
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: cannot be read, {(error.strerror or str(error)).lower()}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is no YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from error
