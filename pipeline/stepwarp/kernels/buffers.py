"""Memory that the caller gives for a result: the `out` of the primitives."""

from __future__ import annotations

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
