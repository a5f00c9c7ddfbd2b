"""`stepwarp batch`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stepwarp.cli.command import VERDICT_FAIL
from stepwarp.cli.options import (
    DataOption,
    DryRunOption,
    ForceOption,
    JsonOption,
    ManifestArgument,
    OutOption,
    SplitOption,
    SummaryOnlyOption,
    VerboseOption,
    names_in,
    with_register_options,
)
from stepwarp.cli.progress import shown_progress
from stepwarp.cli.terminal import say, say_json, tell
from stepwarp.errors import InputError, RegistrationError
from stepwarp.options import RegisterOptions
from stepwarp.printable import counted

if TYPE_CHECKING:
    from stepwarp.batch.farm import FarmSize
    from stepwarp.batch.plan import BatchCase


@with_register_options("trace", "pair_weight")
def batch(
    manifest: ManifestArgument,
    out: OutOption,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|ID",
            help="Register every image of the manifest to this one, instead of its pairs.",
            show_default="the manifest's pairs",
        ),
    ] = None,
    split: SplitOption = None,
    only: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Only these pairs, or images, by id.", show_default="all")
    ] = None,
    data: DataOption = None,
    masks: Annotated[
        bool, typer.Option("--masks", help="What the manifest's masks exclude has no influence (lesions).")
    ] = False,
    bids: Annotated[
        bool, typer.Option("--bids", help="Also give the results names of BIDS derivatives, below bids/.")
    ] = False,
    *,
    options: RegisterOptions,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Cases at a time; on a GPU no more than its memory holds.",
            show_default="by cores and free memory, also a GPU's; 16 jobs of a --cluster",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Work on the Dask cluster of this scheduler.", show_default="here"),
    ] = None,
    cluster: Annotated[
        Literal["slurm", "sge", "pbs"] | None,
        typer.Option(help="Start workers as jobs of this batch system.", show_default="none"),
    ] = None,
    cluster_options: Annotated[
        list[str] | None,
        typer.Option(
            "--cluster-option", metavar="NAME=VALUE", help="For the jobs: queue=long, walltime=12:00:00; repeatable."
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, metavar="N", help="Try a case again after a fault of the machine.")
    ] = 2,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    summary_only: SummaryOnlyOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Register every pair of a manifest, or all its images to one template, on all cores or a cluster.

    \b
      stepwarp batch study.json --out results
      stepwarp batch study.json --to template.nii.gz --out results --workers 4
      stepwarp batch study.json --out results --cluster slurm --workers 20 \\
                     --threads 4 --cluster-option queue=long --cluster-option walltime=12:00:00
      stepwarp batch study.json --out results --scheduler tcp://head:8786

    Interrupt it or kill it whenever you like: the same command goes on, and what is finished is not run again as long
    as its images, masks, settings, weights and the version of stepwarp are the same. A case that fails leaves its
    reason and stops no other; after a fault of the machine (a worker died, the disk was full, memory ran out) it is
    tried again after a while. One batch at a time writes into a folder. --dry-run says what is to be done. The folder:

    \b
      cases/ID/          what stepwarp register writes, and picture.jpg; appears as a whole
      failed/ID.json     why a case failed
      index.html         the page to look at: the worst first, and how the measures spread
      cases.csv          a row per case; summary.json holds the same
      bids/              with --bids: the same files under names of BIDS derivatives
      environment.json   the machine and all versions

    A cluster must see the images and the output folder under the same paths. --cluster needs dask-jobqueue (pip install
    'stepwarp[cluster]'); what --cluster-option says are arguments of its SLURMCluster, SGECluster or PBSCluster.

    The exit code is 6 if a case failed, else 7 if the verdict on one is fail; everything else is written all the
    same."""
    from stepwarp.batch.farm import Farm
    from stepwarp.batch.study import Batch

    asked = Batch.of(
        manifest,
        out,
        options,
        to=to,
        split=split,
        only=names_in(only),
        data=data,
        masks=masks,
        farm=Farm(workers, options.threads, scheduler, cluster, dict(map(_option, cluster_options or []))),
        bids=bids,
    )
    with shown_progress(silent=as_json) as progress:
        if dry_run:
            cases = asked.plan(progress)
            _print_plan(cases, asked.size(cases), as_json)
            return
        if summary_only:
            summary = asked.conclude()
        else:
            summary = asked.run(
                replace=force, retries=retries, progress=progress, tell=(lambda line: None) if as_json else tell
            )
    if as_json:
        say_json(summary)
    else:
        _print_summary(summary, out)
    asked_for = [row for row in summary["cases"] if row["case"] in set(summary["asked"])]
    failed = sum(row["status"] == "failed" for row in asked_for)
    if failed:
        raise RegistrationError(f"{failed} of {counted(len(asked_for), 'case')} failed; {out / 'failed'} says why.")
    if any(row.get("verdict") == "fail" for row in asked_for):
        raise typer.Exit(VERDICT_FAIL)


def _option(text: str) -> tuple[str, Any]:
    """NAME=VALUE; a value that is JSON is taken as such, so that numbers and lists can be given."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"--cluster-option {text}: write NAME=VALUE, such as queue=long")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _print_plan(cases: Sequence[BatchCase], size: FarmSize, as_json: bool) -> None:
    counts = {todo: sum(case.todo == todo for case in cases) for todo in ("run", "done", "failed")}
    disk = sum(case.job.disk_mib for case in cases if case.todo == "run" and case.job is not None)
    if as_json:
        rows = [{"case": case.id, "todo": case.todo, "why": case.why, "replaces": case.replaces} for case in cases]
        say_json({"cases": rows, "workers": vars(size), "disk_mib": disk})
        return
    for case in cases:
        say(f"{case.todo:<6}  {case.id}{f': {case.why}' if case.why else ''}")
    say(f"{counts['run']} to run, {counts['done']} done, {counts['failed']} that cannot be run")
    if counts["run"]:
        say(f"on {size}; at most {disk} MiB of disk")
    replaced = sum(case.replaces for case in cases)
    if replaced:
        say(f"{counted(replaced, 'result is', 'results are')} in the way: another --out, or --force to replace them")


def _print_summary(summary: Mapping[str, Any], out: Path) -> None:
    words = {"pass": "pass", "check": "to check", "fail": "fail", "failed": "failed", "waiting": "not begun"}
    counts = summary["counts"]
    say(
        f"{counted(len(summary['cases']), 'case')}: "
        + ", ".join(f"{counts[key]} {word}" for key, word in words.items())
    )
    for row in summary["cases"]:
        if row["status"] == "failed":
            say(f"{row['case']}: {row['reason']}")
    for note in summary["notes"]:
        say(f"note: {note}")
    say(f"look at  {out / 'index.html'}")
