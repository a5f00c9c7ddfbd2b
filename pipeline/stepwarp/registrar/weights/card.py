"""What is to be known of a set of weights before it is used."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, FiniteFloat, JsonValue

from stepwarp.recipes import Strict

#: What tells whether a pair is like those of the training; measured on the network's grid, inside the fixed subject.
Expected = Literal["lncc_after_affine", "lncc_gain", "displacement_mm"]


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"a range goes from its lower to its upper end, not from {ends[0]} to {ends[1]}")
    return ends


Range = Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_ascending)]


class Card(Strict):
    """A model card.

    data: what it was trained on, and with which labels if any. training: the settings of the training. seconds: it
    took, on `machine`. metrics: measured on the validation pairs, by name. expects: the range over pairs like those of
    the training of the local correlation that the network is given and of what it adds to it, and of how far (mean,
    mm) it moves the subject: `stepwarp.register` says where a pair lies far outside."""

    name: str
    data: str
    licence: str
    labels_used: bool = False
    training: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int | None = None
    seconds: float | None = None
    machine: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    expects: dict[Expected, Range] = Field(default_factory=dict)
    notes: str = ""
