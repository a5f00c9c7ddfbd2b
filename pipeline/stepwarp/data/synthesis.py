"""Images made from label maps: a network that never sees a contrast twice learns shapes instead of contrasts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from stepwarp.data.scans import Labelled
from stepwarp.data.settings import SynthesisSettings
from stepwarp.errors import InputError
from stepwarp.geometry import Image, LabelMap
from stepwarp.kernels.smoothing import gaussian

#: Of the voxels that are painted, this share lies below 1 after scaling; nothing exceeds the second number.
_BRIGHT, _BRIGHTEST = 0.995, 1.2

#: The other side of FreeSurfer's labels, left -> right, as in aseg and in SynthSeg's training maps.
_LEFT_TO_RIGHT = {2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54} | {
    25: 57, 26: 58, 28: 60, 30: 62, 136: 163, 137: 164
}  # fmt: skip
FREESURFER_PARTNERS = _LEFT_TO_RIGHT | {right: left for left, right in _LEFT_TO_RIGHT.items()}
#: FreeSurfer's labels of brain and ventricles: without the fluid around the brain, vessels, nerves and what is skull.
FREESURFER_BRAIN = tuple(sorted({*FREESURFER_PARTNERS, 14, 15, 16, 72, 85, 77} - {30, 62}))
#: Roughly how bright T1 shows them: white matter, cortex, deep grey matter, fluid.
_T1 = {1.0: (2, 7, 16, 28, 41, 46, 60, 85), 0.65: (3, 8, 42, 47), 0.2: (4, 5, 14, 15, 24, 43, 44)}

#: Label -> mean grey and standard deviation.
Contrast = Mapping[int, tuple[float, float]]


class Synthesis:
    """Paints label maps as `SynthesisSettings` say. partners: label -> label of the other side, painted alike."""

    def __init__(self, settings: SynthesisSettings, partners: Mapping[int, int] | None = None) -> None:
        self.settings = settings
        self.keep = frozenset(settings.keep)
        self.partners = dict(partners or {})

    def chosen(self, rng: np.random.Generator) -> bool:
        """Whether the next pair is painted, or shows its images."""
        return bool(rng.random() < self.settings.share)

    def paint_pair(self, pair: Sequence[Labelled], rng: np.random.Generator) -> list[Tensor]:
        """Images (1, 1, *shape) float32 of two label maps, in two random contrasts, or one for a share of pairs."""
        ids = sorted({label for labelled in pair for label in labelled.ids.tolist()})
        first, second = self._contrast(ids, rng), self._contrast(ids, rng)
        same = rng.random() < self.settings.same_contrast
        return [self._paint(pair[0], first, rng), self._paint(pair[1], first if same else second, rng)]

    def _paint(self, labelled: Labelled, contrast: Contrast, rng: np.random.Generator) -> Tensor:
        """Scaled so that bright tissue is 1. Raises InputError where no label is painted."""
        shape = labelled.index.shape
        table = torch.tensor([contrast[label] for label in labelled.ids.tolist()])
        greys, deviations = (column[labelled.index.int()] for column in table.T)
        texture = torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
        return _scaled(gaussian(greys + deviations * texture, rng.uniform(*self.settings.blur_voxels)).clamp_min(0))

    def _contrast(self, labels: list[int], rng: np.random.Generator) -> Contrast:
        bright = rng.random() < self.settings.bright_background
        drawn = self._greys(rng)
        background = drawn if bright else (0.0, 0.0)
        contrast: dict[int, tuple[float, float]] = {}
        for label in labels:
            drawn = self._greys(rng)
            painted = label != 0 and (not self.keep or label in self.keep)
            contrast[label] = contrast.get(self.partners.get(label, label), drawn) if painted else background
        return contrast

    def _greys(self, rng: np.random.Generator) -> tuple[float, float]:
        return float(rng.uniform(*self.settings.greys)), float(rng.uniform(*self.settings.texture))


def like_t1(labels: LabelMap, keep: Iterable[int] = FREESURFER_BRAIN) -> Image:
    """A plain T1 of FreeSurfer labels, by which the affine stage can place a label map that has no image."""
    greys = {label: grey for grey, ids in _T1.items() for label in ids}
    ids, index = torch.unique(labels.data, return_inverse=True)
    kept = set(keep)
    table = torch.tensor([greys.get(label, 0.75) if label in kept else 0.0 for label in ids.tolist()])
    if not table.any():
        raise InputError(f"{labels.name}: holds none of FreeSurfer's brain labels. Is it such a label map?")
    return Image(table[index], labels.grid, labels.name)


def _scaled(image: Tensor) -> Tensor:
    """Bright tissue at 1, as in the images that networks are given; the quantile is taken of every seventh voxel."""
    values = image.flatten()[::7]
    values = values[values > 0]
    if not len(values):
        raise InputError("no label of a label map is painted. Do the ids in synthesis.keep belong to these maps?")
    bright = values.kthvalue(max(1, round(_BRIGHT * len(values)))).values
    return (image / bright).clamp_(0, _BRIGHTEST)
