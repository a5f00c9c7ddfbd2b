"""A step whose network is shown what an optimiser would do: learnt descent instead of blind prediction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepwarp.geometry import DisplacementField
from stepwarp.kernels import sampling, smoothing
from stepwarp.kernels.precision import in_full_precision
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.registrar.steps.images import Images
from stepwarp.registrar.steps.step import Step

#: Forces, in units where strong edges far from their match have about 2, are limited smoothly to this length.
_LONGEST_FORCE = 2.0
#: The share of the plain smoothed force in the first step of an untrained network.
_FIRST_GAIN = 0.5


class Guided(Step):
    """Steepest descent on the local correlation, corrected by a network that sees images and forces.

    The forces are the directions in which the correlation rises: of the moving image's values along its own gradient,
    and of the fixed image's likewise (as in symmetric demons). Of an untrained network, whose output is 0, the step is
    the smoothed force times a learnt gain, which is one iteration of direct optimisation; what training adds is what a
    gradient does not know. Where the images match the forces vanish. Further channels, as `Segmented` adds them, have
    forces too, down the gradient of their squared difference; the network sees the sum. After RIIR (Zhang et al. 2024)
    and GraDIRN (Qiu et al. 2022), whose networks are given the gradient of the similarity too.

    net: of 1 + D channels per image, the image and its force, to D channels in voxels. radius: of the correlation's
    windows. smooth_force, smooth_step: Gaussian sigmas in voxels of the plain force and of the whole step. No gradient
    is taken through the forces: as inputs they are given."""

    def __init__(self, net: nn.Module, radius: int = 2, smooth_force: float = 1.7, smooth_step: float = 1.0) -> None:
        super().__init__()
        self.net = net
        self.gain = nn.Parameter(torch.tensor(_FIRST_GAIN))
        self.similarity = LNCC(radius)
        self.smooth_force = smooth_force
        self.smooth_step = smooth_step

    def forward(self, fixed: Images, moving: Images) -> DisplacementField:
        if fixed.grid != moving.grid:
            raise ValueError(f"a step needs both images on one grid, not on {fixed.grid} and {moving.grid}")
        of_fixed, of_moving = forces(self.similarity, fixed.data, moving.data)
        found = self.net(torch.cat([fixed.data[:, :1], of_fixed], 1), torch.cat([moving.data[:, :1], of_moving], 1))
        with in_full_precision(found):
            step = found.float() + self.gain * smoothing.gaussian(of_moving, self.smooth_force)
            return DisplacementField(smoothing.gaussian(step, self.smooth_step), fixed.grid)

    @property
    def title(self) -> str:
        return f"Guided {type(self.net).__name__}"


@torch.no_grad()
def forces(similarity: LNCC, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """Where the correlation of (B, C, *grid) images rises, (B, D, *grid) each: along the fixed image's gradient, and,
    what a step is composed of, along the moving image's. Per voxel, so without the size of the images in it.

    Of the first channel the correlation, of all others the negative squared difference."""
    with in_full_precision(fixed):
        fixed, moving = fixed.float(), moving.float()
        image, *others = (
            tuple(each.contiguous() for each in pair)
            for pair in zip(fixed.split(1, 1), moving.split(1, 1), strict=True)
        )
        _, to_fixed, to_moving = similarity.forces(*image)
        of_fixed, of_moving = image[0].numel() * to_fixed, -image[1].numel() * to_moving
        for a, b in others:
            difference = 2 * (a - b)
            of_fixed += sampling.scaled_gradient(difference, a)
            of_moving += sampling.scaled_gradient(difference, b)
        return _limited(of_fixed), _limited(of_moving)


def _limited(force: Tensor) -> Tensor:
    squared = force.square().sum(1, keepdim=True)
    return force / (1 + squared / _LONGEST_FORCE**2).sqrt()
