"""Options that several commands have, with the same words and the same help."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

Preset = Literal["fast", "default", "best"]
Device = Literal["auto", "cpu", "cuda"]


def path_option(*names: str, metavar: str = "FILE", **more: Any) -> Any:
    """An option whose path typer takes as it is: `checks` and the readers say what is wrong with it, in one line."""
    return typer.Option(*names, metavar=metavar, readable=False, **more)


PresetOption = Annotated[
    Preset, typer.Option(help="fast: seconds. default: most of the accuracy. best: the last of it, minutes.")
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute. auto: on a CUDA GPU if there is one.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads.", metavar="N", show_default="all that this process may use")
]
SeedOption = Annotated[int, typer.Option(min=0, metavar="N", help="Start of every random choice.")]
TrustOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[FILE=]sform|qform|base",
        help="Where the voxels lie, for files whose sform and qform contradict each other or are both unset; "
        "base: the voxel sizes alone. FILE=: of that file alone (path or name; may be repeated). Files whose header is "
        "in order are not touched.",
        show_default="refuse such files",
    ),
]
OutsideOption = Annotated[
    float | None,
    typer.Option(
        metavar="VALUE",
        help="What images become where the moving image ends, such as -1000 for the air of a CT; nan for nothing. "
        "Label maps become 0.",
        show_default="in apply, what the registration was given; the most frequent value on the faces of the image if "
        "it covers half of them, else 0",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace results that exist already.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show where an unexpected error comes from.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the record as JSON on stdout and nothing else.")]
StepsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="How often the network runs each step that it repeats.",
        show_default="as the weights say",
    ),
]
NoRefineOption = Annotated[bool, typer.Option("--no-refine", help="End with what the network found.")]
NoEscalationOption = Annotated[
    bool, typer.Option("--no-escalation", help="Where the verdict is fail, make no second try.")
]
