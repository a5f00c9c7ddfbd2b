"""Smooth random images in two and three dimensions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

SHAPES = {"2D": (33, 28), "3D": (17, 21, 19)}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return SHAPES[request.param]


@pytest.fixture
def image() -> Callable[..., torch.Tensor]:
    """shape, seed, sigma -> (1, 1, *shape) float32 of smooth structure that fills 0.05..0.95."""

    def make(shape: tuple[int, ...], seed: int = 0, sigma: float = 1.5) -> torch.Tensor:
        values = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
        values = 0.05 + 0.9 * (values - values.min()) / np.ptp(values)
        return torch.tensor(values, dtype=torch.float32)[None, None]

    return make


@pytest.fixture
def mask() -> Callable[..., torch.Tensor]:
    """shape -> weights (1, 1, *shape): 0 in a third of the voxels, fractions at the edge, 1 elsewhere."""

    def make(shape: tuple[int, ...]) -> torch.Tensor:
        ramp = torch.linspace(-1, 2, shape[0]).clamp(0, 1)
        return ramp.view(1, 1, -1, *[1] * (len(shape) - 1)).expand(1, 1, *shape).contiguous()

    return make
