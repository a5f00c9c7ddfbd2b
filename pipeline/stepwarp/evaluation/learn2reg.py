"""The measures of Learn2Reg as its script defines them, for numbers that stand beside published ones.

Whatever the headers say, its world is the voxels of the fixed image. These are its definitions (eval_version 2.0, of
which those of LUMIR are `centre_errors` and the share of `non_diffeomorphic_volume` in the moving image), and what they
make of some results is no opinion of ours: nothing folds, because 3 is added to each determinant; distances between
surfaces are in voxels; a label that the warp loses is infinitely far away. The measures of stepwarp are those of
`evaluation.evaluate`.

Displacements are (3, I, J, K) voxels, label maps (I, J, K), points (N, 3) voxels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
from scipy.ndimage import correlate, find_objects, map_coordinates

from stepwarp.evaluation.surfaces import nearest

#: Planes at each face of the image whose Jacobian determinants do not count.
_MARGIN = 2
#: What is added to a determinant before its logarithm is taken, and the range to which the sum is cut.
_ADDED, _RANGE = 3, (1e-9, 1e9)
#: The part of a surface to which HD95 is the distance.
_SHARE = 0.95


def warped_labels(moving: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """A label map at index + displacement: the nearest voxel's label, 0 beyond the outermost centres."""
    return map_coordinates(moving, np.indices(displacement.shape[1:]) + displacement, order=0)


def dice(fixed: np.ndarray, moving: np.ndarray, warped: np.ndarray, labels: Iterable[int]) -> list[float]:
    """Of each label; NaN for one that the fixed or the moving map lacks."""
    return [
        2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() and there else np.nan
        for a, b, there in _masks(fixed, moving, warped, labels)
    ]


def hd95(fixed: np.ndarray, moving: np.ndarray, warped: np.ndarray, labels: Iterable[int]) -> list[float]:
    """Of each label, in voxels; NaN for one that the fixed or the moving map lacks, infinite for one that was lost.

    DeepMind's `surface_distance` with a spacing of 1. A surface passes between voxels: through the corners that voxels
    of the label and others have in common. From the corners of each surface to the nearest one of the other, the
    distance that 95 % of its area do not exceed; the larger of the two."""
    return [
        _robust_hausdorff(a, b) if a.any() and there else np.nan
        for a, b, there in _masks(fixed, moving, warped, labels)
    ]


def landmark_errors(
    displacement: np.ndarray, fixed: np.ndarray, moving: np.ndarray, spacing: Sequence[float] | np.ndarray
) -> np.ndarray:
    """From each fixed point, displaced, to its match (N,), mm by the moving image's spacing, whatever the fixed one's.

    The displacement at a point is read by cubic splines, and is 0 beyond the outermost centres."""
    at = np.stack([map_coordinates(component, fixed.T) for component in displacement], axis=-1)
    return np.linalg.norm((fixed + at - moving) * spacing, axis=1)


def centre_errors(fixed: np.ndarray, warped: np.ndarray) -> np.ndarray:
    """Between the centres of each landmark in two maps, in voxels, by ascending id; NaN where the warp lost it.

    The lowest id is the background."""
    ids = np.unique(fixed)[1:]
    return np.linalg.norm(centres(fixed, ids) - centres(warped, ids), axis=1)


def centres(labels: np.ndarray, ids: Iterable[int]) -> np.ndarray:
    """The mean index of the voxels of each id, (N, 3); NaN for one that there is not."""
    found = [np.argwhere(labels == n) for n in ids]
    return np.array([at.mean(0) if len(at) else np.full(3, np.nan) for at in found]).reshape(-1, 3)


def spread_and_folds(displacement: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, int]:
    """The standard deviation of log(det + 3), and how many det + 3 are not positive, after they were made so.

    det: of the Jacobian of x + u(x), by central differences, two voxels and more inside the image. mask: where it is
    1 the spread is taken."""
    core = (slice(_MARGIN, -_MARGIN),) * 3
    shown = (_determinant(displacement) + _ADDED).clip(*_RANGE)
    logarithm = np.log(shown) if mask is None else np.log(shown[mask[core] == 1])
    return float(logarithm.std()) if logarithm.size else np.nan, int((shown <= 0).sum())


def summary(values: Sequence[float]) -> dict[str, float]:
    """Over cases: mean, std (of all there are, not of a sample), and the quantiles of 30 and of 70 %.

    The challenge calls either quantile `30`: until 2024 the first of every measure, since then the second where lower
    values are better, so that it is always on the side of the worse cases."""
    quantiles = {str(percent): float(np.quantile(values, percent / 100)) for percent in (30, 70)}
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), **quantiles}


def _masks(
    fixed: np.ndarray, moving: np.ndarray, warped: np.ndarray, labels: Iterable[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Of each label: where the fixed map has it, where the warped one does, and whether the moving one does."""
    return ((fixed == n, warped == n, bool((moving == n).any())) for n in labels)


def _determinant(displacement: np.ndarray) -> np.ndarray:
    along = [_slope(displacement, axis) for axis in range(3)]
    for axis, slope in enumerate(along):
        slope[axis] += 1
    return (along[0] * np.cross(along[1], along[2], axis=0)).sum(0)


def _slope(displacement: np.ndarray, axis: int) -> np.ndarray:
    """The central differences of the three components along an axis, without the margin."""
    ahead, behind = ([slice(None), *[slice(_MARGIN, -_MARGIN)] * 3] for _ in range(2))
    ahead[axis + 1], behind[axis + 1] = slice(_MARGIN + 1, 1 - _MARGIN), slice(_MARGIN - 1, -1 - _MARGIN)
    return (displacement[tuple(ahead)].astype(float) - displacement[tuple(behind)]) / 2


def _robust_hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    if not b.any():
        return np.inf
    (in_a, areas_a), (in_b, areas_b) = _surface(a), _surface(b)
    return max(_reached(nearest(in_a, in_b), areas_a), _reached(nearest(in_b, in_a), areas_b))


def _surface(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners that voxels of a mask share with others, (N, 3), and the area of the surface at each of them."""
    box = find_objects(mask.view(np.uint8))[0]
    weights, areas = _corner_codes()
    codes = correlate(np.pad(mask[box].view(np.uint8), 1), weights, mode="constant")
    border = (codes != 0) & (codes != weights.sum())
    return np.argwhere(border) + [side.start for side in box], areas[codes[border]]


@cache
def _corner_codes() -> tuple[np.ndarray, np.ndarray]:
    """What makes a code of the eight voxels around a corner (2, 2, 2), and by code the area there (256,), by the
    triangles of marching cubes: DeepMind's table, which MONAI has."""
    from monai.metrics.utils import get_code_to_measure_table

    areas, weights = get_code_to_measure_table((1.0, 1.0, 1.0))
    return weights[0, 0].numpy().astype(np.uint8), areas.double().numpy()


def _reached(distances: np.ndarray, areas: np.ndarray) -> float:
    """The distance that 95 % of the area do not exceed."""
    order = np.lexsort((areas, distances))
    shares = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][min(int(np.searchsorted(shares, _SHARE)), len(order) - 1)])
