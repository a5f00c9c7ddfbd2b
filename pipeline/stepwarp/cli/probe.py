"""`stepwarp probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stepwarp.cli.checks import check_out
from stepwarp.cli.options import (
    DataOption,
    DeviceOption,
    ForceOption,
    OutOption,
    SeedOption,
    ThreadsOption,
    VerboseOption,
    path_option,
)
from stepwarp.cli.progress import shown_progress
from stepwarp.cli.terminal import say


def probe(
    weights: Annotated[
        str,
        typer.Option(
            "--weights", "-w", metavar="FILE", help="Weights that stepwarp trained, or the name of shipped ones."
        ),
    ],
    manifest: Annotated[
        str,
        typer.Option("--manifest", "-m", metavar="MANIFEST", help="The scans: a file, or a shipped name: oasis, ..."),
    ],
    out: OutOption = Path("probes"),
    data: DataOption = None,
    pairs: Annotated[int, typer.Option("--pairs", min=2, metavar="N", help="How many pairs, at most.")] = 5,
    cache: Annotated[
        Path | None,
        path_option(
            "--cache", metavar="FOLDER", help="Of aligned scans, such as that of a training.", show_default="in --out"
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    force: ForceOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Ask a trained network whether its steps are an optimisation, and of what.

    \b
      stepwarp probe --weights run/weights.safetensors --manifest oasis --data FOLDER --cache run/cache

    On pairs that it was not trained on (those held out of its training; of another manifest those of the split
    "validation", or all if it has no splits), each probe with a control, a null and confidence intervals:

    \b
      a  objective, folds and length of every step, also for 2 and 4 times as many
      b  direction: do the steps follow the gradient of the objective
      e  path independence: other starts, the same end?
      f  at the optimum, and between an image and itself: does it stay
      h  the fixed image swapped half-way: does it follow
      and images of another contrast: what is left of the gain

    The folder then holds probes.json, every number, and probes.html, what they say. Each of the probes registers the
    pairs several times: minutes on a GPU, and with 5 pairs half an hour on few CPU cores."""
    check_out(out, ("probes.json", "probes.html"), overwrite=force, default="probes")
    from stepwarp.workflow.probe import probe_weights

    with shown_progress() as progress:
        record = probe_weights(
            weights,
            manifest,
            out,
            root=data,
            pairs=pairs,
            cache=cache,
            device=device,
            threads=threads,
            seed=seed,
            overwrite=force,
            progress=progress,
        )
    for found in record["probes"].values():
        say(found["title"])
        for sentence in found["findings"]:
            say(f"  {sentence}")
    say()
    say(out / "probes.html")
