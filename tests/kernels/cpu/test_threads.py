"""What the threads share among them, they put together the same."""

import numba
import pytest
import torch

from stepwarp.kernels import sampling
from stepwarp.losses.similarities.lncc import LNCC


@pytest.mark.parametrize("grid", [(9, 12, 7), (9, 12)], ids=str)
def test_thread_counts_do_not_matter(grid: tuple[int, ...]):
    draw, d, before = torch.Generator().manual_seed(11), len(grid), numba.get_num_threads()
    image, u = torch.randn(2, 1, *grid, generator=draw), 2 * torch.randn(2, d, *grid, generator=draw)
    results = []
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            given = [t.clone().requires_grad_() for t in (image, u)]
            moved = sampling.warp(*given, torch.eye(d + 1))
            alike = LNCC(epsilon=1e-3)(image.flip(0), moved)
            results.append([alike.detach(), moved.detach(), *torch.autograd.grad(alike, given)])
    finally:
        numba.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
