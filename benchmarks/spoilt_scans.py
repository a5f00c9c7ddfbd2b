"""Ways of spoiling a scan of a brain so that it cannot be registered, or should not be, with its labels spoilt alike.

Each takes a skull-stripped scan and its labels on one grid, and gives both back; the labels say where each region is
in the spoilt image, all 0 where nothing of it is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from stepwarp.geometry import Grid, Image, LabelMap

Scan = tuple[Image, LabelMap]
#: Labels of the cerebellum and of the brain stem beside it.
_CEREBELLUM = (35, 38, 39, 40, 41, 71, 72, 73)


def mirrored(image: Image, labels: LabelMap) -> Scan:
    """Left and right exchanged, the header as it was: the anatomy of nobody, and very nearly that of everybody."""
    return _like(image, image.data.flip(0)), _like(labels, labels.data.flip(0))


def turned(image: Image, labels: LabelMap) -> Scan:
    """Turned by 90 degrees about the axis from left to right, the header as it was."""

    def turn(data: torch.Tensor) -> torch.Tensor:
        return torch.rot90(data, 1, (1, 2)).contiguous()

    grid = Grid(tuple(turn(image.data).shape), image.grid.affine)
    return Image(turn(image.data), grid, image.name), LabelMap(turn(labels.data), grid, labels.name)


def inverted(image: Image, labels: LabelMap) -> Scan:
    """Bright tissue dark and dark tissue bright; the background stays."""
    brain = image.data > 0
    return _like(image, torch.where(brain, 1.05 * image.data.max() - image.data, 0)), labels


def inverted_and_turned(image: Image, labels: LabelMap) -> Scan:
    """Both at once: correlation does not see which way it lies."""
    return turned(*inverted(image, labels))


def half_empty(image: Image, labels: LabelMap) -> Scan:
    """One half set to 0, as from a scan that broke off."""
    kept = torch.zeros_like(image.data)
    kept[: _middle(image, 0)] = 1
    return _like(image, image.data * kept), _like(labels, labels.data * kept.to(labels.data.dtype))


def cut_off(image: Image, labels: LabelMap) -> Scan:
    """The upper half outside of the field of view."""
    n = _middle(image, 2)
    data = image.data[:, :, :n].contiguous()
    grid = Grid(tuple(data.shape), image.grid.affine)
    return Image(data, grid, image.name), LabelMap(labels.data[:, :, :n].contiguous(), grid, labels.name)


def out_of_view(image: Image, labels: LabelMap) -> Scan:
    """Shifted by 60 % of its length towards the front, what leaves the box being lost."""

    def shift(data: torch.Tensor) -> torch.Tensor:
        n, shifted = data.shape[1], torch.zeros_like(data)
        by = int(0.6 * n)
        shifted[:, by:] = data[:, : n - by]
        return shifted

    return _like(image, shift(image.data)), _like(labels, shift(labels.data))


def ghosted(image: Image, labels: LabelMap) -> Scan:
    """With a second brain over it as bright as itself, half a field of view further, as a phase error makes it."""
    return _like(image, image.data + image.data.roll(image.data.shape[1] // 2, 1)), labels


def cerebellum_alone(image: Image, labels: LabelMap) -> Scan:
    """Another organ, nearly: nothing but cerebellum and brain stem."""
    kept = torch.isin(labels.data, torch.tensor(_CEREBELLUM, dtype=labels.data.dtype))
    return _like(image, image.data * kept), _like(labels, labels.data * kept)


def torso(image: Image, labels: LabelMap) -> Scan:
    """A trunk made of ellipsoids (wall, lungs, liver, spine, kidneys) and texture, on the same grid."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.grid.shape), indexing="ij")

    def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> Any:
        return sum(((v - c) / r) ** 2 for v, c, r in zip(axes, centre, radii, strict=True)) < 1

    values = np.zeros(image.grid.shape)
    for centre, radii, grey in (
        ((0, 0, 0), (0.95, 0.7, 3), 0.9),
        ((0, 0, 0), (0.85, 0.6, 3), 0.5),
        ((0.42, 0, 0.6), (0.3, 0.45, 0.7), 0.1),
        ((-0.42, 0, 0.6), (0.3, 0.45, 0.7), 0.1),
        ((0.35, 0.1, -0.3), (0.45, 0.4, 0.35), 0.7),
        ((0, -0.45, 0), (0.14, 0.14, 3), 1.0),
        ((0.4, -0.3, -0.65), (0.15, 0.15, 0.2), 0.8),
        ((-0.4, -0.3, -0.65), (0.15, 0.15, 0.2), 0.8),
    ):
        values[ellipsoid(centre, radii)] = grey
    texture = _texture(image, 1.5)
    values = gaussian_filter(values, 0.7) * (1 + 0.15 * texture)
    return _like(image, torch.from_numpy(values.clip(0)).float()), _nowhere(labels)


def noise(image: Image, labels: LabelMap) -> Scan:
    """White noise from side to side."""
    values = torch.from_numpy(_random(image).random(image.grid.shape)).float()
    return _like(image, values), _nowhere(labels)


def noise_in_its_shape(image: Image, labels: LabelMap) -> Scan:
    """Smooth noise within the outline of the brain."""
    values = torch.from_numpy(_texture(image, 2)).float()
    return _like(image, torch.where(image.data > 0, 1 + 0.3 * values, 0).clamp_min(0)), _nowhere(labels)


def nearly_empty(image: Image, labels: LabelMap) -> Scan:
    """Background noise and a bright spot."""
    values = torch.from_numpy(_random(image).rayleigh(1.0, image.grid.shape)).float()
    middle = tuple(slice(n // 2 - 2, n // 2 + 2) for n in image.grid.shape)
    values[middle] += 100
    return _like(image, values), _nowhere(labels)


#: Title -> what is done to the moving image.
WAYS: dict[str, Callable[[Image, LabelMap], Scan]] = {
    "left and right exchanged": mirrored,
    "turned by 90 degrees": turned,
    "contrast inverted": inverted,
    "contrast inverted, turned by 90 degrees": inverted_and_turned,
    "a half set to 0": half_empty,
    "upper half outside the field of view": cut_off,
    "shifted out of view": out_of_view,
    "strong ghost": ghosted,
    "cerebellum alone": cerebellum_alone,
    "torso phantom": torso,
    "white noise": noise,
    "noise in the brain's shape": noise_in_its_shape,
    "nearly empty": nearly_empty,
}


def _like(of: Image | LabelMap, data: torch.Tensor) -> Image | LabelMap:
    return type(of)(data.contiguous(), of.grid, of.name)


def _nowhere(labels: LabelMap) -> LabelMap:
    return _like(labels, torch.zeros_like(labels.data))


def _middle(image: Image, axis: int) -> int:
    """The slice that halves the brain's mass along an axis."""
    profile = image.data.movedim(axis, 0).flatten(1).sum(1).cumsum(0)
    return int((profile < profile[-1] / 2).sum())


def _random(image: Image) -> np.random.Generator:
    """Other noise for each grid, the same each time."""
    return np.random.default_rng(list(image.grid.shape))


def _texture(image: Image, sigma: float) -> np.ndarray:
    """Smooth noise of standard deviation 1."""
    values = gaussian_filter(_random(image).standard_normal(image.grid.shape), sigma)
    return values / values.std()
