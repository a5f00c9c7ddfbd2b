"""The training loop."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import yaml
from lightning_fabric import Fabric
from torch import Tensor

from stepwarp.data.pairs import PairLoader
from stepwarp.errors import OutputError, RegistrationError
from stepwarp.files import write_text
from stepwarp.files.lock import locked
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.registrar.weights.card import Expected
from stepwarp.training import checkpoint
from stepwarp.training.card import card_of, machine_name
from stepwarp.training.checkpoint import Best, Progressed
from stepwarp.training.config import AnyTraining
from stepwarp.training.dataset import Dataset, open_dataset
from stepwarp.training.devices import launched_fabric
from stepwarp.training.ema import RunningMean
from stepwarp.training.log import BOARD, LOG, Log
from stepwarp.training.settings import TrainingRecipe
from stepwarp.training.start import TrainingStart, read_start
from stepwarp.training.trainees import trainee_of

CHECKPOINT, WEIGHTS, CONFIG = "checkpoint.pt", "weights.safetensors", "config.yaml"
_OWN_NAMES = (CHECKPOINT, WEIGHTS, CONFIG, LOG, BOARD)
#: Iterations between lines of the log, each the mean over them.
_LOG_EVERY = 10
_DIMS = 3


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended. finished: whether all iterations are done. weights: the best so far, ready for use; None
    if time was up before any were validated. best: their measures, where there were pairs to validate on."""

    finished: bool
    iteration: int
    seconds: float
    weights: Path | None
    best: Best | None


def train(
    config: AnyTraining,
    out: Path,
    *,
    root: Path | None = None,
    resume: bool = False,
    max_minutes: float | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> TrainingResult:
    """Train a registrar or a segmenter and keep the best of it.

    Writes into `out`: weights.safetensors, the best so far with its model card; checkpoint.pt, to go on from;
    config.yaml; log.jsonl; tensorboard/; and cache/, unless the recipe names another. On one CPU, equal seeds and
    numbers of threads give equal weights, also where a training was killed and resumed. Scans are read once and lie on
    the device; there pairs are drawn of them, on a GPU by the GPU.

    root: where the manifest's paths begin. resume: go on from the checkpoint in `out`. max_minutes: end after this
    time, with a checkpoint. Several processes under torchrun share the work.

    Raises InputError for data or a checkpoint that cannot be used; OutputError if `out` holds a training already,
    another one is at work there, or it cannot be written to; RegistrationError where the loss is not a number, naming
    the pair: the checkpoint then is of the moment before, and goes on with the next pair."""
    deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
    _claim(out, resume)
    start = read_start(config, _DIMS)
    fabric = launched_fabric(torch.device(device))
    with locked(out, "training", _OWN_NAMES, known=resume) if fabric.is_global_zero else nullcontext():
        with fabric.rank_zero_first():
            watched = progress if fabric.is_global_zero else silent
            data = open_dataset(config, root, out / "cache", fabric.device, watched)
        run = _Run(config, out, fabric, data, start, watched)
        if resume:
            run.go_on()
        try:
            return run.through(deadline)
        finally:
            run.close()


class _Run:
    """One process' part in a training."""

    def __init__(
        self,
        config: AnyTraining,
        out: Path,
        fabric: Fabric,
        data: Dataset,
        start: TrainingStart | None = None,
        progress: Progress = silent,
    ) -> None:
        self.config = config
        self.out = out
        self.fabric = fabric
        self.data = data
        self.progress = progress
        torch.manual_seed(config.seed)
        self.trainee = trainee_of(config, start, data.manifest.ignore_labels, data.structures)
        self.trainee.look_at(data)
        module = self.trainee.module
        optimiser = config.optimiser.build(module.parameters())
        self.model, self.stepping = fabric.setup(self.trainee.objective, optimiser)
        self.state = Progressed(module, RunningMean(module, config.optimiser.ema), optimiser)
        self.loader = PairLoader(
            data.training,
            config.data.batch,
            config.data.workers if fabric.device.type == "cpu" else 0,
            rank=fabric.global_rank,
            ranks=fabric.world_size,
        )
        self.log: Log | None = None
        self.sums: dict[str, float | Tensor] = defaultdict(float)

    def go_on(self) -> None:
        """Start from the checkpoint."""
        self.loader.load_state_dict(checkpoint.load(self.out / CHECKPOINT, self.state, self.config))

    def through(self, deadline: float) -> TrainingResult:
        """Iterate to the end, or until the clock `time.monotonic` shows the deadline."""
        state, config = self.state, self.config
        if self.fabric.is_global_zero:
            write_text(self.out / CONFIG, as_yaml(config), overwrite=True)
            self.log = Log(self.out, state.iteration)
        self.began = time.monotonic() - state.seconds
        batches = iter(self.loader)
        stage, begun_at, late = None, 0, False
        while state.iteration < config.iterations and not late:
            number, within = config.stage_at(state.iteration)
            if number != stage:
                stage, begun_at = number, within
                self.trainee.enter(number)
            loss, late = self._iterate(next(batches), number, deadline)
            # Counted from where this run began, so that the time left is told from its own speed.
            done, total = within + 1 - begun_at, config.curriculum[number].iterations - begun_at
            self.progress(ProgressReport(f"stage {number + 1} of {len(config.curriculum)}", done, total, loss))
            last = late or state.iteration == config.iterations
            if last or state.iteration % config.validation.every == 0:
                self._judge()
            if last or state.iteration % config.checkpoint_every == 0:
                self._save()
        return TrainingResult(
            state.iteration == config.iterations, state.iteration, state.seconds, self._weights(), state.best
        )

    def close(self) -> None:
        """Write what the log holds back."""
        if self.log is not None:
            self.log.close()

    def _iterate(self, batch: dict[str, Any], stage: int, deadline: float) -> tuple[float, bool]:
        """One update of the weights. Returns the loss, and whether it is past the deadline, as all processes see it."""
        state, fabric = self.state, self.fabric
        rate = self.config.learning_rate(state.iteration)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        buffers = [buffer.clone() for buffer in state.module.buffers()]
        state.module.train()
        terms = self.model(self._tensors(batch), stage, self._seed())
        self.stepping.zero_grad()
        fabric.backward(terms["loss"])
        clip = self.config.optimiser.clip
        clipped = fabric.clip_gradients(self.model, self.stepping, max_norm=clip, error_if_nonfinite=False)
        length = float(cast(Tensor, clipped))
        past = float(time.monotonic() > deadline)
        shared = torch.stack([terms["loss"].detach(), terms["loss"].new_tensor(past)])
        loss, past = cast(Tensor, fabric.all_reduce(shared, reduce_op="mean")).tolist()
        if not math.isfinite(loss + length):
            self._stop(batch, stage, buffers)
        self.stepping.step()
        state.mean.update(state.module)
        state.iteration += 1
        state.seconds = time.monotonic() - self.began
        self._note(terms, {"gradient": length, "learning_rate": rate})
        return loss, past > 0

    def _tensors(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        device = self.fabric.device
        return {name: value.to(device, non_blocking=True) for name, value in batch.items() if name != "pair"}

    def _seed(self) -> int:
        """Of what is drawn in this iteration by this process."""
        place = self.state.iteration * self.fabric.world_size + self.fabric.global_rank
        return (self.config.seed * 1_000_003 + place) % 2**63

    def _stop(self, batch: dict[str, Any], stage: int, buffers: list[Tensor]) -> NoReturn:
        """Save the state before this iteration, with the next batch to come, and say which pair was to blame."""
        blamed = self._blamed(self._tensors(batch), batch["pair"], stage)
        for buffer, before in zip(self.state.module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        if self.fabric.world_size > 1:
            everywhere: list[Any] = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(everywhere, blamed)
            blamed = [name for part in everywhere for name in part]
        self._save()
        raise RegistrationError(
            f"iteration {self.state.iteration + 1}: the loss or its gradient is not a number, of the pair "
            f"{', '.join(blamed) or ', '.join(batch['pair'])}. {self.out / CHECKPOINT} holds the weights before it; "
            "--resume goes on with the next pair. If it happens again, lower optimiser.lr or leave the scans out."
        )

    @torch.no_grad()
    def _blamed(self, tensors: dict[str, Tensor], names: list[str], stage: int) -> list[str]:
        """The pairs of a batch of which a term is not finite by itself, with the names of the terms."""
        blamed = []
        for number, name in enumerate(names):
            terms = self.trainee.objective({key: value[number : number + 1] for key, value in tensors.items()}, stage)
            strange = [term for term, value in terms.items() if term != "loss" and not value.isfinite()]
            if strange:
                blamed.append(f"'{name}' ({', '.join(strange)})")
        return blamed

    def _note(self, terms: Mapping[str, Tensor], more: Mapping[str, float]) -> None:
        """Add to the means of the log, and write them every few iterations. Each process sees its own pairs."""
        values: dict[str, Tensor | float] = {**terms, **more}
        for name, value in values.items():
            # On a GPU nothing waits for the numbers until they are written.
            share = (value.detach() if isinstance(value, Tensor) else value) / _LOG_EVERY
            self.sums[name] = self.sums[name] + share
        if self.state.iteration % _LOG_EVERY == 0:
            if self.log is not None:
                means = {name: float(value) for name, value in self.sums.items()}
                self.log.write("train", self.state.iteration, {**means, "seconds": self.state.seconds})
            self.sums.clear()

    def _judge(self) -> None:
        """Validate the mean weights, and export them if they are the best so far. The first process does it alone."""
        if self.log is None:
            return
        state = self.state
        if not self.data.validation:
            self._export({}, {})
            return
        judged = self.trainee.judged(state.mean.module, self.data.validation, self.fabric.device)
        self.log.write("validation", state.iteration, judged.measures)
        self.log.picture(judged.pictured, state.iteration, judged.strip)
        score = self.trainee.score(judged.measures)
        if math.isfinite(score) and (state.best is None or score > state.best.score):
            state.best = Best(state.iteration, score, judged.measures)
            self._export(judged.measures, judged.seen)

    def _export(self, measures: Mapping[str, float], expects: Mapping[Expected, tuple[float, float]]) -> None:
        card = card_of(
            self.config,
            self.data.manifest,
            labels_used=self.trainee.labels_used,
            metrics=measures,
            expects=expects,
            iteration=self.state.iteration,
            seconds=self.state.seconds,
            machine=machine_name(self.fabric.device, self.fabric.world_size),
        )
        self.trainee.save(self.out / WEIGHTS, self.state.mean.module, card)

    def _save(self) -> None:
        if self.log is not None:
            checkpoint.save(self.out / CHECKPOINT, self.state, self.config, self.loader.state_dict())

    def _weights(self) -> Path | None:
        path = self.out / WEIGHTS
        return path if path.exists() else None


def as_yaml(config: TrainingRecipe) -> str:
    """A recipe as it can be read again, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _claim(out: Path, resume: bool) -> None:
    """The folder for a new training; or, to resume, as it is."""
    if not resume:
        present = next((name for name in _OWN_NAMES if os.path.lexists(out / name)), None)
        if present is not None:
            raise OutputError(f"{out / present}: exists already. Go on with it by --resume, or choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made ({error.strerror}). Choose another --out.") from error
