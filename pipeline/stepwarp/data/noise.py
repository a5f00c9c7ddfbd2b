"""White noise that is the same on every device: each value is computed from its own number and a seed.

torch's generators draw other numbers on a GPU than on a processor; and to draw them on the processor and bring them
over would take longer than all else that is done to an image."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_ALL = 2**32 - 1
#: Multipliers of lowbias32; the second one as the negative number that is equal modulo 2^32, so that no product is too
#: large for 64 bits.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - 2**32


def white_noise(shape: tuple[int, ...], seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Values of the normal distribution of mean 0 and variance 1, float32, equal up to rounding on every device.

    seed: any that numpy takes. Two values each are made of two even ones (Box and Muller 1958)."""
    count = math.prod(shape)
    half = -(-count // 2)
    keys = np.random.SeedSequence(seed).generate_state(2).tolist()
    even = (hashed(torch.arange(2 * half, device=device), *keys).float() + 0.5) / 2**32
    length, angle = (-2 * even[:half].log()).sqrt(), 2 * math.pi * even[half:]
    return torch.cat([length * angle.cos(), length * angle.sin()])[:count].reshape(shape)


def hashed(numbers: Tensor, first: int = 0, second: int = 0) -> Tensor:
    """32 bits for each of the numbers (int64, 0 to 2^32 - 1), as int64: the hash lowbias32 (Wellons 2018), with a key
    of 32 bits mixed in before each multiplication."""
    bits = numbers ^ first
    bits ^= bits >> 16
    bits *= _FIRST
    bits &= _ALL
    bits ^= second
    bits ^= bits >> 15
    bits *= _SECOND
    bits &= _ALL
    return bits.bitwise_xor_(bits >> 16)
