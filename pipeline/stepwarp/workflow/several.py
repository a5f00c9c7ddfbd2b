"""Several pairs of images of the same two subjects: as they were given, and read beside the first pair."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepwarp import files
from stepwarp.errors import InputError
from stepwarp.geometry import Image
from stepwarp.geometry.grid import float64
from stepwarp.kernels import sampling
from stepwarp.layout import FURTHER_MOVED
from stepwarp.options import RegisterOptions
from stepwarp.printable import counted
from stepwarp.registrar.subject import ImagedSubject
from stepwarp.workflow.compared import ComparedPair
from stepwarp.workflow.subjects import PreparedImage, Source, prepare

_MOST = 1 + len(FURTHER_MOVED)
#: Of two images of one subject, of what one of them shows, the share that must lie where the other one shows something:
#: a slab does so wholly, and a head around a stripped brain.
_LEAST_TOGETHER = 0.5


def paired(fixed: Any, moving: Any, options: RegisterOptions) -> list[tuple[Source, Source]]:
    """What was given as fixed and as moving images, as pairs.

    Raises InputError for more of one than of the other, for more than there are names of files for, for a pair of one
    and the same image beside others, and for options that are about more or fewer pairs."""
    ours, theirs = files.each_of(fixed), files.each_of(moving)
    if len(ours) != len(theirs) or not ours:
        raise InputError(
            f"{counted(len(ours), 'fixed image')} and {counted(len(theirs), 'moving image')} do not pair up. Give one "
            "of each for every contrast, in the same order."
        )
    if len(ours) > _MOST:
        raise InputError(f"{len(ours)} pairs of images are more than can be registered at once. Give {_MOST} at most.")
    pairs = list(zip(ours, theirs, strict=True))
    for one, other in pairs if len(pairs) > 1 else ():
        if _is_same(one, other):
            name = one if isinstance(one, str | Path) else "an image in hand"
            raise InputError(
                f"{name}: is the fixed and the moving image of one pair, which says that nothing moves. The first "
                "fixed image goes with the first moving one, the second with the second."
            )
    options.check_pairs(len(pairs))
    return pairs


def read_further(
    pairs: Sequence[tuple[Source, Source]], first: tuple[PreparedImage, PreparedImage], trust: files.TrustRules
) -> list[tuple[PreparedImage, PreparedImage]]:
    """Further pairs, read and scaled.

    Raises InputError as `prepare`, and for an image that does not lie on the first one of its subject."""
    found = []
    for n, pair in enumerate(pairs, 2):
        roles = (f"fixed {n}", f"moving {n}")
        fixed, moving = (prepare(source, None, trust, role=role) for source, role in zip(pair, roles, strict=True))
        for image, beside in zip((fixed, moving), first, strict=True):
            _require_together(image.scaled, beside.scaled)
        found.append((fixed, moving))
    return found


def compared_as_asked(
    pairs: Sequence[tuple[PreparedImage, PreparedImage]],
    first: tuple[PreparedImage, PreparedImage],
    options: RegisterOptions,
) -> tuple[ComparedPair, ...]:
    """Further pairs with the masks of the first images, and as the options say that they are compared."""
    preset = options.changed_preset.deformable.similarity
    further = []
    for n, pair in enumerate(pairs, 1):
        fixed, moving = (_masked(image, beside.mask) for image, beside in zip(pair, first, strict=True))
        asked = options.similarity_of(n)
        similarity = preset if asked == "auto" else asked
        weight = options.weight_of(n) / options.weight_of(0)
        further.append(ComparedPair(fixed, moving, similarity, asked != "auto", weight, f"pair {n + 1}"))
    return tuple(further)


def _is_same(one: Source, other: Source) -> bool:
    if isinstance(one, str | Path) and isinstance(other, str | Path):
        return os.path.realpath(one) == os.path.realpath(other)
    return one is other


def _require_together(image: Image, first: Image) -> None:
    """InputError for an image that does not lie on the first one of the same subject."""
    one, other = ImagedSubject(image), ImagedSubject(first)
    ours, theirs = one.outline(), other.outline()
    together = max(_inside(ours, other), _inside(theirs, one))
    if together < _LEAST_TOGETHER:
        away = float(np.linalg.norm(ours.mean(0) - theirs.mean(0)))
        raise InputError(
            f"{image.name}: does not lie on {first.name}, an image of the same subject: {together:.0%} of what one "
            f"shows lies where the other one shows something, their middles {away:.3g} mm apart. Bring it there first "
            "(register --transform rigid --affine-only), or correct its header."
        )


def _inside(points: np.ndarray, subject: ImagedSubject) -> float:
    """The share of world points (N, D) in the box around what an image shows."""
    index = subject.grid.index(points)
    return float(((index >= subject.low - 0.5) & (index <= subject.high - 0.5)).all(1).mean())


def _masked(image: PreparedImage, mask: Image | None) -> PreparedImage:
    """The image with the mask of another one of the same subject; beyond its grid the mask goes on as it ends.

    Raises InputError where that leaves nothing of it."""
    if mask is None:
        return image
    grid = image.scaled.grid
    still = torch.zeros(1, grid.ndim, *grid.shape)
    to_index = float64(grid.index_map_to(mask.grid))
    data = sampling.warp(mask.data[None, None], still, to_index, "nearest", outside="border")[0, 0]
    if not data.any():
        raise InputError(f"{image.image.name}: the mask {mask.name} leaves nothing of it.")
    return image.masked(Image(data, grid, mask.name))
