"""`stepwarp evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stepwarp.cli.checks import check_files
from stepwarp.cli.options import ForceOption, JsonOption, TrustOption, VerboseOption, names_in, path_option
from stepwarp.cli.progress import shown_progress
from stepwarp.cli.terminal import say_json


def evaluate(
    fixed: Annotated[Path, path_option("--fixed", "-f", help="The fixed image of the registration.")],
    moving: Annotated[Path, path_option("--moving", "-m", help="The moving image.")],
    transform: Annotated[
        list[str] | None,
        typer.Option(
            "--transform",
            "-t",
            metavar="PATH",
            help="The folder of a registration by stepwarp or ANTs, the prefix of ANTs' files, a file (.mat, .tfm, "
            ".h5, warp .nii.gz), or a displacement of Learn2Reg (.nii.gz of 4 axes, .npz); repeat it for a chain in "
            "the order of antsApplyTransforms, a warp before its affine.",
            show_default="the identity",
        ),
    ] = None,
    fixed_labels: Annotated[Path | None, path_option(help="Label map on the fixed image's grid.")] = None,
    moving_labels: Annotated[Path | None, path_option(help="Label map on the moving image's grid.")] = None,
    label_names: Annotated[
        Path | None,
        path_option(help="Names of the labels: .json, .csv, .tsv, FreeSurfer's or ITK-SNAP's text."),
    ] = None,
    ignore_labels: Annotated[
        str,
        typer.Option(metavar="LABELS", help="Ids or names that are not scored, separated by commas; 0 never is."),
    ] = "",
    fixed_landmarks: Annotated[
        Path | None, path_option(help="Points in the fixed image (.csv, .tsv, .fcsv, .mrk.json), matched by name.")
    ] = None,
    moving_landmarks: Annotated[Path | None, path_option(help="The same points in the moving image.")] = None,
    unreliable_landmarks: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Names or numbers of landmarks to leave out, separated by commas."),
    ] = "",
    landmark_space: Annotated[
        Literal["ras", "lps", "voxel"] | None,
        typer.Option(
            help="World of x, y, z in a .csv that does not say it; voxel: voxels of its image, as Learn2Reg's lists.",
            show_default="refuse such files",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        path_option(
            help="On the fixed image's grid: where regularity and similarity are measured, not 0.",
            show_default="voxels of the fixed image that are not 0, or all",
        ),
    ] = None,
    out: Annotated[Path | None, path_option("--out", "-o", help="Write the numbers into this .json as well.")] = None,
    trust: TrustOption = None,
    force: ForceOption = False,
    everything: Annotated[bool, typer.Option("--all", help="Show every label and landmark.")] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Judge a registration of any tool from its files.

    \b
      stepwarp evaluate -f A.nii.gz -m B.nii.gz -t result \\
                        --fixed-labels A_labels.nii.gz --moving-labels B_labels.nii.gz

    Measured on the grid of the fixed image: overlap (Dice, Jaccard) and surface distance (HD95, average, in mm) of each
    label, distance of landmarks in mm, folds (by central differences), corner folds (by one-sided ones) and
    non-diffeomorphic volume, spread of the Jacobian, residual of the inverse, similarity. What there is no ground truth
    for is left out. A label that the transform loses scores 0 and is listed; one that only one of the maps holds is
    listed and not scored."""
    check_files(
        [fixed, moving, fixed_labels, moving_labels, label_names, fixed_landmarks, moving_landmarks, mask],
    )
    from stepwarp.files import check_file_target
    from stepwarp.workflow.evaluate import evaluate_files

    if out is not None:
        check_file_target(out, force)
    with shown_progress(silent=as_json) as progress:
        result = evaluate_files(
            fixed,
            moving,
            transform or (),
            fixed_labels=fixed_labels,
            moving_labels=moving_labels,
            ignore_labels=names_in(ignore_labels) or (),
            label_names=label_names,
            fixed_landmarks=fixed_landmarks,
            moving_landmarks=moving_landmarks,
            unreliable_landmarks=names_in(unreliable_landmarks) or (),
            space=landmark_space,
            mask=mask,
            trust=tuple(trust or ()),
            progress=progress,
        )
    if out is not None:
        from stepwarp.files.json import write_json

        write_json(out, result, overwrite=force)
    if as_json:
        say_json(result)
        return
    from stepwarp.cli.scores import print_evaluation

    print_evaluation(result, everything)
