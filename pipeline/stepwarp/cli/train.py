"""`stepwarp train` and `stepwarp finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepwarp.cli.checks import check_files
from stepwarp.cli.options import (
    DataOption,
    DeviceOption,
    OptionalOutOption,
    OutOption,
    ThreadsOption,
    VerboseOption,
    path_option,
)
from stepwarp.cli.progress import shown_progress
from stepwarp.cli.terminal import say
from stepwarp.errors import InputError
from stepwarp.printable import counted

if TYPE_CHECKING:
    from stepwarp.training.loop import TrainingResult
    from stepwarp.training.plan import TrainingPlan

_SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a setting of the recipe: optimiser.lr=1e-4; repeatable."),
]
_ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]
_MinutesOption = Annotated[
    float | None,
    typer.Option(min=0.001, metavar="MINUTES", help="End after this time, with a checkpoint.", show_default="none"),
]


def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A recipe's file, or the name of one that comes with stepwarp: brain_t1, brain_any, ...",
        ),
    ],
    out: OptionalOutOption = None,
    overrides: _SetOption = None,
    data: DataOption = None,
    resume: _ResumeOption = False,
    max_minutes: _MinutesOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the plan, and the time and memory of one iteration.")
    ] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Train the network of a registrar, or one that finds structures.

    \b
      stepwarp train brain_t1 --out run --data FOLDER
      stepwarp train my.yaml --out run --set optimiser.lr=1e-4 --max-minutes 60
      torchrun --nproc-per-node 4 --no-python stepwarp train brain_t1 --out run

    The folder then holds:

    \b
      weights.safetensors  the best so far, with its model card, for register or segment
      checkpoint.pt        all of the training, for --resume
      config.yaml          the recipe with every setting
      log.jsonl            loss and validation; also in tensorboard/ (tensorboard --logdir FOLDER)
      cache/               the scans, aligned and on the network's grid

    Scans are read once. Where there is a GPU they lie on it, and it moves, bends, paints and spoils them itself."""
    from stepwarp.workflow import train as workflow
    from stepwarp.workflow.device import reuse_memory

    reuse_memory()

    changes = overrides or []
    if dry_run:
        with shown_progress() as progress:
            plan = workflow.plan_recipe(config, changes, root=data, device=device, threads=threads, progress=progress)
        for line in _described(plan):
            say(line)
        return
    if out is None:
        raise InputError("--out is missing: name a folder for the training, or look at the plan with --dry-run")
    with shown_progress() as progress:
        ended = workflow.train_from_recipe(
            config,
            out,
            changes,
            root=data,
            resume=resume,
            max_minutes=max_minutes,
            device=device,
            threads=threads,
            progress=progress,
        )
    _print_ended(ended, out)


def finetune(
    manifest: Annotated[
        str,
        typer.Argument(
            metavar="MANIFEST",
            help="Your scans; see stepwarp manifest make. Those of the split "
            "'training' are trained on, those of 'validation', if there are any, decide what is kept.",
        ),
    ],
    weights: Annotated[Path, path_option("--weights", "-w", help="Weights of stepwarp to begin with.")],
    out: OutOption,
    overrides: _SetOption = None,
    data: DataOption = None,
    resume: _ResumeOption = False,
    max_minutes: _MinutesOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Train weights a little further, on your own scans.

    \b
      stepwarp finetune mine.json --weights brain-t1.safetensors --out run

    The recipe is that of the weights, with a lower learning rate and 500 iterations; --set curriculum.0.iterations=2000
    makes it longer. The folder is that of stepwarp train."""
    check_files([weights])
    from stepwarp.workflow import train as workflow
    from stepwarp.workflow.device import reuse_memory

    reuse_memory()

    with shown_progress() as progress:
        ended = workflow.finetune(
            manifest,
            weights,
            out,
            overrides or [],
            root=data,
            resume=resume,
            max_minutes=max_minutes,
            device=device,
            threads=threads,
            progress=progress,
        )
    _print_ended(ended, out)


def _described(plan: TrainingPlan) -> list[str]:
    """The plan, line by line."""
    config = plan.config
    lines = [
        f"{config.name}: {counted(config.iterations, 'iteration')}, seed {config.seed}, {config.precision}",
        f"data       {config.data.manifest}: {counted(plan.scans, 'scan')}, "
        f"{counted(plan.pairs, 'ordered pair')} to train on, "
        f"{plan.validation_pairs} to validate on",
        f"grid       {plan.grid!r}",
        f"losses on  {plan.losses}",
        "",
        *plan.tree.split("\n"),
        "",
        "stage  iterations  steps  frozen  trained parameters  seconds/iteration  peak MiB  losses on",
    ]
    for number, cost in enumerate(plan.stages, 1):
        lines.append(
            f"{number:>5}  {cost.iterations:>10}  {cost.steps:>5}  {cost.frozen:>6}  {cost.parameters:>18,}"
            f"  {cost.seconds:>17.3f}  {cost.peak_mib:>8}  {cost.losses}"
        )
    return [*lines, "", f"all iterations together: about {_duration(plan.seconds)} on this machine"]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print_ended(ended: TrainingResult, out: Path) -> None:
    state = "done" if ended.finished else "time is up; go on with --resume"
    say(f"iterations   {ended.iteration} ({state}), {_duration(ended.seconds)}")
    if ended.best is not None:
        measures = ", ".join(f"{name} {value:.4f}" for name, value in ended.best.measures.items())
        say(f"best         iteration {ended.best.iteration}: {measures}")
    say(f"weights      {ended.weights or 'none yet'}")
    say(f"look at      tensorboard --logdir {out / 'tensorboard'}")
