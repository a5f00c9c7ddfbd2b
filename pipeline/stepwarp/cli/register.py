"""`stepwarp register`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepwarp.cli.checks import TRACE, check_files, check_out
from stepwarp.cli.command import VERDICT_FAIL
from stepwarp.cli.options import ForceOption, JsonOption, OutOption, path_option, with_register_options
from stepwarp.cli.progress import shown_progress
from stepwarp.cli.terminal import say_json, tell
from stepwarp.options import RegisterOptions

if TYPE_CHECKING:
    from stepwarp.workflow.fitting import MemoryPlan


@with_register_options("trace")
def register(
    fixed: Annotated[
        list[Path],
        path_option("--fixed", "-f", help="The image that stays: results lie on its grid. Repeatable, see below."),
    ],
    moving: Annotated[
        list[Path], path_option("--moving", "-m", help="The image that is brought to it; as many as fixed ones.")
    ],
    out: OutOption,
    fixed_mask: Annotated[
        Path | None,
        path_option(help="On the (first) fixed image's grid: voxels that are 0 have no influence (lesions)."),
    ] = None,
    moving_mask: Annotated[Path | None, path_option(help="The same for the moving image.")] = None,
    *,
    options: RegisterOptions,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits every time on a GPU too, slower; see below.")
    ] = False,
    trace: Annotated[
        Path | None,
        path_option(
            metavar="FOLDER",
            help="Keep the way there: the field after each step of the network and each level of the preset, their "
            "numbers in trace.json, and a strip of pictures in the report.",
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Show the plan of memory, and where an unexpected error comes from."),
    ] = False,
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
      Warped2.nii.gz       that of the second pair, and so on
      Jacobian.nii.gz      its change of volume, above 1 where it was larger
      registration.json    inputs, settings, seconds, measures, verdict
      report.html          a page to look at
      FixedMask.nii.gz     the brain that was found in the fixed image, with --strip or
      MovingMask.nii.gz    of a whole head and a stripped one; and in the moving image

    antsApplyTransforms -t 1Warp.nii.gz -t 0GenericAffine.mat (with -n BSpline, if --interpolation cubic was asked for)
    gives Warped.nii.gz. Before the files get their names,
    SimpleITK reads them back, and they are compared with what was computed.

    Several contrasts of one subject drive one registration: --fixed T1a --moving T1b --fixed T2a --moving T2b, in
    pairs, the first fixed image with the first moving one. Results lie on the first fixed image's grid. Further images
    lie on the first one of their subject by their headers, on grids of their own. --similarity is given once for all
    or once for each pair; --pair-weight says what each counts, 2 as if it were given twice. Masks, given or found by
    --strip, are those of the first images and hold for all images of their subjects; --structures and --weights see
    the first pair alone.

    A preset is a YAML file of what registration.json holds as affine and deformable of its settings; --preset takes
    one of your own, and --set changes a value of any.

    A network is given the images as its own file says. Where what it finds does not help (images less alike, corner
    folds, images too small for it), it is dropped, the preset runs as without it, and the verdict says so.

    --initial takes the place of the search among rotations. A linear start is refined as far as --transform lets it;
    with --transform none it is the linear part as it is. Of a start with a field (a warp, a chain, a result's folder)
    the linear part is kept, and the preset goes on from the field with those of its levels that are as fine as the
    field's grid. The files hold the whole transform all the same. A start that sends the fixed image beside the moving
    one, mirrors it, folds, or is of another pair is refused, with the numbers.

    Where the verdict is fail, a second try is made with more starts, mutual information in the linear stage and more
    iterations, unless a time budget leaves no time for it. The better of the two is kept, and the verdict says which.

    Before it searches, it plans how much memory each stage takes (--verbose shows the plan, registration.json keeps
    it). Where that is more than is free, or than --max-memory, the finest levels are left out, which stderr and the
    verdict say; where not even the coarsest fits, nothing is begun.

    Run again on the CPU of one machine, with the same versions and --threads, every voxel and number of the result
    is the same to the last bit. Another number of threads, another kind of processor and other versions change last
    digits; so does --time-budget, which ends at another iteration each time. On a GPU, sums are added in the order
    in which they finish, unless --deterministic is given; an operation for which torch has no such kernel is then
    named on stderr and in registration.json, which then does not say deterministic. Never the same are seconds,
    dates and memory in registration.json and report.html."""
    check_files([*fixed, *moving, fixed_mask, moving_mask])
    check_out(out, overwrite=force)
    if trace is not None:
        check_out(trace, TRACE, overwrite=force, option="--trace", default="trace")
    from stepwarp.workflow.device import same_bits
    from stepwarp.workflow.outputs import claimed
    from stepwarp.workflow.register import register_pair
    from stepwarp.workflow.trace import claimed_trace

    with ExitStack() as stack:
        progress = stack.enter_context(shown_progress(silent=as_json))
        unsure = stack.enter_context(same_bits()) if deterministic else []
        place = stack.enter_context(claimed(out, force))
        trace_place = None if trace is None else stack.enter_context(claimed_trace(trace, force, out))
        registration = register_pair(
            fixed,
            moving,
            options.model_copy(update={"trace": trace is not None}),
            fixed_mask=fixed_mask,
            moving_mask=moving_mask,
            progress=progress,
            planned=lambda plan: _tell_plan(plan, verbose),
        )
        registration.save(out, overwrite=force, progress=progress, place=place)
        if trace is not None:
            registration.save_trace(trace, overwrite=force, place=trace_place)
    if unsure:
        tell(f"stepwarp: may differ in the last bits, for want of such kernels: {', '.join(unsure)}")
    record = registration.record
    if as_json:
        say_json(record)
    else:
        from stepwarp.cli.summary import print_registration

        print_registration(record, out)
    if record["verdict"]["status"] == "fail":
        raise typer.Exit(VERDICT_FAIL)


def _tell_plan(plan: MemoryPlan, verbose: bool) -> None:
    """What did not fit into memory, and on demand all that is planned to."""
    if verbose:
        tell(f"stepwarp: {plan}")
    for note in plan.left_out:
        tell(f"stepwarp: {note}")
