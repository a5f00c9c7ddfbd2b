"""What a line search tries that has lost hold of a map: numpy says nothing of it on the user's terminal."""

import pytest
import torch

from stepwarp.kernels import sampling


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e60])
@pytest.mark.parametrize("shape", [(6, 5, 7), (6, 5)], ids=str)
def test_a_map_beyond_single_precision_is_read_without_a_word(shape, bad: float):
    matrices = torch.eye(len(shape) + 1, dtype=torch.float64).repeat(2, 1, 1)
    matrices[0, :-1, -1] = bad
    moved = sampling.warp_linear(torch.ones(1, 1, *shape), matrices, shape)
    assert (moved[0] == 0).all()
    assert (moved[1] == 1).all()
