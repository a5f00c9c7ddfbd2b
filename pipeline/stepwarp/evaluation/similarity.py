"""How alike two images on one grid are, inside a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from stepwarp.geometry import Image
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.losses.similarities.mi import MutualInformation
from stepwarp.losses.similarities.ncc import NCC


def similarities(fixed: Image, moved: Image, inside: Tensor) -> dict[str, float]:
    """Correlation, local correlation (mean over windows) and shared information: the higher, the more alike.

    An image and itself have a correlation of 1. Their local correlation is below 1 where windows are flat (0.99 in
    brains, 0.5 in heads with air around), and they share 0.7 to 0.8 of their information, not 1: see the losses.
    fixed, moved: on one grid, intensities scaled to about 0..1. inside: bool, the grid's shape."""
    f, m, weight = fixed.data[None, None], moved.data[None, None], inside[None, None].float()
    values = f[:, :, inside], m[:, :, inside]
    with torch.no_grad():
        return {
            "ncc": round(1 - float(NCC()(*values)), 5),
            "lncc": round(1 - float(LNCC()(f, m, weight)), 5),
            "mutual_information": round(1 - float(MutualInformation()(*values)), 5),
        }
