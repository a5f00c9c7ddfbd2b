"""How a pair of images is compared at each stage: as was asked for, or as their contrasts turn out to want."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from stepwarp.config import DeformableSettings, Preset, SimilarityName
from stepwarp.geometry import Image, Transform
from stepwarp.losses.similarities.mi import MutualInformation
from stepwarp.losses.similarity import Similarity, find_similarity
from stepwarp.registrar.contrast import Contrasts, better_side, contrasts, mapped_pair
from stepwarp.registrar.masks import pooled
from stepwarp.registrar.pairs import ImagePair
from stepwarp.registrar.subject import ImagedSubject, voxel_edge
from stepwarp.workflow.subjects import PreparedImage

#: What compares images of different contrasts before, and after, their greys are mapped onto one.
_ACROSS, IN_THE_END = "mi", "lncc"
#: Contrasts are looked at on voxels of which the subject is so many across, about 2 mm in a brain: of larger ones too
#: many hold several tissues.
_CONTRAST_ACROSS = 88


@dataclass(frozen=True, eq=False)
class ComparedPair:
    """A pair of images of the two subjects. similarity: by which they are compared. chosen: whether the user said so.
    weight: what they count where the first pair counts 1. name: of a further pair, in sentences and records. seen: what
    their greys have to do with each other; None where nobody looked."""

    fixed: PreparedImage
    moving: PreparedImage
    similarity: SimilarityName
    chosen: bool
    weight: float = 1.0
    name: str = ""
    seen: Contrasts | None = None

    @property
    def multimodal(self) -> bool:
        return find_similarity(self.similarity).multimodal

    @property
    def mapped(self) -> bool:
        """Whether they are of different contrasts, and greys are to be mapped."""
        return self.seen is not None and not self.seen.alike

    @property
    def doubted(self) -> bool:
        """Whether they may be of different contrasts."""
        return self.multimodal if self.seen is None else not self.seen.surely_alike

    def to(self, device: torch.device) -> ComparedPair:
        return replace(self, fixed=self.fixed.to(device), moving=self.moving.to(device))

    def looked_at(self, transform: Transform) -> ComparedPair:
        """The pair with what its greys have to do with each other under a transform that about aligns them, and what
        follows for the similarity, unless that was chosen."""
        if self.chosen or self.multimodal:
            return self
        (f, f_mask), (m, m_mask) = (_coarse(each) for each in (self.fixed, self.moving))
        seen = contrasts(f, m, transform, f_mask, m_mask)
        return replace(self, seen=seen, similarity=self.similarity if seen.alike else _ACROSS)

    def linear(self, recipe: Preset) -> ImagePair:
        """As the linear stage compares them: by the counterpart of the deformable stage's similarity."""
        across = recipe.affine.multimodal or self.multimodal
        return self._by(MutualInformation() if across else self._similarity(recipe.deformable))

    def deformable(self, settings: DeformableSettings) -> ImagePair:
        """As the deformable stage does."""
        return self._by(self._similarity(settings))

    def in_one_contrast(self, transform: Transform, settings: DeformableSettings) -> ImagePair:
        """As windows compare them, once their greys are mapped onto one contrast, as those that meet under a transform
        tell: that sees more exactly than mutual information."""
        (f, f_mask), (m, m_mask) = (_coarse(each) for each in (self.fixed, self.moving))
        seen = contrasts(f, m, transform, f_mask, m_mask)
        side = better_side(seen, f, m, transform, f_mask, m_mask)
        alike = mapped_pair(seen, side, self.fixed.scaled, self.moving.scaled)
        return replace(self._by(find_similarity(IN_THE_END).of(settings)), fixed=alike.fixed, moving=alike.moving)

    def said(self, deformed: bool) -> str:
        """For the verdict, how images of different contrasts were compared."""
        assert self.seen is not None
        explained = max(self.seen.of_moving, self.seen.of_fixed)
        text = f"{self.name}: " if self.name else ""
        text += (
            f"the images were taken for different contrasts: a rising line explains {max(self.seen.line, 0):.0%} of "
            f"the variance of one and a curve {explained:.0%}; they were compared by mutual information"
        )
        return f"{text}, and then by local correlation of greys mapped onto one contrast" if deformed else text

    def as_dict(self) -> dict[str, Any]:
        """For a record, as it was compared."""
        seen = None if self.seen is None else self.seen.as_dict()
        return {"similarity": self.similarity, "weight": self.weight, "contrast": seen}

    def _similarity(self, settings: DeformableSettings) -> Similarity:
        return find_similarity(self.similarity).of(settings)

    def _by(self, similarity: Similarity) -> ImagePair:
        fixed, moving = self.fixed, self.moving
        return ImagePair(fixed.scaled, moving.scaled, similarity, self.weight, fixed.mask, moving.mask)


def _coarse(image: PreparedImage) -> tuple[Image, Image | None]:
    """An image and its mask, on the voxels on which their contrasts are looked at."""
    subject = ImagedSubject(image.scaled, image.mask)
    edge = voxel_edge(subject.size, _CONTRAST_ACROSS, float(image.scaled.grid.spacing.min()))
    factors = subject.factors(edge)
    values, trusted = pooled(image.scaled.data, None if image.mask is None else image.mask.data, factors)
    grid = image.scaled.grid.coarser(factors)
    return Image(values[0, 0], grid), None if trusted is None else Image(trusted[0, 0], grid)
