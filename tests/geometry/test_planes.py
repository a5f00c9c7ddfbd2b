"""The compiled kernel for planes against the plain torch reference, in value and in both derivatives."""

import pytest
import torch

from stepwarp.geometry import sampling
from stepwarp.geometry.cpu_planes import warp

SAME = torch.eye(3, dtype=torch.float64)


def results(run, image, displacement):
    image, displacement = (t.clone().requires_grad_() for t in (image, displacement))
    values = run(image, displacement)
    (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum().backward()
    return values, image.grad, displacement.grad


@pytest.mark.parametrize("outside", ["zero", "border"])
@pytest.mark.parametrize(("batch", "shape"), [((3, 3), (28, 28)), ((1, 4), (7, 5)), ((4, 1), (5, 1)), ((2, 2), (1, 9))])
def test_planes_are_read_as_the_reference_reads_them(batch, shape, outside):
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(batch[0], 2, *shape, generator=draw)
    displacement = 3 * torch.randn(batch[1], 2, *shape, generator=draw)
    compiled = results(lambda i, u: warp(i, u, outside == "border"), image, displacement)
    plain = results(
        lambda i, u: sampling.sample(i, sampling.positions(u, SAME), "linear", outside), image, displacement
    )
    for ours, reference in zip(compiled, plain, strict=True):
        assert torch.allclose(ours, reference, atol=2e-5)


def test_warp_hands_planes_of_one_grid_to_the_kernel(monkeypatch):
    from stepwarp.geometry import cpu_planes

    seen = []
    monkeypatch.setattr(cpu_planes, "warp", lambda *given: seen.append(given) or warp(*given))
    image, still = torch.rand(2, 1, 6, 6), torch.zeros(2, 2, 6, 6)
    assert torch.equal(sampling.warp(image, still, SAME), image)
    sampling.warp(image.double(), still.double(), SAME)
    moved = SAME.clone()
    moved[0, 2] = 1
    sampling.warp(image, still, moved)
    assert len(seen) == 1
