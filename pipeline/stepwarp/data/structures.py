"""Label maps as the classes of a network that segments: left and right are one structure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from stepwarp.data.augment import left_right_partners


def structures(names: Mapping[int, str], ignore: Collection[int] = ()) -> dict[int, int]:
    """Label -> class, counted from 1, of all labels but 0 and the ignored ones.

    What differs in its side alone looks the same, so a structure and its mirror image are one class: a network with few
    examples has twice as many."""
    partners = left_right_partners(names)
    kept = {label: min(label, partners.get(label, label)) for label in names if label != 0 and label not in ignore}
    numbers = {first: number for number, first in enumerate(sorted(set(kept.values())), 1)}
    return {label: numbers[first] for label, first in kept.items()}


def as_classes(labels: Tensor, classes: Mapping[int, int]) -> Tensor:
    """Labels, any integers, as classes, int64; 0 for labels without one."""
    known = torch.tensor([0, *sorted(classes)], device=labels.device)
    numbers = torch.tensor([0, *(classes[label] for label in sorted(classes))], device=labels.device)
    place = torch.searchsorted(known, labels.long().contiguous()).clamp_max(len(known) - 1)
    return torch.where(known[place] == labels, numbers[place], 0)
