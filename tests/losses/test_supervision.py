"""The distance to a teacher's field."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from stepwarp.geometry import Grid
from stepwarp.losses.supervision import field_distance

SHAPE = (5, 6, 4)


def oblique() -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix() * (1.5, 0.8, 2.2)
    return Grid(SHAPE, affine)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_is_in_square_millimetres():
    grid = oblique()
    shift = torch.tensor([2.0, -1.0, 0.5]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    expected = (2 * 1.5) ** 2 + 0.8**2 + (0.5 * 2.2) ** 2
    assert float(field_distance(shift, torch.zeros_like(shift), grid)) == pytest.approx(expected)


def test_counts_where_the_teacher_does():
    ours, teacher, grid = random(2, 3, *SHAPE), random(2, 3, *SHAPE, seed=1), oblique()
    weight = torch.zeros(2, 1, *SHAPE)
    weight[0, :, 1:3] = 1
    weight[1, :, 2] = 0.5
    spoiled = torch.where(weight > 0, teacher, 1e6)
    squared = np.square(np.einsum("ab,nb...->na...", grid.linear, (ours - teacher).numpy())).sum(1)
    expected = (squared[0, 1:3].mean() + squared[1, 2].mean()) / 2
    assert float(field_distance(ours, spoiled, grid, weight)) == pytest.approx(expected)
    assert float(field_distance(ours, teacher, grid)) == pytest.approx(squared.mean())
    assert field_distance(ours, teacher, grid, torch.zeros(1, 1, *SHAPE)).isnan()


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 4)], ids=str)
def test_gradient(shape: tuple[int, ...]):
    d = len(shape)
    ours, teacher = random(2, d, *shape).requires_grad_(), random(1, d, *shape, seed=1).requires_grad_()
    grid, weight = Grid.isotropic(shape, 2), random(2, 1, *shape).abs()
    torch.autograd.gradcheck(lambda u: field_distance(u, teacher, grid, weight), (ours,))
    field_distance(ours, teacher, grid).backward()
    assert teacher.grad is None
