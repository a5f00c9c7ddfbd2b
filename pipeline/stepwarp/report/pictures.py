"""Arrays as pictures inside the page: intensity matching, colour scales, and JPEG or PNG as data URIs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np

from stepwarp.geometry.magnitude import magnitude
from stepwarp.report.views import thinning

#: The robust window of the fixed image, and the levels at which the moving image's intensities are matched to it.
LEVELS = np.array([0.5, 5, 15, 30, 50, 70, 85, 95, 99.5])

#: Colours of the diverging scale (below, middle, above), of folds, and of what is not measured. The page's CSS has none
#: of its own for these, so that a picture and its legend cannot disagree.
BELOW, MIDDLE, ABOVE, FOLD, OUTSIDE = (74, 158, 255), (24, 27, 33), (255, 158, 61), (255, 0, 200), (12, 14, 17)

#: The Jacobian's scale reaches from 1/4 to 4 everywhere, so that pages can be compared; differences reach half of the
#: intensity window.
LOG2_LIMIT, DIFFERENCE_LIMIT = 2.0, 0.5

#: Longest side of a picture in pixels: larger slices are shrunk.
LONGEST = 320


class Tone:
    """A monotone map of an image's intensities to the 0..1 that all pictures share: its robust window becomes that."""

    def __init__(self, values: np.ndarray) -> None:
        self.unit = magnitude(values)
        sample = _thinned(values)
        self.quantiles = _quantiles(sample[_shown(sample)] / self.unit)
        low, high = self.quantiles[[0, -1]]
        self.targets = (self.quantiles - low) / max(high - low, np.finfo(float).tiny)

    def matched(self, own: np.ndarray, other: np.ndarray) -> Tone:
        """That of another image on the grid of this tone's own: its quantiles become those of the own one, so that the
        two can be subtracted and flickered. As far as both show something: a brain beside a whole head is as bright as
        the brain in it."""
        tone = Tone(other)
        fixed, moving = _thinned(own), _thinned(other)
        both = _shown(fixed) & _shown(moving)
        if both.any():
            tone.quantiles = _quantiles(moving[both] / tone.unit)
            tone.targets = self(_quantiles(fixed[both] / self.unit) * self.unit)
            tone.targets[0] = 0  # the darkest is black, as what lies around the subject
        else:
            tone.targets = self.targets
        return tone

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Intensities -> 0..1, float64; a value that is not a number becomes 0."""
        return np.interp(np.nan_to_num(values / self.unit), self.quantiles, self.targets)


def _thinned(values: np.ndarray) -> np.ndarray:
    return values[tuple(slice(None, None, s) for s in thinning(values.shape))]


def _shown(sample: np.ndarray) -> np.ndarray:
    return np.isfinite(sample) & (sample != 0)


def _quantiles(sample: np.ndarray) -> np.ndarray:
    quantiles = np.percentile(sample, LEVELS) if sample.size else np.zeros_like(LEVELS)
    if quantiles[0] == quantiles[-1]:  # one intensity, such as a mask's: its window starts at the background
        quantiles[0] = min(quantiles[0], 0)
    return quantiles


def grey_strip(tiles: Sequence[np.ndarray]) -> str:
    """Slices (rows, columns) in 0..1, one below the other, as the data URI of one JPEG."""
    from PIL import Image

    pictures = [Image.fromarray((tile * 255).astype(np.uint8)) for tile in tiles]
    for picture in pictures:
        picture.thumbnail((LONGEST, LONGEST))
    return _data_uri(np.vstack([np.asarray(picture) for picture in pictures]), "JPEG", quality=82)


def diverging(values: np.ndarray, limit: float) -> np.ndarray:
    """Colours (rows, columns, 3) uint8 of values on the diverging scale from -limit to limit."""
    position = np.clip(values / limit, -1, 1)
    channels = [np.interp(position, (-1, 0, 1), stops) for stops in zip(BELOW, MIDDLE, ABOVE, strict=True)]
    return np.stack(channels, -1).astype(np.uint8)


def jacobian_colours(determinant: np.ndarray) -> np.ndarray:
    """Colours (rows, columns, 3) uint8 of a determinant on a logarithmic scale; where it is not above 0 it folds."""
    folded = ~(determinant > 0)
    colours = diverging(np.log2(np.where(folded, 1, determinant)), LOG2_LIMIT)
    colours[folded] = FOLD
    return colours


def colour_picture(colours: np.ndarray) -> str:
    """Colours (rows, columns, 3) uint8 as the data URI of a PNG."""
    return _data_uri(colours, "PNG")


def css(colour: tuple[int, int, int]) -> str:
    """A colour as CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _data_uri(pixels: np.ndarray, kind: str, **options: int) -> str:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
