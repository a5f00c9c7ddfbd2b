"""`stepwarp evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stepwarp.cli.checks import check_files
from stepwarp.cli.options import ForceOption, JsonOption, TrustOption, VerboseOption, names_in, path_option
from stepwarp.cli.progress import shown_progress
from stepwarp.cli.terminal import say_json
from stepwarp.errors import InputError
from stepwarp.printable import counted, worded


def evaluate(
    fixed: Annotated[
        Path | None, path_option("--fixed", "-f", help="The fixed image of the registration.", show_default=False)
    ] = None,
    moving: Annotated[Path | None, path_option("--moving", "-m", help="The moving image.", show_default=False)] = None,
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
    learn2reg: Annotated[
        Path | None,
        path_option(
            metavar="CONFIG",
            help="Instead of one pair, all of an evaluation config of Learn2Reg (.json), by its measures too.",
            show_default=False,
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        path_option(
            metavar="FOLDER",
            help="With --learn2reg: the folder of disp_0001_0004.nii.gz, or .npz, ...",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        path_option(
            metavar="FOLDER", help="With --learn2reg: where the config's paths begin.", show_default="its own folder"
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
      stepwarp evaluate --learn2reg OASIS/OASIS_VAL_evaluation_config.json \\
                        --predictions predictions

    Measured on the grid of the fixed image: overlap (Dice, Jaccard) and surface distance (HD95, average, in mm) of each
    label, distance of landmarks in mm, folds (by central differences), corner folds (by one-sided ones) and
    non-diffeomorphic volume, spread of the Jacobian, residual of the inverse, similarity. What there is no ground truth
    for is left out. A label that the transform loses scores 0 and is listed; one that only one of the maps holds is
    listed and not scored.

    With --learn2reg: a row for each pair of the config, with the numbers of the challenge's script, by its definitions
    and under its names, and ours beside them; then their mean, spread and quantiles. A pair whose prediction is missing
    or cannot be used is a row that says so; the exit code is then 3, and everything is written all the same."""
    of_a_pair = {
        "--fixed": fixed,
        "--moving": moving,
        "--transform": transform,
        "--fixed-labels": fixed_labels,
        "--moving-labels": moving_labels,
        "--label-names": label_names,
        "--ignore-labels": ignore_labels,
        "--fixed-landmarks": fixed_landmarks,
        "--moving-landmarks": moving_landmarks,
        "--unreliable-landmarks": unreliable_landmarks,
        "--landmark-space": landmark_space,
        "--mask": mask,
        "--all": everything,
    }
    of_a_task = {"--predictions": predictions, "--data": data}
    if learn2reg is not None:
        _refuse(of_a_pair, "With --learn2reg the config says what is compared")
        if predictions is None:
            raise InputError("--learn2reg needs --predictions, the folder of the displacements.")
        _evaluate_task(learn2reg, predictions, data, out, trust, force, as_json)
        return
    _refuse(of_a_task, "Without --learn2reg one pair is judged")
    if fixed is None or moving is None:
        raise InputError("a pair needs --fixed and --moving. Give both images, or --learn2reg and --predictions.")
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
    from stepwarp.cli.scores import print_evaluation

    _give(result, out, force, as_json, lambda found: print_evaluation(found, everything))


def _evaluate_task(
    config: Path,
    predictions: Path,
    data: Path | None,
    out: Path | None,
    trust: list[str] | None,
    force: bool,
    as_json: bool,
) -> None:
    """All pairs of a task of Learn2Reg. InputError in the end if there is one without a result."""
    check_files([config])
    from stepwarp.cli.scores import print_task
    from stepwarp.files import check_file_target
    from stepwarp.workflow.learn2reg import evaluate_learn2reg

    if out is not None:
        check_file_target(out, force)
    with shown_progress(silent=as_json) as progress:
        result = evaluate_learn2reg(config, predictions, data=data, trust=tuple(trust or ()), progress=progress)
    _give(result, out, force, as_json, print_task)
    without = sum("reason" in row for row in result["pairs"])
    if without:
        of = counted(len(result["pairs"]), "pair")
        raise InputError(f"{without} of {of} {worded(without, 'has', 'have')} no result; the rows say why.")


def _refuse(options: Mapping[str, object], why: str) -> None:
    """InputError that names those of these options that were given."""
    given = [name for name, value in options.items() if value]
    if given:
        raise InputError(f"{', '.join(given)}: not here. {why}; leave {worded(len(given), 'it', 'them')} out.")


def _give(
    result: dict[str, Any], out: Path | None, force: bool, as_json: bool, show: Callable[[dict[str, Any]], None]
) -> None:
    """Write a result and print it, as was asked for."""
    if out is not None:
        from stepwarp.files.json import write_json

        write_json(out, result, overwrite=force)
    if as_json:
        say_json(result)
    else:
        show(result)
