"""`stepwarp demo`."""

from __future__ import annotations

from pathlib import Path

import typer

from stepwarp.cli.checks import check_out
from stepwarp.cli.command import VERDICT_FAIL
from stepwarp.cli.options import (
    DeviceOption,
    ForceOption,
    OutOption,
    PresetOption,
    SeedOption,
    ThreadsOption,
    VerboseOption,
)
from stepwarp.cli.progress import shown_progress

_FILES = ("fixed.nii.gz", "moving.nii.gz", "fixed_labels.nii.gz", "moving_labels.nii.gz", "truth", "result")


def demo(
    out: OutOption = Path("stepwarp-demo"),
    preset: PresetOption = "default",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    force: ForceOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Register two brains whose true alignment is known. Needs no data and no network.

    The fixed image is the MNI152 T1 brain that comes with nilearn. The moving one is made from it: bent by a random
    diffeomorphism of up to 12 mm, turned, stretched and shifted, put on another grid, and given another contrast, a
    bias field and noise. Both are written as files and registered as by stepwarp register; then the result is compared
    with the truth: millimetres of error inside the brain, and overlap of grey and white matter."""
    check_out(out, _FILES, overwrite=force)
    from stepwarp.workflow.demo import demo as run_demo

    with shown_progress() as progress:
        demonstration = run_demo(
            out, preset=preset, seed=seed, device=device, threads=threads, overwrite=force, progress=progress
        )
    from stepwarp.cli.summary import print_demonstration

    print_demonstration(demonstration)
    if demonstration.registration.record["verdict"]["status"] == "fail":
        raise typer.Exit(VERDICT_FAIL)
