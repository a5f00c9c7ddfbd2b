"""Ways of spoiling a scan of a brain, with its labels spoilt alike: so that it cannot be registered, or should not be
(`TO_FAIL`), and so that it is harder and can be registered still (`HARDER`).

Each takes a skull-stripped scan and its labels on one grid, and gives both back; the labels say where each region is
in the spoilt image, all 0 where nothing of it is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from stepwarp.geometry import Affine, Grid, Image, LabelMap

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
    return _slices(image, labels, 0, _middle(image, 2))


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


def sphere(image: Image, labels: LabelMap) -> Scan:
    """A ball as large as the brain, of one grey with a soft edge."""
    return _solid(image, labels, round_=True)


def ellipsoid(image: Image, labels: LabelMap) -> Scan:
    """An egg as long, as wide and as high as the brain, of one grey with a soft edge."""
    return _solid(image, labels, round_=False)


def its_mask(image: Image, labels: LabelMap) -> Scan:
    """The mask of the brain in place of the image of it: a slip of the hand."""
    return _like(image, (image.data > 0).float()), _nowhere(labels)


def ball_of_noise(image: Image, labels: LabelMap) -> Scan:
    """White noise within a ball as large as the brain."""
    values = torch.from_numpy(_random(image).random(image.grid.shape)).float()
    return _like(image, torch.where(_distance(image, round_=True) < 1, values, 0)), _nowhere(labels)


def mesh_of_caves(image: Image, labels: LabelMap) -> Scan:
    """Bright walls around dark holes of about a centimetre, within the outline of the brain."""
    values = torch.from_numpy(gaussian_filter((_texture(image, 2.5) > 0).astype(float), 0.7)).float()
    return _like(image, torch.where(image.data > 0, 0.2 + values, 0)), _nowhere(labels)


def slab(image: Image, labels: LabelMap) -> Scan:
    """The middle third of the brain's slices, the rest outside of the field of view."""
    slices = (image.data > 0).flatten(0, 1).any(0).nonzero()
    first, last = int(slices[0]), int(slices[-1]) + 1
    third = (last - first) // 3
    return _slices(image, labels, first + third, last - third)


def folded_greys(image: Image, labels: LabelMap) -> Scan:
    """|x - .6| of the greys: no rising and no falling line leads from the one contrast to the other."""
    brain = image.data > 0
    greys = image.data / image.data[brain].quantile(0.995)
    return _like(image, torch.where(brain, 0.05 + (greys - 0.6).abs(), 0)), labels


def bias(image: Image, labels: LabelMap) -> Scan:
    """Three times as bright at one side as at the other, as from a coil at the surface."""
    return _brighter(image, 3), labels


def strong_bias(image: Image, labels: LabelMap) -> Scan:
    """Ten times as bright at one side as at the other."""
    return _brighter(image, 10), labels


def noisy(image: Image, labels: LabelMap) -> Scan:
    """Rician noise of a tenth of the brain's brightness, in the air as well."""
    return _with_noise(image, 0.1), labels


def very_noisy(image: Image, labels: LabelMap) -> Scan:
    """The same, of a fifth."""
    return _with_noise(image, 0.2), labels


def thresholded(image: Image, labels: LabelMap) -> Scan:
    """What is darker than half of the brightest set to 0: cortex and ventricles have holes."""
    brain = image.data[image.data > 0]
    return _like(image, torch.where(image.data > 0.5 * brain.quantile(0.99), image.data, 0)), labels


#: Title -> what is done to the moving image, of which no registration can come. The first one is told from a whole
#: brain by nothing but the knowledge which side is which.
TO_FAIL: dict[str, Callable[[Image, LabelMap], Scan]] = {
    "left and right exchanged": mirrored,
    "a half set to 0": half_empty,
    "shifted out of view": out_of_view,
    "strong ghost": ghosted,
    "cerebellum alone": cerebellum_alone,
    "torso phantom": torso,
    "white noise": noise,
    "noise in the brain's shape": noise_in_its_shape,
    "nearly empty": nearly_empty,
    "sphere": sphere,
    "ellipsoid": ellipsoid,
    "its mask": its_mask,
    "ball of noise": ball_of_noise,
    "mesh of caves": mesh_of_caves,
}
#: The same, of which one can.
HARDER: dict[str, Callable[[Image, LabelMap], Scan]] = {
    "turned by 90 degrees": turned,
    "contrast inverted": inverted,
    "contrast inverted, turned by 90 degrees": inverted_and_turned,
    "contrast folded": folded_greys,
    "upper half outside the field of view": cut_off,
    "a third of the slices": slab,
    "bias of 3": bias,
    "bias of 10": strong_bias,
    "noise, SNR 10": noisy,
    "noise, SNR 5": very_noisy,
    "thresholded": thresholded,
}
#: Title -> (degrees, mm) by which the fixed head is nodded and pushed before it meets the moving one, where the linear
#: part is kept as it is.
WRONG_STARTS = {"start 25 mm beside, kept": (0, 25), "start turned by 25 degrees, kept": (25, 0)}


def wrong_start(right: Affine, fixed: Grid, degrees: float, mm: float) -> Affine:
    """So far beside the right linear transform, fixed world -> moving world."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    shift = fixed.centre - turn @ fixed.centre + np.array([0, mm, 0])
    return right.after_affine(Affine(np.column_stack([turn, shift])))


def _distance(image: Image, *, round_: bool) -> torch.Tensor:
    """From the centre of what is shown, 1 at the edge of a ball as large as it, or of an egg as long each way."""
    inside = (image.data > 0).nonzero().double()
    centre = inside.mean(0)
    lengths = inside.amax(0) - inside.amin(0)
    # A ball has pi / 6 of its box, as a brain about has.
    radii = (lengths.prod() ** (1 / 3) if round_ else lengths) / 2
    places = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in image.grid.shape), indexing="ij"), -1)
    return ((places - centre) / radii).norm(dim=-1)


def _solid(image: Image, labels: LabelMap, *, round_: bool) -> Scan:
    values = gaussian_filter((_distance(image, round_=round_) < 1).double().numpy(), 0.7)
    return _like(image, torch.from_numpy(values).float()), _nowhere(labels)


def _slices(image: Image, labels: LabelMap, first: int, last: int) -> Scan:
    """The slices first to last - 1 of the third axis, where they lie."""
    data = image.data[:, :, first:last].contiguous()
    affine = image.grid.affine.copy()
    affine[:-1, -1] = image.grid.world(np.array([0, 0, first]))
    grid = Grid(tuple(data.shape), affine)
    return Image(data, grid, image.name), LabelMap(labels.data[:, :, first:last].contiguous(), grid, labels.name)


def _brighter(image: Image, times: float) -> Image:
    """So many times as bright at the back as at the front of what is shown, evenly on a scale of logarithms."""
    shown = (image.data > 0).any(2).any(0).nonzero()
    first, last = int(shown[0]), int(shown[-1])
    share = ((torch.arange(image.grid.shape[1]) - first) / (last - first)).clamp(0, 1)
    return _like(image, image.data * times ** -share[:, None])


def _with_noise(image: Image, share: float) -> Image:
    """With complex noise whose parts have so much of the brain's mean for a standard deviation."""
    sigma = share * float(image.data[image.data > 0].mean())
    real, imaginary = torch.from_numpy(_random(image).normal(0, sigma, (2, *image.grid.shape))).float()
    return _like(image, ((image.data + real) ** 2 + imaginary**2).sqrt())


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
