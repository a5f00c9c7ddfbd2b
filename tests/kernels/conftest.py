"""Noise, and a device that may be absent."""

from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    """shape, seed -> values without any structure in 0..1: the hardest to interpolate."""

    def make(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed))

    return make
