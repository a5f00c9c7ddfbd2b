"""What a registration method is, whoever wrote it: a name, and images in, an Outcome out.

Nothing is timed here: whoever compares methods runs each in a process of its own and measures around the call."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from typing import Any, Protocol

from stepwarp.errors import InputError
from stepwarp.geometry import Image, Transform


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method found. transform: points of the fixed world to points of the moving world, RAS mm."""

    transform: Transform
    inverse: Transform | None
    """What the method itself delivers for the way back; None where it delivers nothing."""
    record: dict[str, Any]
    """How to repeat it, ready for JSON: `command`, `versions`, and the settings that matter."""


class Method(Protocol):
    """A registration method. `name`: what it is called on the command line. `title`: what tables call it. One that
    imports modules only when it is called may name them in `imports`: importing is not registering."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    def missing(self) -> str | None:
        """Why the method cannot run here and what to do about it, in one sentence; None where it can."""

    def __call__(self, fixed: Image, moving: Image, *, threads: int, seed: int) -> Outcome:
        """Register two images, each on its own grid. RegistrationError where the method itself fails, InputError where
        it is `missing`."""


def missing_package(module: str, how: str) -> str | None:
    """None if a Python module can be found (it is not imported), else a sentence; how: what installs it."""
    if importlib.util.find_spec(module) is not None:
        return None
    return f"the Python package {module} is not installed; {how}"


def missing_programs(programs: tuple[str, ...], how: str) -> str | None:
    """None if all of the programs are on the PATH, else a sentence that names those that are not."""
    absent = [program for program in programs if shutil.which(program) is None]
    if not absent:
        return None
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not on the PATH; {how}"


def require(method: Method) -> None:
    """InputError, with the method's own sentence, if it cannot run here."""
    reason = method.missing()
    if reason:
        raise InputError(f"{method.name}: {reason}.")
