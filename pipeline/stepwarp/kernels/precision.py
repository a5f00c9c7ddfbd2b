"""Single precision that is single, for what becomes a position: whatever the caller, torch or mixed precision says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.backends import cuda, cudnn, mkldnn

#: How a setting is read and written, and what it is where nothing is left out. By themselves cuDNN's convolutions keep
#: 10 bits of a float32's 23 (TF32), and a displacement is off by a thousandth of its length; matrix products do so
#: where they are told to, and those of some processors keep 7. The older settings go first: they change the newer ones.
_Setting = tuple[Callable[[], Any], Callable[[Any], None], Any]
_SETTINGS: list[_Setting] = [
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (lambda: cudnn.allow_tf32, partial(setattr, cudnn, "allow_tf32"), False),
]
if hasattr(torch.backends, "fp32_precision"):  # since torch 2.9
    for _library, _kind in ((cudnn, "conv"), (cudnn, "rnn"), (cuda, "matmul"), (mkldnn, "conv"), (mkldnn, "matmul")):
        _its = getattr(_library, _kind), "fp32_precision"
        _SETTINGS.append((partial(getattr, *_its), partial(setattr, *_its), "ieee"))

#: Settings are the process's: the first to enter sets them, and the last to leave restores what was there before.
_lock = threading.Lock()
_inside = 0
_changed: list[tuple[Callable[[Any], None], Any]] = []


@contextmanager
def without_tf32() -> Iterator[None]:
    """Within it, convolutions and matrix products of float32 keep all its bits, on every thread. The caller's settings
    are as before when the last block ends that any thread is in."""
    global _inside
    with _lock:
        if not _inside:
            _changed[:] = _switched_off()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for write, before in _changed:
                    write(before)


@contextmanager
def in_full_precision(like: Tensor) -> Iterator[None]:
    """`without_tf32`, and outside mixed precision on the device of `like`: that is for convolutions, and half precision
    cannot tell the neighbours of voxel 300 apart."""
    with without_tf32(), torch.autocast(like.device.type, enabled=False):
        yield


def _switched_off() -> list[tuple[Callable[[Any], None], Any]]:
    """Switches off what is on; how to restore it."""
    found: list[tuple[_Setting, Any]] = []
    for setting in _SETTINGS:
        with suppress(RuntimeError):  # an older one, where the caller has used the newer ones: torch does not tell it
            found.append((setting, setting[0]()))
    on = [(setting, before) for setting, before in found if before not in (setting[2], "none")]
    for (_, write, exact), _ in on:
        write(exact)
    return [(write, before) for (_, write, _), before in on]
