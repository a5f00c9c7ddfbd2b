"""`stepwarp benchmark`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stepwarp import catalogue
from stepwarp.cli.options import (
    DataOption,
    DryRunOption,
    JsonOption,
    ManifestArgument,
    OutOption,
    SeedOption,
    SplitOption,
    SummaryOnlyOption,
    ThreadsOption,
    VerboseOption,
    names_in,
)
from stepwarp.cli.progress import shown_progress
from stepwarp.cli.terminal import cell, console, say, say_json, tell
from stepwarp.errors import RegistrationError
from stepwarp.evaluation import metrics
from stepwarp.evaluation.metric import Metric
from stepwarp.printable import counted

if TYPE_CHECKING:
    from stepwarp.benchmark.plan import BenchmarkCase


_BASELINES = catalogue.listed(
    {name.replace("_", "-"): about for name, about in catalogue.summaries("baselines").items()}
)


def _list_methods(wanted: bool) -> None:
    if not wanted:
        return
    from stepwarp.benchmark.methods import METHODS

    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        say(f"{name:<{width}}  {method.title}")
        absent = method.missing()
        if absent:
            say(f"{'':<{width}}  cannot run here: {absent}")
    raise typer.Exit


def benchmark(
    manifest: ManifestArgument,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="What to compare; --list-methods names them all: stepwarp with each of its presets, alone and after a "
            f"network, and the methods of {_BASELINES}.",
            show_default="identity, ants-affine, ants-syn, ants-syn-quick and all of stepwarp",
        ),
    ] = None,
    split: SplitOption = None,
    pairs: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Only these pairs, by id.", show_default="all of the split")
    ] = None,
    data: DataOption = None,
    out: OutOption = Path("stepwarp-benchmark"),
    baseline: Annotated[
        str, typer.Option(metavar="METHOD", help="What the others are compared with, pair by pair.")
    ] = "ants-syn-quick",
    threads: ThreadsOption = None,
    device: Annotated[
        Literal["auto", "cpu"], typer.Option(help="cpu: no method gets to see a GPU. auto: each does as it likes.")
    ] = "auto",
    seed: SeedOption = 0,
    again: Annotated[
        bool, typer.Option("--again", help="Run the chosen methods on the chosen pairs even if they were run.")
    ] = False,
    dry_run: DryRunOption = False,
    summary_only: SummaryOnlyOption = False,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Draw no picture of each case.")] = False,
    as_json: JsonOption = False,
    list_methods: Annotated[
        bool,
        typer.Option(
            "--list-methods", callback=_list_methods, is_eager=True, help="Name every method, and what keeps it away."
        ),
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Run methods side by side on the pairs of a manifest, and judge what each of them wrote.

    \b
      stepwarp benchmark oasis --split validation --data DATA --out results
      stepwarp benchmark oasis --split validation --data DATA --out results \\
                         --methods ants-syn-best --pairs 1013_1019

    Nothing about a method differs but the method: all get the same two images in memory, the same number of threads
    and the same seed, each case in a process of its own, one at a time, the methods in turn on each pair. The clock
    runs around the method's call; imports, reading and writing are not counted. All are judged from the transform
    files that they leave, by the same labels (nearest neighbour), landmarks and mask. A method that cannot run here is
    reported as absent, a case that fails as failed, and the next one begins.

    Interrupt it or kill it whenever you like: the same command goes on, and at most the case in hand is lost. A case is
    run again if its images, the threads, the seed, the device, a version or the method's settings have changed, or if
    it had failed; it is judged again, and not run, if only labels, landmarks or masks have. --dry-run says which.
    Another call with other methods or pairs adds to what the folder holds:

    \b
      cases/PAIR__METHOD.json    what was run, its seconds and memory, every score
      runs/PAIR/METHOD/          the transform, as ANTs writes it; run.json
      pictures/PAIR__METHOD.jpg
      summary.json, table.md     mean, sd, median, 30 % quantile, intervals, tests
      cases.csv                  a row per case
      environment.json           the machine and all versions
      index.html                 the page to look at

    The exit code is 6 if a case failed; everything else is written all the same."""
    from stepwarp.benchmark import runner
    from stepwarp.benchmark.study import DEFAULT_METHODS, BenchmarkStudy, ask
    from stepwarp.data.manifest import data_root

    study = BenchmarkStudy.of(manifest, names_in(methods) or DEFAULT_METHODS, split, baseline)
    failed = 0
    if not summary_only:
        asked = ask(out, threads=threads, seed=seed, gpu=device == "auto", pictures=not no_pictures, again=again)
        cases = study.plan(data_root(data, manifest), asked, names_in(pairs))
        if dry_run:
            _print_plan(cases, as_json)
            return
        with shown_progress(silent=as_json) as progress:
            failed = runner.run(cases, asked, progress=progress, tell=(lambda line: None) if as_json else tell)
    summary = study.conclude(out)
    if as_json:
        say_json(summary)
    else:
        _print_summary(summary)
        say(f"look at  {out / 'index.html'}")
    if failed:
        raise RegistrationError(
            f"{counted(failed, 'case')} failed; {out / 'table.md'} says on what, and runs/ holds their logs."
        )


def _print_plan(cases: Sequence[BenchmarkCase], as_json: bool) -> None:
    if as_json:
        rows = [{"pair": c.pair.id, "method": c.method.name, "todo": c.todo, "why": c.why} for c in cases]
        say_json(rows)
        return
    for case in cases:
        say(f"{case.todo:<6}  {case}{f': {case.why}' if case.why else ''}")
    words = {"run": "to run", "judge": "to judge", "absent": "absent", "done": "done"}
    say(", ".join(f"{sum(case.todo == todo for case in cases)} {word}" for todo, word in words.items()))


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.table import Table

    methods = summary["methods"]
    measured = {key for method in methods.values() for key in method["metrics"]}
    columns = [metric for metric in metrics.shown("terminal") if metric.key in measured]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("method", "cases", *(metric.column for metric in columns)):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for name, method in methods.items():
        values = [_mean(method["metrics"].get(metric.key), metric) for metric in columns]
        table.add_row(cell(name), str(method["cases"]), *values)
    screen = console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    screen.print(table)
    for name, method in methods.items():
        for remark in _remarks(method, summary["baseline"]):
            screen.print(cell(f"{name}: {remark}"))
    for note in summary["notes"]:
        screen.print(cell(f"note: {note}"))


def _mean(found: dict[str, Any] | None, metric: Metric) -> str:
    return "" if found is None else metric.plain(found["mean"])


def _remarks(method: dict[str, Any], baseline: str) -> Iterator[str]:
    """What keeps a method out of the table, and how its accuracy differs from the baseline's."""
    if method["absent"]:
        yield f"absent, {method['absent']}"
    if method["failed"]:
        yield f"{method['failed']} failed"
    for metric in metrics.shown("headline"):
        found = method["metrics"].get(metric.key, {}).get("against_baseline")
        if found:
            counts = f"better on {found['wins']}, worse on {found['losses']}, equal on {found['ties']}"
            difference = metric.said(found["difference"], signed=True)
            yield f"{difference} against {baseline}, {counts}, p {found['p_wilcoxon']:.2g}"
