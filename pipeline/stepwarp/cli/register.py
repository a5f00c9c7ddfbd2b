"""`stepwarp register`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from stepwarp.cli.checks import check_files, check_out
from stepwarp.cli.command import VERDICT_FAIL
from stepwarp.cli.options import (
    DeviceOption,
    ForceOption,
    PresetOption,
    SeedOption,
    ThreadsOption,
    TrustOption,
    VerboseOption,
    path_option,
)
from stepwarp.cli.progress import shown_progress


def register(
    fixed: Annotated[Path, path_option("--fixed", "-f", help="The image that stays: results lie on its grid.")],
    moving: Annotated[Path, path_option("--moving", "-m", help="The image that is brought to it.")],
    out: Annotated[Path, path_option("--out", "-o", metavar="FOLDER", help="Where the results go.")],
    fixed_mask: Annotated[
        Path | None,
        path_option(help="On the fixed image's grid: voxels that are 0 have no influence (lesions)."),
    ] = None,
    moving_mask: Annotated[Path | None, path_option(help="The same for the moving image.")] = None,
    preset: PresetOption = "default",
    affine_only: Annotated[bool, typer.Option("--affine-only", help="Stop after the linear stage.")] = False,
    transform: Annotated[
        Literal["rigid", "similarity", "affine"],
        typer.Option(help="What the linear stage may do: move; also scale; also stretch and shear."),
    ] = "affine",
    similarity: Annotated[
        Literal["lncc", "ncc", "ssd", "mi", "mind"] | None,
        typer.Option(
            help="What makes two images alike. mi and mind: for images of different kinds, such as T1 and T2.",
            show_default="the preset's, lncc",
        ),
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    time_budget: Annotated[
        float | None,
        typer.Option(
            min=0.001, metavar="SECONDS", help="Start no further iteration after this time.", show_default="none"
        ),
    ] = None,
    trust: TrustOption = None,
    force: ForceOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print registration.json on stdout and nothing else.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Align a moving image to a fixed one: affine, then deformable.

    \b
      stepwarp register --fixed A.nii.gz --moving B.nii.gz --out result

    Images are 3D, of any spacing, orientation and position (.nii, .nii.gz, .mgz, .hdr/.img). The folder then holds,
    in the formats of ANTs:

    \b
      0GenericAffine.mat   the transform, from points of the fixed to points of the
      1Warp.nii.gz         moving image: first the warp, then the affine
      1InverseWarp.nii.gz  the way back: first the inverted affine, then this
      Warped.nii.gz        the moving image on the fixed grid
      Jacobian.nii.gz      its change of volume, above 1 where it was larger
      registration.json    inputs, settings, seconds, measures, verdict
      report.html          a page to look at

    antsApplyTransforms -t 1Warp.nii.gz -t 0GenericAffine.mat gives Warped.nii.gz. Before the files get their names,
    SimpleITK reads them back, and they are compared with what was computed."""
    check_files([fixed, moving, fixed_mask, moving_mask])
    check_out(out, overwrite=force)
    from stepwarp.workflow.register import register as register_files

    with shown_progress(silent=as_json) as progress:
        registration = register_files(
            fixed,
            moving,
            preset=preset,
            affine_only=affine_only,
            transform=transform,
            similarity=similarity,
            fixed_mask=fixed_mask,
            moving_mask=moving_mask,
            device=device,
            threads=threads,
            seed=seed,
            time_budget=time_budget,
            trust=trust,
            progress=progress,
        )
        registration.save(out, overwrite=force, progress=progress)
    record = registration.record
    if as_json:
        print(json.dumps(record, indent=1))
    else:
        from stepwarp.cli.summary import print_registration

        print_registration(record, out)
    if record["verdict"]["status"] == "fail":
        raise typer.Exit(VERDICT_FAIL)
