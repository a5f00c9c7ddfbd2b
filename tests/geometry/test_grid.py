import numpy as np
import pytest
import torch

from stepwarp.geometry import Grid
from stepwarp.kernels import sampling


def ramp(grid: Grid) -> torch.Tensor:
    """A linear function of the world, on every voxel: (1, 1, *shape) float64."""
    slope = torch.arange(1, grid.ndim + 1, dtype=torch.float64)
    linear, offset = torch.tensor(grid.linear), torch.tensor(grid.affine[:-1, -1])
    world = torch.einsum("ab,b...->a...", linear, grid.indices(dtype=torch.float64)[0])
    return torch.einsum("a,a...->...", slope, world + offset.view(-1, *[1] * grid.ndim))[None, None]


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 3, 2), (4, 1, 5)])
def test_a_pooled_ramp_is_the_ramp_on_the_coarser_grid(grid: Grid, factors: tuple[int, ...]):
    pooled = sampling.average_pool(ramp(grid), factors)
    coarse = grid.coarser(factors)
    assert pooled.shape[2:] == coarse.shape
    # Blocks that reach beyond the image count zeros there.
    whole = (0, 0, *[slice(n // f) for n, f in zip(grid.shape, factors, strict=True)])
    torch.testing.assert_close(pooled[whole], ramp(coarse)[whole])


@pytest.mark.parametrize("shape", [(9,), (9, 6)])
def test_pooling_in_one_and_two_dimensions(shape: tuple[int, ...]):
    grid = Grid.isotropic(shape, 0.7)
    whole = (0, 0, *[slice(n // 2) for n in shape])
    pooled = sampling.average_pool(ramp(grid), (2,) * len(shape))
    torch.testing.assert_close(pooled[whole], ramp(grid.coarser(2))[whole])


def test_a_block_beyond_the_image_counts_zeros():
    pooled = sampling.average_pool(torch.ones(1, 1, 5), (2,))
    assert pooled.tolist() == [[[1, 1, 0.5]]]


def test_coarser_in_two_steps_is_coarser_in_one(grid: Grid):
    even = Grid((16, 8, 24), grid.affine)
    assert even.coarser(2).coarser((2, 1, 3)) == even.coarser((4, 2, 6))


def test_grids_are_equal_within_a_micrometre(grid: Grid):
    stored = grid.affine.astype(np.float32)
    assert Grid(grid.shape, stored) == grid
    shifted = grid.affine.copy()
    shifted[0, 3] += 0.01
    assert Grid(grid.shape, shifted) != grid
    assert Grid(grid.shape[::-1], grid.affine) != grid
    assert grid != "grid"


def test_equality_looks_at_the_far_corner():
    """A scale so slightly different that neighbours agree, but the ends of the grid do not."""
    grid = Grid.isotropic((300, 300, 300))
    stretched = grid.affine.copy()
    stretched[0, 0] += 1e-5
    assert Grid(grid.shape, stretched) != grid
    assert grid.distance_to(Grid(grid.shape, stretched)) == pytest.approx(299e-5)


def test_centre_corners_and_spacing(grid: Grid):
    np.testing.assert_allclose(grid.corners().mean(0), grid.centre)
    np.testing.assert_allclose(grid.spacing, [1.5, 0.8, 2.2])
    np.testing.assert_allclose(grid.index_map_to(grid), np.eye(4), atol=1e-12)


def test_index_map_passes_through_the_world_matrix(grid: Grid, moving_grid: Grid):
    world = np.eye(4)
    world[:3, 3] = 1, 2, 3
    index = np.array([3.0, 2.0, 5.0, 1.0])
    there = grid.index_map_to(moving_grid, world) @ index
    np.testing.assert_allclose(moving_grid.affine @ there, world @ (grid.affine @ index))


@pytest.mark.parametrize(
    ("shape", "affine", "complaint"),
    [
        ((3, 3), np.eye(4), "needs an affine of 3 x 3"),
        ((3, 0, 3), np.eye(4), "at least one voxel"),
        ((3, 3, 3), np.diag([1, 1, 0, 1]), "invertible"),
        ((3, 3, 3), np.diag([1, np.nan, 1, 1]), "finite"),
        ((3, 3, 3), np.array([[1, 0, 0, 5], [0, 1, 0, 6], [0, 0, 1, 7], [0, 0, 0, 2]]), "last row"),
        ((3, 3, 3), np.array([[1, 0, 0, 5], [0, 1, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]]).T, "last row"),
    ],
)
def test_bad_input(shape: tuple[int, ...], affine: np.ndarray, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        Grid(shape, affine)


def test_voxels_may_be_as_small_as_a_cell():
    assert Grid((3, 3, 3), np.diag([5e-5, 5e-5, 5e-5, 1])).spacing == pytest.approx([5e-5] * 3)


def test_the_affine_is_the_grids_own_and_read_only():
    affine = np.eye(4)
    grid = Grid((2, 2, 2), affine)
    affine[0, 3] = 9
    assert grid.affine[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 2
