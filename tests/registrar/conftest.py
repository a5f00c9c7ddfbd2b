"""A real brain, a second one made from it whose answer is known, and what turns and crops them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stepwarp.data.mni152 import Template, mni152
from stepwarp.geometry import Affine, Grid, Image, Transform
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.geometry.orientation import canonical
from stepwarp.workflow.demo import make_pair

#: Voxels of the 1 mm template that make one here, along each axis.
_POOLED = 3


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test here runs on one thread."""


@dataclass(frozen=True, eq=False)
class Known:
    """Two brains of 3 mm as the registrar takes them, and the true maps from one to the other and back."""

    fixed: Image
    moving: Image
    truth: Transform
    truth_inverse: Transform
    inside: torch.Tensor
    """bool, the fixed grid's shape: where the brain is."""

    def points(self, every: int = 20) -> np.ndarray:
        """World points (N, 3) of the fixed brain."""
        grid = self.fixed.grid
        return self.inside.nonzero()[::every].numpy() @ grid.linear.T + grid.affine[:3, 3]

    def error(self, transform: Transform) -> float:
        """The mean distance in mm to where the points of the brain belong."""
        points = self.points()
        return float(np.linalg.norm(transform(points) - self.truth(points), axis=1).mean())


@pytest.fixture(scope="session")
def template() -> Template:
    """MNI152 in voxels of 3 mm."""
    full = mni152()
    brain, *tissues = (image.coarser(_POOLED) for image in (full.brain, *full.tissues))
    mask = Image(full.mask.float(), full.brain.grid).coarser(_POOLED).data > 0.5
    return Template(brain, tuple(tissues), mask)


@pytest.fixture(scope="session")
def known(template: Template) -> Known:
    """The template beside a second brain as from another scanner."""
    pair = make_pair(template, 0)
    fixed, moving = scale_intensities(pair.fixed), scale_intensities(canonical(pair.moving))
    return Known(fixed, moving, pair.transform, pair.inverse, pair.mask)


@pytest.fixture(scope="session")
def moved_by(template: Template) -> Callable[[Affine], Known]:
    """affine -> the template beside itself, sent to another place by that affine."""
    fixed = scale_intensities(template.brain)

    def make(affine: Affine) -> Known:
        corners = affine(fixed.grid.corners())
        low, high = corners.min(0), corners.max(0)
        matrix = np.diag([3.0, 3.0, 3.0, 1.0])
        matrix[:3, 3] = low
        grid = Grid(tuple(np.ceil((high - low) / 3).astype(int) + 1), matrix)
        return Known(fixed, fixed.warp(affine.inverse(), grid), affine, affine.inverse(), template.mask)

    return make


@dataclass(frozen=True, eq=False)
class Quarters:
    """Two images of four patches, of which each went another way; masks that share one of them.

    truth: the patch's name -> (2,) mm from fixed to moving. masks: side -> which half it trusts. places: patch -> bool,
    the grid's shape: its middle. Both masks trust "low left" alone."""

    fixed: Image
    moving: Image
    masks: dict[str, Image]
    truth: dict[str, np.ndarray]
    places: dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def quarters() -> Quarters:
    size, edge = 48, 6
    grid = Grid.isotropic((2 * size, 2 * size))
    fixed, moving = torch.zeros(2, *grid.shape)
    truth, places = {}, {}
    noise = gaussian_filter(np.random.default_rng(0).random((4, size - 2 * edge, size - 2 * edge)), (0, 2, 2))
    for number, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        name = f"{('low', 'high')[i]} {('left', 'right')[j]}"
        truth[name] = np.array([3.0 - 6 * i, 2.0 - 4 * j])
        patch = 0.3 + torch.from_numpy((noise[number] - noise.min()) / np.ptp(noise)).float()
        for image, shift in ((fixed, (0, 0)), (moving, truth[name])):
            a, b = (size * n + edge + int(s) for n, s in zip((i, j), shift, strict=True))
            image[a : a + len(patch), b : b + len(patch)] = patch
        places[name] = torch.zeros(grid.shape, dtype=torch.bool)
        places[name][size * i + 16 : size * i + 32, size * j + 16 : size * j + 32] = True
    low, left = torch.zeros(2, *grid.shape)
    low[:size], left[:, :size] = 1, 1
    masks = {"fixed_mask": Image(low, grid), "moving_mask": Image(left, grid)}
    return Quarters(Image(fixed, grid), Image(moving, grid), masks, truth, places)
