"""Where the voxels of an image lie: a shape and an affine from voxel index to RAS+ millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nibabel.orientations import aff2axcodes
from torch import Tensor

#: Two grids are the same when no corner voxel lies further apart than this (mm): headers store float32.
SAME_GRID_MM = 1e-3

#: Nothing that is measured or written depends on less than this part of a voxel.
_NEGLIGIBLE = 0.1
#: What rounding to single precision leaves uncertain of the sum of three squares, such as those of a quaternion.
_ROUNDED_SQUARES = 4e-7


def float64(values: np.ndarray | Tensor) -> Tensor:
    """As a float64 tensor; an array is copied, because it may be read-only or strided as torch does not take it."""
    return values.double() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=np.float64))


def check_affine(matrix: np.ndarray, of_what: str) -> None:
    """ValueError unless a homogeneous (D+1, D+1) matrix is finite, affine, and invertible at whatever scale."""
    if not np.isfinite(matrix).all() or np.linalg.cond(matrix[:-1, :-1]) > 1e9:
        raise ValueError(f"the affine of {of_what} must be finite and invertible")
    if not np.allclose(matrix[-1], np.eye(len(matrix))[-1]):
        raise ValueError(f"the last row of the affine of {of_what} must be 0 ... 0 1, not {matrix[-1]}")


@dataclass(frozen=True, eq=False)
class Grid:
    """A lattice of voxel centres.

    Parameters
    ----------
    shape : tuple of int
        Voxels per axis, in nibabel's axis order (i, j, k).
    affine : array
        (D+1, D+1) float64, voxel index (a voxel's centre) to world RAS+ mm. Read-only.

    Raises
    ------
    ValueError
        For a shape and affine that do not fit together or an affine that cannot be inverted.
    """

    shape: tuple[int, ...]
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        d = len(shape)
        if affine.shape != (d + 1, d + 1):
            raise ValueError(f"a grid of {d} axes needs an affine of {d + 1} x {d + 1}, not {affine.shape}")
        if min(shape) < 1:
            raise ValueError(f"a grid needs at least one voxel along each axis, not {shape}")
        check_affine(affine, "a grid")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def isotropic(cls, shape: Sequence[int], spacing: float = 1.0) -> Grid:
        """An axis-aligned grid whose first voxel lies at the world's origin."""
        return cls(tuple(shape), np.diag([spacing] * len(shape) + [1.0]))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def spacing(self) -> np.ndarray:
        """Millimetres between neighbours along each axis, shape (D,)."""
        return np.linalg.norm(self.linear, axis=0)

    @property
    def linear(self) -> np.ndarray:
        """The (D, D) part of the affine that maps voxel vectors to mm vectors."""
        return self.affine[:-1, :-1]

    @property
    def inverse_affine(self) -> np.ndarray:
        """(D+1, D+1), world RAS+ mm to voxel index."""
        return np.linalg.inv(self.affine)

    @property
    def centre(self) -> np.ndarray:
        """The world point (mm) half-way between the first and the last voxel."""
        return self.world((np.array(self.shape) - 1) / 2)

    def world(self, index: np.ndarray) -> np.ndarray:
        """Where voxel indices (..., D) lie: RAS+ mm (..., D)."""
        return index @ self.linear.T + self.affine[:-1, -1]

    def index(self, points: np.ndarray) -> np.ndarray:
        """The voxel indices (..., D), with fractions, of points (..., D) in RAS+ mm."""
        inverse = self.inverse_affine
        return points @ inverse[:-1, :-1].T + inverse[:-1, -1]

    def count_outside(self, points: np.ndarray) -> int:
        """How many world points (N, D) lie in none of the voxels."""
        index = self.index(points)
        return int(((index < -0.5) | (index > np.array(self.shape) - 0.5)).any(1).sum())

    def corners(self) -> np.ndarray:
        """World points (2^D, D) of the corner voxels' centres."""
        d = self.ndim
        ends = np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), -1).reshape(-1, d)
        return self.world(ends)

    def middles(self, size: int) -> np.ndarray:
        """World points (N, D) in the middle of blocks of so many voxels along each axis; none lies beyond the grid."""
        at = [np.minimum(np.arange(0, n, size) + (size - 1) / 2, n - 1) for n in self.shape]
        index = np.stack(np.meshgrid(*at, indexing="ij"), -1).reshape(-1, self.ndim)
        return self.world(index)

    def indices(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """The voxel index of every voxel: (1, D, *shape)."""
        axes = [torch.arange(n, device=device, dtype=dtype) for n in self.shape]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]

    def millimetres(self, vectors: Tensor) -> Tensor:
        """Vectors (B, D, *any) in voxels of this grid -> in RAS+ mm."""
        return torch.einsum("ab,nb...->na...", torch.tensor(self.linear).to(vectors), vectors)

    def coarser(self, factors: int | Sequence[int]) -> Grid:
        """The grid whose voxels are blocks of `factors` voxels of this one (the last block may reach beyond).

        Its first voxel's centre is the first block's centre, half a coarse voxel in, so both grids agree in world."""
        factors = (factors,) * self.ndim if isinstance(factors, int) else tuple(factors)
        block = np.diag([*map(float, factors), 1.0])
        block[:-1, -1] = (np.array(factors) - 1) / 2
        return Grid(tuple(-(-n // f) for n, f in zip(self.shape, factors, strict=True)), self.affine @ block)

    def index_map_to(self, other: Grid, world: np.ndarray | None = None) -> np.ndarray:
        """(D+1, D+1): an index of this grid -> this world -> `world` matrix (identity) -> an index of `other`."""
        middle = np.eye(self.ndim + 1) if world is None else world
        return other.inverse_affine @ middle @ self.affine

    def distance_to(self, other: Grid) -> float:
        """How far apart (mm) the furthest pair of equal corners lies; infinite if the shapes differ."""
        if self.shape != other.shape:
            return float("inf")
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())

    def coincides_with(self, other: Grid) -> bool:
        """Whether both are one lattice that two headers state with the noise that headers have: the shapes are equal,
        and no corner lies further apart than a tenth of a voxel, or than a quaternion in single precision can tell."""
        return self.distance_to(other) <= max(_NEGLIGIBLE * self.spacing.min(), self._quaternion_noise())

    def _quaternion_noise(self) -> float:
        """How far (mm) the furthest corner may be moved by storing the axes' turn as NIfTI's qform does.

        It stores three parts of a quaternion, and the fourth is what is missing to a length of 1. Near half a turn that
        is nearly nothing, and its square drowns in rounding: up to a tenth of a degree is lost."""
        if self.ndim != 3:
            return 0.0
        left, _, right = np.linalg.svd(self.linear / self.spacing)
        turn = left @ right
        turn[:, 2] *= np.linalg.det(turn)
        squared = max(0.0, (1 + float(np.trace(turn))) / 4)
        low, high = (np.sqrt(max(0.0, squared + sign * _ROUNDED_SQUARES)) for sign in (-1, 1))
        extent = np.linalg.norm((np.array(self.shape) - 1) * self.spacing)
        return float(2 * max(high - np.sqrt(squared), np.sqrt(squared) - low) * extent)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.distance_to(other) < SAME_GRID_MM

    __hash__ = None  # type: ignore[assignment]  # equality has a tolerance

    @property
    def described(self) -> str:
        """Size, spacing and orientation in words."""
        size, spacing = " x ".join(map(str, self.shape)), " x ".join(f"{s:.3g}" for s in self.spacing)
        return f"{size} voxels of {spacing} mm, {''.join(map(str, aff2axcodes(self.affine)))}"

    def __repr__(self) -> str:
        return f"Grid({self.described})"
