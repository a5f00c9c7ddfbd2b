"""How alike two images on one grid are, inside a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from stepwarp.geometry import Image
from stepwarp.losses.similarity import LNCC, NCC, MutualInformation


def similarities(fixed: Image, moved: Image, inside: Tensor) -> dict[str, float]:
    """Correlation, local correlation (mean over windows) and shared information; 1 is perfect for each.

    fixed, moved: on one grid, intensities scaled to about 0..1. inside: bool, the grid's shape."""
    f, m, weight = fixed.data[None, None], moved.data[None, None], inside[None, None].float()
    values = f[:, :, inside], m[:, :, inside]
    with torch.no_grad():
        return {
            "ncc": round(1 - float(NCC()(*values)), 5),
            "lncc": round(1 - LNCC().value_and_gradients(f, m, weight)[0], 5),
            "mutual_information": round(1 - float(MutualInformation()(*values)), 5),
        }
