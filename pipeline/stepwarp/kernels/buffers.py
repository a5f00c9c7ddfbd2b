"""Memory of results, the `out` of the primitives that the caller gives, and of what is nothing everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def into(out: Tensor | None, result: Tensor) -> Tensor:
    """The result without gaps; in `out`, if that is given."""
    if out is None:
        return result.contiguous()
    if result.requires_grad:
        raise ValueError("no gradient goes through `out`; leave it out, or compute under torch.no_grad")
    check(out, result.shape, result.dtype)
    return out.copy_(result)


def check(out: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """ValueError where `out` cannot hold a result of this shape and type."""
    if out.shape != torch.Size(shape) or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(
            f"`out` is {tuple(out.shape)}, {out.dtype}; the result is {tuple(shape)}, {dtype}, without gaps"
        )


def nothing(shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Zeros. On a processor they take no memory until they are written to, and most are only read."""
    if torch.device(device).type == "cpu" and dtype == torch.float32:
        return torch.from_numpy(np.zeros(tuple(shape), np.float32))
    return torch.zeros(tuple(shape), dtype=dtype, device=device)
