"""Images made from label maps: a network that never sees a contrast twice learns shapes instead of contrasts.

They are made on the device where the label maps lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stepwarp.data.noise import white_noise
from stepwarp.data.scans import Labelled
from stepwarp.data.settings import SynthesisSettings
from stepwarp.errors import InputError
from stepwarp.geometry import Image, LabelMap
from stepwarp.kernels.sampling import average_pool
from stepwarp.kernels.smoothing import gaussian

#: Of the voxels that are painted, this share lies below 1 after scaling; nothing exceeds the second number.
_BRIGHT, _BRIGHTEST = 0.995, 1.2
#: The share of stripped images that keep their fringe.
_WITH_FRINGE = 0.6
#: A rough edge is where what is kept, smoothed by the first, falls below the second: the lower and upper ends of both.
_ROUGH = (0.8, 0.1), (2.5, 0.6)
#: How much brighter or darker than T1's a grey like T1's is: a standard deviation; and the range it is kept in.
_T1_VARIES, _T1_RANGE = 0.08, (0.01, 1.2)
#: T2 shows a grey g of T1 about as this less g.
_TURNED = 1.05

#: The other side of FreeSurfer's labels, left -> right, as in aseg and in SynthSeg's training maps.
_LEFT_TO_RIGHT = {2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54} | {
    25: 57, 26: 58, 28: 60, 30: 62, 136: 163, 137: 164
}  # fmt: skip
FREESURFER_PARTNERS = _LEFT_TO_RIGHT | {right: left for left, right in _LEFT_TO_RIGHT.items()}
#: FreeSurfer's labels of brain and ventricles: without the fluid around the brain, vessels, nerves and what is skull.
FREESURFER_BRAIN = tuple(sorted({*FREESURFER_PARTNERS, 14, 15, 16, 72, 85, 77} - {30, 62}))
#: Roughly how bright T1 shows them: white matter, cortex, fluid; and all else of the brain, deep grey matter.
_T1 = {1.0: (2, 7, 16, 28, 41, 46, 60, 85), 0.65: (3, 8, 42, 47), 0.2: (4, 5, 14, 15, 24, 43, 44)}
_T1_GREYS = {label: grey for grey, ids in _T1.items() for label in ids}
_T1_DEEP = 0.75


@dataclass(frozen=True)
class Contrast:
    """Mean grey and standard deviation of each label, and of the background."""

    labels: Mapping[int, tuple[float, float]]
    background: tuple[float, float]


class Synthesis:
    """Paints label maps as `SynthesisSettings` say. partners: label -> label of the other side, painted alike.

    detail: how many of the label maps' voxels along each axis are averaged into one of the image's."""

    def __init__(self, settings: SynthesisSettings, partners: Mapping[int, int] | None = None, detail: int = 1) -> None:
        self.settings = settings
        self.partners = dict(partners or {})
        self.detail = detail

    def chosen(self, rng: np.random.Generator) -> bool:
        """Whether the next pair is painted, or shows its images."""
        return bool(rng.random() < self.settings.share)

    def paint_pair(self, pair: Sequence[Labelled], rng: np.random.Generator) -> list[Tensor]:
        """Images (1, 1, *shape / detail) float32 of two label maps (1, 1, *shape), in two random contrasts, or one for
        a share of pairs."""
        ids = sorted({label for labelled in pair for label in labelled.ids.tolist()})
        first, second = self._contrast(ids, rng), self._contrast(ids, rng)
        same = rng.random() < self.settings.same_contrast
        return [self._paint(pair[0], first, rng), self._paint(pair[1], first if same else second, rng)]

    def _paint(self, labelled: Labelled, contrast: Contrast, rng: np.random.Generator) -> Tensor:
        """Scaled so that bright tissue is 1. Raises InputError where no label is painted."""
        index = labelled.index.int()
        ids = labelled.ids.tolist()
        greys = torch.tensor([contrast.background if label == 0 else contrast.labels[label] for label in ids])
        mean, deviation = greys.to(index.device).T
        image, spread = mean[index], deviation[index]
        kept = self._kept(ids, rng)
        if kept:
            shown = self._shown(torch.tensor([label in kept for label in ids]).to(index.device)[index], rng)
            image = torch.where(shown, image, contrast.background[0])
            spread = torch.where(shown, spread, contrast.background[1])
        if not any(label != 0 and (not kept or label in kept) for label in ids):
            raise InputError("no label of a label map is painted. Do the ids in synthesis.keep belong to these maps?")
        image = image + spread * white_noise(tuple(index.shape), int(rng.integers(2**63)), index.device)
        image = gaussian(image, rng.uniform(*self.settings.blur_voxels)).clamp_min(0)
        return _scaled(average_pool(image, (self.detail,) * 3))

    def _kept(self, ids: Iterable[int], rng: np.random.Generator) -> set[int]:
        """The labels of a stripped image; none where all are painted."""
        strips, with_fringe = rng.random() < self.settings.keep_share, rng.random() < _WITH_FRINGE
        if not self.settings.keep or not strips:
            return set()
        return {*self.settings.keep, *(self.settings.fringe if with_fringe else ())}

    def _shown(self, kept: Tensor, rng: np.random.Generator) -> Tensor:
        """Where the labels that are kept are seen, or about there."""
        rough, voxels, share = rng.random() < self.settings.rough, *map(rng.uniform, *_ROUGH)
        return gaussian(kept.float(), voxels) > share if rough else kept

    def _contrast(self, labels: list[int], rng: np.random.Generator) -> Contrast:
        settings = self.settings
        bright = rng.random() < settings.bright_background
        drawn = float(rng.uniform(*settings.background)), float(rng.uniform(*settings.texture))
        kind = rng.random()
        like_t1, like_t2 = kind < settings.t1_like, settings.t1_like <= kind < settings.t1_like + settings.t2_like
        greys: dict[int, tuple[float, float]] = {}
        for label in labels:
            grey, deviation, varies = rng.uniform(*settings.greys), rng.uniform(*settings.texture), rng.normal()
            t1 = _t1_grey(label)
            if t1 is not None and (like_t1 or like_t2):
                grey = np.clip((_TURNED - t1 if like_t2 else t1) + _T1_VARIES * varies, *_T1_RANGE)
            greys[label] = greys.get(self.partners.get(label, label), (float(grey), float(deviation)))
        return Contrast(greys, drawn if bright else (0.0, 0.0))


def like_t1(labels: LabelMap, keep: Iterable[int] = FREESURFER_BRAIN) -> Image:
    """A plain T1 of FreeSurfer labels, by which the affine stage can place a label map that has no image."""
    ids, index = torch.unique(labels.data, return_inverse=True)
    kept = set(keep)
    table = torch.tensor([_T1_GREYS.get(label, _T1_DEEP) if label in kept else 0.0 for label in ids.tolist()])
    if not table.any():
        raise InputError(f"{labels.name}: holds none of FreeSurfer's brain labels. Is it such a label map?")
    return Image(table[index], labels.grid, labels.name)


def _t1_grey(label: int) -> float | None:
    """About how bright T1 shows one of FreeSurfer's labels; None for what is not of a brain."""
    return _T1_GREYS.get(label, _T1_DEEP if label in FREESURFER_BRAIN else None)


def _scaled(image: Tensor) -> Tensor:
    """Bright tissue at 1, as in the images that networks are given; the quantile is taken of every seventh voxel."""
    values = image.flatten()[::7].sort().values
    dark = (values <= 0).sum()
    # Counted on the image's device: to ask a GPU how many there are would be to wait for it.
    place = dark + (_BRIGHT * (len(values) - dark)).round().long() - 1
    bright = values.gather(0, place.clamp(0, len(values) - 1)[None])
    return (image / bright.clamp_min(1e-6)).clamp_(0, _BRIGHTEST)
