"""Distance between the surfaces of labels, in millimetres.

The surface of a label is made of points: the centres of its border voxels, which are those with a face neighbour that
is not of the label; beyond the grid nothing is. Each point of either surface has a distance to the nearest point of
the other. From these two sets of distances, |A -> B| and |B -> A|:

HD95 is the larger of the two 95th percentiles (linear between ranks), as MONAI's `compute_hausdorff_distance` with
percentile=95; the average symmetric surface distance is the mean over both sets together, as MONAI's
`compute_average_surface_distance` with symmetric=True. Both agree with MONAI's on any spacing, and also hold for grids
that are turned or sheared, because the points are placed in the world.

Learn2Reg's numbers are others: its script calls DeepMind's `surface_distance` with a spacing of 1, so its HD95 is in
voxels whatever the spacing, its surface lies between voxels, and its percentiles weigh points by surface area."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from stepwarp.errors import InputError
from stepwarp.geometry import Grid, LabelMap


@dataclass(frozen=True)
class SurfaceDistance:
    """Of one label: the 95 % Hausdorff distance and the average symmetric surface distance, mm."""

    hd95_mm: float
    asd_mm: float


def surface_distances(
    fixed: LabelMap,
    warped: LabelMap,
    labels: Iterable[int],
    done: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, SurfaceDistance | None]:
    """The surface distances of each of `labels`; None for a label that either map lacks, which has no distance.

    Both maps lie on the fixed grid. done: told after each label how many of how many are measured. Raises InputError
    if the grids differ."""
    if fixed.grid != warped.grid:
        raise InputError(f"{fixed.name} and {warped.name} lie on different grids: warp the labels onto the fixed grid")
    labels = list(labels)
    in_fixed, in_warped = border_points(fixed, labels), border_points(warped, labels)
    distances: dict[int, SurfaceDistance | None] = {}
    for count, label in enumerate(labels, 1):
        pair = in_fixed.get(label), in_warped.get(label)
        distances[label] = None if pair[0] is None or pair[1] is None else _between(pair[0], pair[1])
        done(count, len(labels))
    return distances


def border_points(labels: LabelMap, wanted: Iterable[int]) -> dict[int, np.ndarray]:
    """For each wanted label that occurs, its border voxels' centres (N, D) in mm, seen from the grid's first voxel."""
    ids = labels.data.cpu().numpy()
    border = np.isin(ids, np.fromiter(wanted, np.int64))
    border &= _differs_from_a_neighbour(ids)
    at, of = np.argwhere(border), ids[border]
    order = np.argsort(of, kind="stable")
    found, starts = np.unique(of[order], return_index=True)
    points = at[order] @ labels.grid.linear.T
    return dict(zip(found.tolist(), np.split(points, starts[1:]), strict=True)) if len(found) else {}


def largest_distance(grid: Grid) -> float:
    """Between two voxels of a grid, mm: no surface distance on it is larger, so a lost surface counts as this."""
    return float(pdist(grid.corners()).max())


def nearest(points: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """The distance of each point (N, D) to the nearest of a surface's points."""
    tree = cKDTree(surface, leafsize=16, balanced_tree=False, compact_nodes=False)
    return tree.query(points, workers=torch.get_num_threads())[0]


def _differs_from_a_neighbour(ids: np.ndarray) -> np.ndarray:
    """Where a face neighbour holds another value, or lies beyond the grid."""
    result = np.zeros(ids.shape, bool)
    for axis in range(ids.ndim):
        line, out = np.moveaxis(ids, axis, 0), np.moveaxis(result, axis, 0)
        differs = line[1:] != line[:-1]
        out[1:] |= differs
        out[:-1] |= differs
        out[[0, -1]] = True
    return result


def _between(a: np.ndarray, b: np.ndarray) -> SurfaceDistance:
    to_b, to_a = nearest(a, b), nearest(b, a)
    hd95 = max(np.percentile(to_b, 95), np.percentile(to_a, 95))
    return SurfaceDistance(float(hd95), float((to_a.sum() + to_b.sum()) / (len(to_a) + len(to_b))))
