"""The study: networks trained, judged and probed, each piece of work kept in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepwarp.kernels import jacobian
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.mnist import models, probing, store
from stepwarp.mnist.classifier import Instruments, accuracy, train_classifier
from stepwarp.mnist.config import Scale, Settings, Training
from stepwarp.mnist.data import Mnist, pairs
from stepwarp.mnist.models import MODELS, STRANGE, TIED, TRAINED, Model, digits_of
from stepwarp.mnist.networks import Classifier
from stepwarp.mnist.training import OUTSIDE, TrainedDigits, objective, train
from stepwarp.probes.objective import PairObjective
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.registrar.steps import Images, Step

_ONE = 1
_CALIBRATION_SEED = 1


@dataclass(frozen=True, eq=False)
class MnistStudy:
    """A study in the folder `out`. Everything that is there already is taken as it is."""

    out: Path
    settings: Settings
    scale: Scale
    digits: Mnist
    progress: Progress = silent

    @classmethod
    def begun(
        cls, out: Path, settings: Settings, quick: bool, digits: Mnist, force: bool = False, progress: Progress = silent
    ) -> MnistStudy:
        """A new study, or one to go on with. OutputError if `out` holds one of other settings."""
        scale = settings.scale(quick)
        core = settings.model_dump(exclude={"sensitivity", "stability", "full", "quick"})
        store.claim(out, {"settings": core, "scale": scale.model_dump(), "digits": digits.source}, force)
        return cls(out, settings, scale, digits, progress)

    @property
    def seeds(self) -> range:
        return range(self.scale.seeds)

    @property
    def objective(self) -> PairObjective:
        return objective(self.settings.diffusion)

    # Networks

    def train(self, names: tuple[str, ...] = tuple(MODELS)) -> None:
        """Train the networks that are not there yet."""
        for name in names:
            for seed in self.seeds:
                self.network(name, seed)

    def network(self, name: str, seed: int) -> Step:
        """A trained network, trained now if it was not before."""
        model, path = MODELS[name], self._weights(name, seed)
        step = model.untrained(self.settings, seed)
        if path.exists():
            models.load(path, step)
        else:
            report = self._reporter(f"train {name} {seed + 1}/{self.scale.seeds}")
            trained = self._trained(model, step, model.training(self.settings, self.scale.share), seed, report)
            models.save(path, trained.step, _about(trained))
        return model.as_used(step, self.settings)

    def training(self, name: str, seed: int) -> dict[str, Any]:
        """The course of a network's training: see `training.Trained`."""
        return models.load(self._weights(name, seed), MODELS[name].untrained(self.settings, seed))

    @cached_property
    def instruments(self) -> Instruments:
        """The classifier, trained now if it was not before, and the training set's 5s."""
        path, net = self.out / store.MODELS / "classifier.safetensors", Classifier()
        if path.exists():
            models.load(path, net)
        else:
            net = train_classifier(
                self.digits.train, self.scale.examples, self.settings.seed, self._reporter("train classifier")
            )
            models.save(path, net, {"accuracy": accuracy(net, self.digits.test)})
        return Instruments(net, self.digits.train.of(TRAINED).images)

    def classifier_accuracy(self) -> list[dict[str, Any]]:
        """See `classifier.accuracy`."""
        assert self.instruments
        found = models.load(self.out / store.MODELS / "classifier.safetensors", Classifier())["accuracy"]
        return list(found)

    # Pairs, all held out

    def held_out(self, digit: int) -> tuple[Images, Images]:
        """The test pairs of a digit, the same for every seed."""
        return pairs(self.digits.test.of(digit), self.scale.pairs, self.settings.seed)

    # What is done with the networks

    def evaluate(self, names: tuple[str, ...] = tuple(MODELS), vary: bool = True) -> None:
        """Networks on held-out 5s and 7s. vary: and, where wanted, the trainings with other settings."""
        for name in names:
            for seed in self.seeds:
                path = self.evaluation(name, seed)
                if not path.exists():
                    step = self.network(name, seed)
                    judged = {str(digit): measures(step, *self.held_out(digit)) for digit in (TRAINED, STRANGE)}
                    store.write_json(path, judged)
        if vary and self.scale.variations:
            for kind, name in self.variations():
                self._vary(kind, name)

    def probe(self, letters: str = "".join(probing.PROBES)) -> None:
        """The probes that were not done yet, seed by seed."""
        done, wanted = 0, len(letters) * len(self.seeds)
        for seed in self.seeds:
            bench = None
            for letter in letters:
                path = self.result(letter, seed)
                self.progress(ProgressReport("probe", done, wanted))
                if not path.exists():
                    bench = bench or self._bench(seed)
                    store.write_arrays(path, probing.run(letter, bench))
                done += 1
        self.progress(ProgressReport("probe", done, wanted))

    def variations(self) -> Iterator[tuple[str, str]]:
        """(kind, name) of the trainings with other settings."""
        for kind in ("sensitivity", "stability"):
            yield from ((kind, name) for name in getattr(self.settings, kind))

    def variation(self, kind: str, name: str) -> Path:
        """The file of one: its training, with "held_out", measures on 5s."""
        return self.out / store.RUNS / f"{kind}_{_slug(name)}.json"

    def evaluation(self, name: str, seed: int) -> Path:
        """The file of a network's measures on held-out pairs: digit -> `measures`."""
        return self.out / store.RUNS / f"held_out_{_slug(name)}_seed{seed}.json"

    def result(self, letter: str, seed: int) -> Path:
        """The file of one probe for one seed."""
        return self.out / store.PROBES / f"{letter}_seed{seed}.npz"

    def _vary(self, kind: str, name: str) -> None:
        path, model = self.variation(kind, name), MODELS[TIED]
        changed = getattr(self.settings, kind)[name].of(self.settings.training)
        whole = Training(
            batch=changed.batch,
            iterations=max(1, round(self.scale.share * changed.iterations)),
            optimiser=changed.optimiser,
        )
        if path.exists() and store.read_json(path)["settings"] == whole.model_dump():
            return
        step = model.untrained(self.settings, 0)
        trained = self._trained(model, step, whole, 0, self._reporter(f"{kind}: {name}"))
        judged = measures(trained.step, *self.held_out(TRAINED))
        store.write_json(path, {**_about(trained), "settings": whole.model_dump(), "held_out": judged})

    def _trained(
        self,
        model: Model,
        step: Step,
        settings: Training,
        seed: int,
        report: Callable[[int, int, float], None],
    ) -> TrainedDigits:
        return train(step, digits_of(model, self.digits.train), settings, self.settings.diffusion, seed, report)

    def _bench(self, seed: int) -> probing.Bench:
        return probing.Bench(
            settings=self.settings,
            objective=self.objective,
            steps={name: self.network(name, seed) for name in MODELS},
            instruments=self.instruments,
            fives=self.held_out(TRAINED),
            sevens=self.held_out(STRANGE),
            ones=self.held_out(_ONE),
            calibration=pairs(self.digits.train.of(TRAINED), self.scale.pairs, _CALIBRATION_SEED),
            evaluations=self.scale.evaluations,
            seed=seed,
        )

    def _weights(self, name: str, seed: int) -> Path:
        return self.out / store.MODELS / f"{_slug(name)}_seed{seed}.safetensors"

    def _reporter(self, stage: str) -> Callable[[int, int, float], None]:
        return lambda done, total, loss: self.progress(ProgressReport(stage, done, total, loss))


@torch.no_grad()
def measures(step: Step, fixed: Images, moving: Images) -> dict[str, Any]:
    """How well a network registers pairs: {"before", "after"}: the SSD of each pair; "reduction", of their mean, with
    "ci95" over pairs; "folds", per cent of the pixels whose Jacobian determinant is not positive."""
    found = step(fixed, moving)
    before = SSD().values(fixed.data, moving.data).double().numpy()
    after = SSD().values(fixed.data, moving.warp(found, OUTSIDE).data).double().numpy()
    folds = torch.cat([jacobian.determinant(each) for each in found.on(fixed.grid).displacement.split(1)]) <= 0
    draws = np.random.default_rng(0).integers(len(before), size=(2000, len(before)))
    reductions = 1 - after[draws].mean(1) / before[draws].mean(1)
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "reduction": float(1 - after.mean() / before.mean()),
        "ci95": np.quantile(reductions, [0.025, 0.975]).tolist(),
        "folds": 100 * float(folds.float().mean()),
        "pairs": len(before),
    }


def _about(trained: TrainedDigits) -> dict[str, Any]:
    return {"curve": trained.curve, "seconds": trained.seconds, "cpu_seconds": trained.cpu_seconds}


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
