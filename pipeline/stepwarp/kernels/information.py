"""How often the values of two images meet: what mutual information is computed from."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from stepwarp.kernels.backend import primitive
from stepwarp.kernels.buffers import into


@primitive("fixed", "moved", to=("fixed", "moved"))
def joint_histogram(
    fixed: Tensor, moved: Tensor, weight: Tensor | None, bins: int, *, out: Tensor | None = None
) -> Tensor:
    """Images (B, C, *grid) and weights of their shape -> the share of their voxels in each pair of bins, float64 (B,
    bins of the fixed, bins of the moved); NaN where nothing has weight.

    With linear Parzen windows: a value counts in the two bins between whose centres it lies. The bins' centres are
    spread from 0 to 1; values beyond count in the outermost ones. Values of 0 or less, as the background's, and of 1 or
    more have derivatives of 0."""
    low_f, part_f = _bin(fixed.flatten(1), bins)
    low_m, part_m = _bin(moved.flatten(1), bins)
    weight = None if weight is None else weight.flatten(1)
    batch, cells = len(fixed), bins * bins
    first = torch.arange(batch, device=fixed.device)[:, None] * cells
    joint = torch.zeros(batch * cells, device=fixed.device, dtype=torch.float64)
    for up_f, up_m in itertools.product((0, 1), repeat=2):
        share = (part_f if up_f else 1 - part_f) * (part_m if up_m else 1 - part_m)
        share = share if weight is None else share * weight
        where = first + (low_f + up_f) * bins + low_m + up_m
        joint = joint.index_add(0, where.flatten(), share.double().flatten())
    joint = joint.view(batch, bins, bins)
    return into(out, joint / joint.sum((1, 2), keepdim=True))


def _bin(values: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    # Versions of torch differ in what the derivative of clamp is at its limits.
    between = (values > 0) & (values < 1)
    position = torch.where(between, values, values.detach().clamp(0, 1)) * (bins - 1)
    low = position.detach().floor().clamp_max(bins - 2)
    return low.long(), position - low
