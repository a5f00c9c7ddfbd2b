"""Segmenters in files: a network, the structures that it knows, and how those are in the heads it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, FiniteFloat, PositiveFloat, PositiveInt
from torch import Tensor

from stepwarp.errors import InputError
from stepwarp.geometry import Image
from stepwarp.networks.segmenter import Segmenter
from stepwarp.recipes import Strict
from stepwarp.registrar.weights import SHIPPED_SEGMENTERS, Card, weights_path
from stepwarp.registrar.weights.assemble import filled
from stepwarp.registrar.weights.card import Range
from stepwarp.registrar.weights.checkpoint import read_checkpoint, understood, write_checkpoint
from stepwarp.registrar.weights.registrar import in_half_where_fast

#: What is taken where nobody names another.
SHIPPED_SEGMENTER = "brain-any"


class KnownStructure(Strict):
    """A class of a segmenter, left and right together.

    id: in label maps that are written. brain: whether it is a part of it; else it is fluid around. millilitres: the
    least and the most in the heads of the training. centre: of mass in their mean head, RAS mm."""

    id: PositiveInt
    name: str
    brain: bool = True
    millilitres: Range
    centre: tuple[FiniteFloat, FiniteFloat, FiniteFloat]


class SegmenterHeader(Strict):
    """What a file of a segmenter says of itself.

    structures: of the classes from 1 on. channels, convolutions: as of `networks.segmenter.Segmenter`. mm: voxels of
    the images that it is given. box: how many of them along each axis it was trained on."""

    kind: Literal["segmenter"] = "segmenter"
    version: Literal[1] = 1
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    convolutions: PositiveInt
    mm: PositiveFloat
    box: tuple[PositiveInt, PositiveInt, PositiveInt]
    structures: Annotated[tuple[KnownStructure, ...], Field(min_length=1)]
    card: Card


@dataclass(frozen=True, eq=False)
class HeadSegmenter:
    """A segmenter ready to be used. network: image (1, 1, *grid) of voxels of `header.mm`, in RAS order and scaled by
    `scale_intensities`, -> logits of the background and of `header.structures`."""

    network: Segmenter
    header: SegmenterHeader

    @property
    def structures(self) -> tuple[KnownStructure, ...]:
        """Of the classes from 1 on."""
        return self.header.structures

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def probabilities(self, image: Image) -> Tensor:
        """Of each class at each voxel, (classes, *grid), single precision on the CPU, for an image as the network is
        given it."""
        each = torch.eye(self.network.classes, device=self.device)
        with in_half_where_fast(self.device):
            return self.network.expected(image.data[None, None].to(self.device), each)[0].cpu()


def save_segmenter(
    path: str | Path,
    state: Mapping[str, Tensor],
    structures: Sequence[KnownStructure],
    card: Card,
    *,
    channels: Sequence[int],
    convolutions: int,
    mm: float,
    box: tuple[int, int, int],
    overwrite: bool = False,
) -> None:
    """Write the `state_dict` of a `Segmenter` of 3 axes with what is to be known of it, atomically.

    Raises InputError for a state that belongs to another network, and OutputError as `atomic_path`."""
    path = Path(path)
    header = SegmenterHeader(
        channels=tuple(channels), convolutions=convolutions, mm=mm, box=box, structures=tuple(structures), card=card
    )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    _network(header, tensors, path)
    write_checkpoint(path, header, tensors, overwrite)


def load_segmenter(source: str | Path = SHIPPED_SEGMENTER, device: torch.device | str = "cpu") -> HeadSegmenter:
    """The segmenter in a file, or of the name of a shipped one, on a device.

    Raises InputError for a file that is damaged, or that holds no segmenter, or another than it says."""
    path = weights_path(source, SHIPPED_SEGMENTERS)
    said, state = read_checkpoint(path)
    if said.get("kind") != "segmenter":
        raise InputError(f"{path}: holds no segmenter. Those that come with stepwarp: {', '.join(SHIPPED_SEGMENTERS)}.")
    header = understood(said, SegmenterHeader, path)
    return HeadSegmenter(_network(header, state, path).to(device), header)


def _network(header: SegmenterHeader, state: Mapping[str, Tensor], path: Path) -> Segmenter:
    # On no device: nothing is allocated for a header that asks for more than the file holds.
    with torch.device("meta"):
        network = Segmenter(3, 1 + len(header.structures), header.channels, header.convolutions)
    return filled(network, state, path)
