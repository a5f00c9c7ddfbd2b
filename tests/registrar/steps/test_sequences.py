"""Steps after steps: what each sees, what comes out, and what it costs."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from stepwarp.geometry import Affine, DisplacementField, Grid
from stepwarp.kernels import sampling
from stepwarp.registrar.steps import Downsampled, Images, Repeat, TwoStep, VectorField, describe


def test_the_second_step_sees_what_the_first_one_made_and_follows_it(grid, smooth, noise, steps, inside):
    phi, psi = smooth(grid, 0.7), smooth(grid, 0.7, 1)
    second = steps.Known(lambda grid: psi)
    images = noise(grid)
    for lazy in (False, True):
        found = TwoStep(steps.Known(lambda grid: phi), second, lazy)(images, images)
        torch.testing.assert_close(second.seen[-1].data, images.warp(phi).data)
        expected = phi[1](psi[1](inside(grid)[0]))
        error = (found(inside(grid))[1] - expected).norm(dim=-1).max()
        assert error < (1e-4 if lazy else 0.1)
        torch.testing.assert_close(found.on(grid).displacement, (phi @ psi).on(grid).displacement, atol=2e-5, rtol=0)


def test_the_moving_image_itself_is_interpolated_once_however_steps_are_nested(grid, smooth, noise, steps):
    fields = [smooth(grid, 0.4, seed) for seed in range(3)]
    left, right = ([steps.Known(lambda grid, f=f: f) for f in fields] for _ in range(2))
    images = noise(grid)
    from_left = TwoStep(TwoStep(left[0], left[1]), left[2])(images, images)
    from_right = TwoStep(right[0], TwoStep(right[1], right[2]))(images, images)
    torch.testing.assert_close(from_left.on(grid).displacement, from_right.on(grid).displacement)
    torch.testing.assert_close(right[2].seen[0].data, left[2].seen[0].data)
    torch.testing.assert_close(right[2].seen[0].data, images.warp((fields[0] @ fields[1]).collapsed(grid)).data)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often images and displacements are sampled, by number of channels: an image has one, a field D."""
    counts: Counter[str] = Counter()
    depth = 0

    def counting(name: str):
        function = getattr(sampling, name)

        def wrapped(read, *rest, **options):
            nonlocal depth
            counts["image" if read.shape[1] == 1 else "field"] += depth == 0
            depth += 1
            try:
                return function(read, *rest, **options)
            finally:
                depth -= 1

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("sample", "warp", "compose", "resize_displacement"):
            patch.setattr(sampling, name, counting(name))
        yield counts


@pytest.mark.parametrize("n", [1, 2, 5])
def test_n_steps_cost_n_samplings_and_lazily_the_square(n, smooth, noise, steps, monkeypatch):
    grid = Grid.isotropic((9, 8, 7))
    field, images = smooth(grid, 0.4), noise(grid)
    step = steps.Known(lambda grid: field)
    with counted(monkeypatch) as collapsed:
        images.warp(Repeat(step, n)(images, images))
    with counted(monkeypatch) as lazy:
        images.warp(Repeat(step, n, lazy=True)(images, images))
    assert (collapsed["image"], collapsed["field"]) == (n, n - 1)
    assert lazy["image"] == n
    assert lazy["field"] == n * (n - 1) // 2


def test_repeat_is_the_same_step_again_and_again_beyond_what_it_was_made_with(dims, grid, noise, steps):
    step = VectorField(steps.SmallNet(dims, 0.3))
    fixed, moving = noise(grid), noise(grid, 1)
    repeat = Repeat(step, 2)
    twice = TwoStep(step, step)
    torch.testing.assert_close(repeat(fixed, moving).on(grid).displacement, twice(fixed, moving).on(grid).displacement)
    repeat.n = 4
    torch.testing.assert_close(
        repeat(fixed, moving).on(grid).displacement, TwoStep(twice, twice)(fixed, moving).on(grid).displacement
    )
    assert set(repeat.state_dict()) == {f"step.{name}" for name in step.state_dict()}
    with pytest.raises(ValueError, match="0 times"):
        repeat.n = 0


def test_a_step_can_be_used_more_often_than_it_is_trained(dims, grid, noise, steps):
    step = VectorField(steps.SmallNet(dims, 0.3))
    fixed, moving = noise(grid), noise(grid, 1)
    repeat = Repeat(step, 2, used=3)
    found = {training: repeat.train(training)(fixed, moving).on(grid).displacement for training in (True, False)}
    for training, n in ((True, 2), (False, 3)):
        torch.testing.assert_close(found[training], Repeat(step, n)(fixed, moving).on(grid).displacement)
    repeat.n = 5
    assert [repeat.train(training).n for training in (True, False)] == [5, 5]


def test_more_steps_of_a_step_that_goes_half_the_way_come_nearer(steps):
    grid = Grid.isotropic((40, 36), 1.5)
    blob = lambda centre: torch.exp(-((grid.indices() - torch.tensor(centre).view(1, 2, 1, 1)) ** 2).sum(1) / 12)  # noqa: E731
    fixed, moving = Images(blob([20.0, 18.0])[None], grid), Images(blob([23.0, 14.0])[None], grid)
    repeat = Repeat(steps.CentreOfMass(0.5), 1)
    left = []
    for n in (1, 2, 4, 8):
        repeat.n = n
        way = repeat(fixed, moving)(torch.zeros(1, 1, 2))[0, 0]
        left.append(float((way - torch.tensor([4.5, -6.0])).norm()))
    assert left[0] == pytest.approx(7.5 / 2, rel=1e-3)
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.05


@pytest.mark.parametrize("factor", [2, 3])
def test_a_step_on_coarser_images_finds_the_same_map_of_the_world(factor, grid, noise, steps, inside):
    """A linear displacement and a centre of mass are found exactly: no half voxel is lost on the way."""
    slope = 0.05 * torch.randn(grid.ndim, grid.ndim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def analytic(points: torch.Tensor) -> torch.Tensor:
        return points + (points - torch.from_numpy(grid.centre)) @ slope.T

    def sampled(on: Grid) -> DisplacementField:
        index = on.indices(dtype=torch.float64)[0].flatten(1).T
        world = index @ torch.from_numpy(on.linear.copy()).T + torch.from_numpy(on.affine[:-1, -1].copy())
        vectors = (analytic(world) - world) @ torch.from_numpy(np.linalg.inv(on.linear)).T
        return DisplacementField(vectors.T.reshape(1, on.ndim, *on.shape), on)

    found = Downsampled(steps.Known(sampled), factor)(noise(grid), noise(grid))
    points = inside(grid, 3)
    torch.testing.assert_close(found(points), analytic(points), atol=1e-4, rtol=0)

    data = torch.zeros(1, 1, *grid.shape)
    data[(..., *[slice(factor, 2 * factor)] * grid.ndim)] = 1
    other = torch.zeros(1, 1, *grid.shape)
    other[(..., *[slice(factor)] * grid.ndim)] = 1
    fixed, moving = Images(data, grid), Images(other, grid)
    straight, coarse = (
        step(fixed, moving) for step in (steps.CentreOfMass(), Downsampled(steps.CentreOfMass(), factor))
    )
    torch.testing.assert_close(coarse.matrix, straight.matrix, atol=1e-5, rtol=0)


def test_with_corners_aligned_the_library_s_offset_is_there(steps):
    """An even axis: 8 voxels become 4 whose means lie at 0.5, 2.5, 4.5, 6.5, but are taken for 0, 7/3, 14/3, 7."""
    grid = Grid.isotropic((8,))
    images = Images(torch.tensor([[[0, 0, 0, 0, 0, 0, 1.0, 1.0]]]), grid)
    pooled = images.pooled(2, corner_aligned=True)
    assert pooled.grid.affine[0, 0] == pytest.approx(7 / 3)
    step = Downsampled(steps.CentreOfMass(), corner_aligned=True)
    first = Images(torch.tensor([[[1.0, 1.0, 0, 0, 0, 0, 0, 0]]]), grid)
    assert float(step(first, images).matrix[0, 1]) == pytest.approx(7.0)
    assert float(Downsampled(steps.CentreOfMass())(first, images).matrix[0, 1]) == pytest.approx(6.0)
    with pytest.raises(ValueError, match="too small"):
        Images(torch.zeros(1, 1, 2), Grid.isotropic((2,))).pooled(2, corner_aligned=True)


def test_matrices_after_each_other_stay_a_matrix(grid, noise, steps, matrices):
    first, second = matrices(grid), matrices(grid, 1)
    found = TwoStep(steps.Known(lambda grid: first), steps.Known(lambda grid: second))(noise(grid), noise(grid))
    assert isinstance(found, Affine)
    torch.testing.assert_close(found.matrices, first.matrices @ second.matrices)


def test_a_trace_has_every_step_and_ends_where_forward_does(dims, grid, noise, steps):
    inner = Downsampled(Repeat(VectorField(steps.SmallNet(dims, 0.3)), 3))
    step = TwoStep(inner, VectorField(steps.SmallNet(dims, 0.3)))
    fixed, moving = noise(grid), noise(grid, 1)
    whole = step(fixed, moving).on(grid).displacement
    maps = list(step.trace(fixed, moving))
    assert len(maps) == 4
    torch.testing.assert_close(maps[-1].on(grid).displacement, whole, atol=2e-5, rtol=0)
    torch.testing.assert_close(
        maps[2].on(grid).displacement, inner(fixed, moving).on(grid).displacement, atol=2e-5, rtol=0
    )


def test_printing_a_registrar_shows_its_tree(steps):
    shared = VectorField(steps.SmallNet(2))
    step = TwoStep(TwoStep(Downsampled(shared, 4), Downsampled(shared)), Repeat(VectorField(steps.SmallNet(2)), 5))
    size = sum(weights.numel() for weights in shared.parameters())
    lines = repr(step).splitlines()
    assert lines[0] == f"TwoStep: {2 * size} parameters"
    assert [line.strip("│├└─ ").split(":")[0] for line in lines[1:]] == [
        "TwoStep",
        "Downsampled by 4",
        "VectorField of SmallNet",
        "Downsampled by 2",
        "VectorField of SmallNet",
        "Repeat, 5 times",
        "VectorField of SmallNet",
    ]
    assert "mm" not in repr(step)
    told = describe(step, Grid.isotropic((80, 96), 2.0))
    assert "20 x 24 voxels of 8 x 8 mm" in told
    assert "40 x 48 voxels of 4 x 4 mm" in told
    assert "80 x 96 voxels of 2 x 2 mm" in told
