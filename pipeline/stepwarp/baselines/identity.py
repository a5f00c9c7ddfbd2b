"""Nothing is done, the headers are believed: the floor of every table."""

from __future__ import annotations

from dataclasses import dataclass

from stepwarp.baselines._method import Outcome
from stepwarp.geometry import Affine, Image


@dataclass(frozen=True)
class Identity:
    """The images as their headers place them."""

    name: str = "identity"
    title: str = "nothing (the headers)"

    def missing(self) -> None:
        return None

    def __call__(self, fixed: Image, moving: Image, *, threads: int, seed: int) -> Outcome:
        identity = Affine.identity(fixed.grid.ndim)
        return Outcome(identity, identity, {"command": "x -> x", "versions": {}})


METHODS = (Identity(),)
