"""Options that several commands have, with the same words and the same help."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import typer
from annotated_types import Ge

from stepwarp.options import OptionHelp, RegisterOptions, choices


def path_option(*names: str, metavar: str = "FILE", **more: Any) -> Any:
    """An option whose path typer takes as it is: `checks` and the readers say what is wrong with it, in one line."""
    return typer.Option(*names, metavar=metavar, readable=False, **more)


def register_option(name: str) -> Any:
    """The option of the command line for one of `RegisterOptions`."""
    field = RegisterOptions.model_fields[name]
    shown = next(each for each in field.metadata if isinstance(each, OptionHelp))
    least: Any = next((each.ge for each in field.metadata if isinstance(each, Ge)), None)
    word = name.replace("_", "-")
    # What holds unless one says otherwise wants a way to say otherwise.
    off = field.default is True or field.annotation == bool | None
    names = f"--{word}/--no-{word}" if off else f"--{word}"
    return typer.Option(names, help=shown.help, metavar=shown.metavar, min=least, show_default=shown.default)


def with_register_options(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for each of `RegisterOptions`, in the place of its parameter `options`, as which it is
    called with all of them. without: those that are not for it."""
    own = [name for name in RegisterOptions.model_fields if name not in without]

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            parameters += map(_parameter, own) if parameter.name == "options" else [parameter]
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]

        @functools.wraps(command)
        def called(**given: Any) -> None:
            options = RegisterOptions.of(**{name: given.pop(name) for name in own})
            command(options=options, **given)

        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        return called

    return decorated


#: typer knows lists of these, and none of literals.
_Similarity = StrEnum("_Similarity", {name: name for name in choices("similarity")})  # type: ignore[misc]


def _parameter(name: str) -> inspect.Parameter:
    """As typer takes it, which knows neither settings nor tuples of any length."""
    field = RegisterOptions.model_fields[name]
    kinds = {"preset": str, "weights": str | None, "max_memory": str | None, "similarity": list[_Similarity] | None}
    kind = kinds.get(name, field.annotation)
    if get_origin(kind) is tuple:
        kind = list[float] | None if name == "pair_weight" else list[str] | None
    default = None if field.default == () or name == "similarity" else field.default
    annotation = Annotated[kind, register_option(name)]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


PresetOption = Annotated[str, register_option("preset")]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], register_option("device")]
ThreadsOption = Annotated[int | None, register_option("threads")]
TrustOption = Annotated[list[str] | None, register_option("trust")]
OutsideOption = Annotated[float | None, register_option("outside")]

_OUT = path_option("--out", "-o", metavar="FOLDER", help="Where everything goes.")
OutOption = Annotated[Path, _OUT]
OptionalOutOption = Annotated[Path | None, _OUT]
ManifestArgument = Annotated[
    str, typer.Argument(metavar="MANIFEST", help="A file, or the name of one that comes with stepwarp: oasis, ...")
]
DataOption = Annotated[
    Path | None,
    path_option(
        "--data",
        metavar="FOLDER",
        help="Where the paths of manifests begin.",
        show_default="$STEPWARP_DATA, else the manifest's folder",
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option("--split", metavar="NAME", help="Only what the manifest puts in this split.", show_default="all"),
]
SeedOption = Annotated[int, typer.Option(min=0, metavar="N", help="Start of every random choice.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace results that exist already.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show where an unexpected error comes from.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout and nothing else.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and why; run nothing.")]
SummaryOnlyOption = Annotated[
    bool, typer.Option("--summary-only", help="Make tables and page anew from what --out holds; run nothing.")
]


def names_in(text: str | None) -> list[str] | None:
    """What an option of several names holds, A,B,C; None where it is not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
