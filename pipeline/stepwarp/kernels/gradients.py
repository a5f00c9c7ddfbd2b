"""A value and its derivatives, without a trace in what they were computed from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def value_and_gradients(function: Callable[..., Tensor], *given: Tensor) -> tuple[Tensor, ...]:
    """A function's value, a tensor of no axes, and its derivatives with respect to each tensor given, also where
    gradients are switched off."""
    given = tuple(each.detach().requires_grad_() for each in given)
    with torch.enable_grad():
        value = function(*given)
        return value.detach(), *torch.autograd.grad(value, given)
