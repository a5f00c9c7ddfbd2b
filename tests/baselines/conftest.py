"""A small pair whose true map is known in closed form, on two oblique, anisotropic grids that share nothing."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from stepwarp.geometry import Grid, Image, Transform

_CENTRE = np.array([12.0, -20.0, 31.0])
_RADII = np.array([33.0, 40.0, 30.0])
_TURN = Rotation.from_rotvec((0.05, -0.08, 0.1)).as_matrix() @ np.diag([1.06, 0.95, 1.03])
_SHIFT = np.array([5.0, -4.0, 3.0])


def back(points: np.ndarray) -> np.ndarray:
    """World points (N, 3) of the moving image -> of the fixed image, RAS mm: a wave, then an affine."""
    centred = points - _CENTRE
    waves = 2.5 * np.sin(centred[:, [1, 2, 0]] / np.array([11.0, 12.0, 13.0]))
    return (centred + waves) @ _TURN.T + _CENTRE + _SHIFT


def _head(points: np.ndarray) -> np.ndarray:
    """Intensities (N,) at world points of the fixed image: an ellipsoid with a soft rim, full of blobs."""
    rng = np.random.default_rng(3)
    radius = np.linalg.norm((points - _CENTRE) / _RADII, axis=1)
    values = 40.0 * np.ones(len(points))
    for centre, width, height in zip(
        rng.normal(size=(160, 3)) * _RADII * 0.55 + _CENTRE,
        rng.uniform(3.5, 7, 160),
        rng.uniform(-45, 70, 160),
        strict=True,
    ):
        values += height * np.exp(-0.5 * ((points - centre) ** 2).sum(1) / width**2)
    return np.clip(values, 5, None) / (1 + np.exp((radius - 1) / 0.04))


def _grid(
    turn: tuple[float, float, float], shape: tuple[int, ...], spacing: tuple[float, ...], centre: np.ndarray
) -> Grid:
    affine = np.eye(4)
    # The first axis runs to the left, as in most files.
    affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() @ np.diag([-1.0, 1, 1]) * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Grid(shape, affine)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images of one head."""

    fixed: Image
    moving: Image
    points: np.ndarray
    """Points inside the fixed head, (N, 3) RAS mm."""

    def error(self, transform: Transform) -> float:
        """The mean distance in mm, in the fixed world, by which the points miss themselves on the true way back."""
        return float(np.linalg.norm(back(transform(self.points)) - self.points, axis=1).mean())


@pytest.fixture(scope="session")
def pair() -> Pair:
    fixed = _grid((0.2, -0.3, 0.15), (44, 48, 40), (2.1, 2.0, 2.3), _CENTRE)
    moving = _grid((-0.25, 0.1, 0.3), (46, 42, 48), (2.2, 2.4, 1.9), _CENTRE - [4.0, -3.0, 2.0])
    rng = np.random.default_rng(5)
    directions = rng.normal(size=(300, 3))
    inside = directions / np.linalg.norm(directions, axis=1)[:, None] * rng.uniform(0, 0.85, (300, 1)) ** (1 / 3)
    return Pair(
        _image(fixed, _head, "fixed.nii"),
        _image(moving, lambda points: _head(back(points)), "moving.nii"),
        inside * _RADII + _CENTRE,
    )


def _image(grid: Grid, intensities, name: str) -> Image:
    index = grid.indices(dtype=torch.float64)[0].flatten(1).T.numpy()
    values = intensities(index @ grid.linear.T + grid.affine[:3, 3])
    return Image(torch.from_numpy(values).float().reshape(grid.shape), grid, name)
