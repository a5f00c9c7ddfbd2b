"""The console script `stepwarp`."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, NoReturn

import typer

from stepwarp.cli.apply import apply
from stepwarp.cli.batch import batch
from stepwarp.cli.benchmark import benchmark
from stepwarp.cli.command import EXIT_CODES, Command, Terminated
from stepwarp.cli.demo import demo
from stepwarp.cli.doctor import doctor
from stepwarp.cli.evaluate import evaluate
from stepwarp.cli.manifest import app as manifest
from stepwarp.cli.mnist import app as mnist
from stepwarp.cli.probe import probe
from stepwarp.cli.register import register
from stepwarp.cli.segment import segment
from stepwarp.cli.terminal import exit_code, guarded_streams, open_streams, say
from stepwarp.cli.train import finetune, train
from stepwarp.version import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
for _command in (register, segment, batch, apply, evaluate, demo, doctor, benchmark, train, finetune, probe):
    app.command(cls=Command, epilog=EXIT_CODES)(_command)
app.add_typer(manifest, name="manifest")
app.add_typer(mnist, name="mnist")


def main() -> None:
    """Run the command line and exit with its code."""
    open_streams()
    _end_on_signals()
    with guarded_streams():
        try:
            app(prog_name="stepwarp")
        except SystemExit as end:
            sys.exit(exit_code(end.code))


def _end_on_signals() -> None:
    """Whatever a scheduler, a lost terminal or a limit sends ends a run as Ctrl-C does, with nothing left behind;
    except where it was asked to be ignored, as nohup does."""
    for name in ("SIGTERM", "SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)


def _terminate(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # schedulers send several; what is cleared up now is not to be interrupted
    raise Terminated(number)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"stepwarp {__version__}")
        raise typer.Exit


@app.callback(epilog=EXIT_CODES)
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Aligns 3D medical images.

    A registration finds the map from points of a FIXED image to points of a MOVING image, in millimetres, and checks
    the files that it writes. The files are those of ANTs and ITK.

    Try it without any data:  stepwarp demo"""
