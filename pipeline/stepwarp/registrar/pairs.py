"""A pair of images of the two subjects of a registration, of which there may be several, and how it is compared."""

from __future__ import annotations

from dataclasses import dataclass

from stepwarp.geometry import Image
from stepwarp.losses.similarity import Similarity
from stepwarp.registrar.subject import ImagedSubject


@dataclass(frozen=True, eq=False)
class ImagePair:
    """An image of each subject, such as their T2 beside their T1.

    fixed, moving: each in the world of all images of its subject, on a grid of its own; intensities of about 0 to 1,
    background 0. similarity: by which they are compared. weight: what they count where the first pair counts 1. Masks:
    1 where an image may be trusted, on its grid."""

    fixed: Image
    moving: Image
    similarity: Similarity
    weight: float = 1.0
    fixed_mask: Image | None = None
    moving_mask: Image | None = None

    def subjects(self) -> tuple[ImagedSubject, ImagedSubject]:
        return ImagedSubject(self.fixed, self.fixed_mask), ImagedSubject(self.moving, self.moving_mask)
