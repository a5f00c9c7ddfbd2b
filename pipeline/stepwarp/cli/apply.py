"""`stepwarp apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stepwarp.cli.checks import check_files
from stepwarp.cli.options import ForceOption, JsonOption, OutsideOption, TrustOption, VerboseOption, path_option
from stepwarp.cli.terminal import say, say_json

Side = Literal["fixed", "moving"]


def apply(
    transform: Annotated[
        list[str],
        typer.Option(
            "--transform",
            "-t",
            metavar="PATH",
            help="The folder of a registration, or a file (.mat, .tfm, .txt, .h5, warp .nii.gz); repeat it for a chain "
            "in the order of antsApplyTransforms, a warp before its affine. '[PATH,1]' is the inverse.",
        ),
    ],
    input: Annotated[
        list[Path],
        path_option(
            "--input",
            "-i",
            help="An image, a label map, landmarks (.csv, .tsv, .fcsv, .mrk.json), a surface (.gii) or streamlines "
            "(.trk, .tck); repeat it for several.",
        ),
    ],
    output: Annotated[
        list[Path],
        path_option("--output", "-o", help="The file for each input, in the same order."),
    ],
    source: Annotated[
        Side | None,
        typer.Option(
            "--from",
            help="With a folder: which image of the registration the inputs belong to.",
            show_default="moving",
        ),
    ] = None,
    target: Annotated[
        Side | None,
        typer.Option("--to", help="With a folder: which image they are brought to.", show_default="the other one"),
    ] = None,
    inverse: Annotated[bool, typer.Option("--inverse", help="With files: use the inverse of the whole chain.")] = False,
    reference: Annotated[
        Path | None,
        path_option(
            "--reference",
            "-r",
            help="The image on whose grid images and label maps land.",
            show_default="with a folder, the grid of the image they are brought to",
        ),
    ] = None,
    interpolation: Annotated[
        Literal["auto", "linear", "nearest", "cubic", "sinc"],
        typer.Option(
            "--interpolation",
            "-n",
            help="auto: nearest for label maps, known by their values; linear for images. cubic: B-spline through the "
            "voxels, as BSpline of ANTs; sinc: Lanczos' windowed sinc. These two may overshoot.",
        ),
    ] = "auto",
    labels: Annotated[bool, typer.Option("--labels", help="All images among the inputs are label maps.")] = False,
    partial_volumes: Annotated[
        bool,
        typer.Option(
            "--partial-volumes",
            help="All images among the inputs are label maps, and become how much of each voxel every label fills, "
            "linearly: a fourth axis, whose labels a .json beside the output lists.",
        ),
    ] = False,
    space: Annotated[
        Literal["ras", "lps", "voxel"] | None,
        typer.Option(
            help="World of x, y, z in a table that does not say it; the output is in the same. ITK and ANTs use lps. "
            "voxel: voxels of the image in the folder that they belong to, as Learn2Reg's; the output is in mm, RAS.",
            show_default="refuse such files",
        ),
    ] = None,
    trust: TrustOption = None,
    outside: OutsideOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Carry images, label maps, landmarks, surfaces and streamlines along a registration.

    With the FOLDER of a registration, say where the inputs come from and where they go; images and points alike go
    from the moving image to the fixed one unless --from or --to says otherwise, and the right one of the two maps is
    chosen for each:

    \b
      stepwarp apply -t result -i moving_labels.nii.gz -o labels_on_fixed.nii.gz
      stepwarp apply -t result --from fixed -i fixed_points.csv -o in_moving.csv

    With transform FILES, as with antsApplyTransforms and antsApplyTransformsToPoints, a point meets the first one
    first: images come from the space where the chain ends into the one where it starts, and points go the other way:

    \b
      stepwarp apply -t 1Warp.nii.gz -t 0GenericAffine.mat -r fixed.nii.gz \\
                     -i moving.nii.gz -o moved.nii.gz

    Each image is interpolated once, however long the chain. What was used, and why, is printed."""
    check_files([*input, reference])
    from stepwarp.workflow.apply import apply as apply_files

    done = apply_files(
        transform,
        input,
        output,
        source=source,
        target=target,
        inverse=inverse,
        reference=reference,
        interpolation=interpolation,
        labels=labels,
        partial_volumes=partial_volumes,
        space=space,
        trust=tuple(trust or ()),
        outside=outside,
        overwrite=force,
    )
    if as_json:
        say_json([item.as_dict() for item in done])
        return
    for item in done:
        say(f"{item.input} -> {item.output}")
        say(f"  {item.how}")
        for note in item.notes:
            say(f"  note: {note}")
