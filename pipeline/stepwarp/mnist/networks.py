"""The networks that stand beside the original one: a control that is the same everywhere, and the judge of digits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwarp.networks.layers import exactly, zeroed


class Equivariant(nn.Module):
    """Two images (B, 1, *shape) -> a displacement (B, 2, *shape); zeros before training.

    Convolutions whose reach grows, without pooling: where both images are shifted, so is the displacement, as long as
    nothing but black crosses the border. A network that generalises for no other reason is what this one is."""

    def __init__(self, channels: int = 8, dilations: tuple[int, ...] = (1, 2, 4, 8)) -> None:
        super().__init__()
        inputs = [2, *[channels] * len(dilations)]
        self.hidden = nn.ModuleList(
            nn.Conv2d(n, channels, 3, padding=d, dilation=d) for n, d in zip(inputs, dilations, strict=False)
        )
        self.last = zeroed(nn.Conv2d(channels, 2, 3, padding=1))

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        x = torch.cat([fixed, moving], 1)
        for layer in self.hidden:
            x = F.leaky_relu(layer(x), 0.2)
        return exactly(self.last, x)


class Classifier(nn.Module):
    """Digits (B, 1, 28, 28) -> the logarithm of the probability of each of ten, (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 49, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).log_softmax(1)
