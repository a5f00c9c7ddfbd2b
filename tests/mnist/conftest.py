import pytest
import torch

from stepwarp.mnist.config import Scale, Settings
from stepwarp.mnist.data import SIDE, Digits, Mnist


def drawn(count: int, seed: int) -> Digits:
    """Ten classes of strokes, each at a slope of its own and shifted at random: enough like digits to be registered."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(*[torch.arange(SIDE).float() - 13.5] * 2, indexing="ij")
    labels = torch.arange(count) % 10
    angles = labels * 0.3 + 0.1 * torch.randn(count, generator=generator)
    shifts = 2 * torch.randn(count, generator=generator)
    across = rows * angles.cos()[:, None, None] + columns * angles.sin()[:, None, None] - shifts[:, None, None]
    along = columns * angles.cos()[:, None, None] - rows * angles.sin()[:, None, None]
    images = (-(across**2) / 4).exp() * (along.abs() < 9)
    return Digits(images[:, None], labels, "strokes")


@pytest.fixture(scope="session")
def digits() -> Mnist:
    return Mnist(drawn(400, 0), drawn(200, 1))


@pytest.fixture(scope="session")
def settings() -> Settings:
    """A study of seconds."""
    scale = Scale(seeds=2, pairs=8, share=1, evaluations=6, examples=128, variations=True)
    return Settings.model_validate(
        {
            "steps": 3,
            "hidden": (8,),
            "training": {"batch": 8, "iterations": 12, "optimiser": {"lr": 1e-2, "warm_up": 0, "ema": 0.5}},
            "sensitivity": {"half": {"iterations": 11}},
            "stability": {"constant": {"constant": True}},
            "later": 2,
            "full": scale.model_dump(),
            "quick": {**scale.model_dump(), "seeds": 1, "variations": False},
        }
    )
