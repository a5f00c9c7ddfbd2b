"""The running mean of weights, which is steadier than the weights themselves."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class RunningMean:
    """An exponential mean of a module's weights over the iterations; `module` is a copy that holds them.

    decay: how much of the mean stays in each iteration. The first iterations count more: the mean forgets the untrained
    weights as fast as an ordinary mean of what came would. 0: no mean, the last weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay
        self.count = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after an iteration. Buffers are copied."""
        decay = min(self.decay, self.count / (self.count + 10))
        self.count += 1
        ours: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for kept, new in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(new)
