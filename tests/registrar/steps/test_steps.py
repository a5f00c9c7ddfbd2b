"""What a network's output means."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from stepwarp.geometry import DisplacementField, Grid
from stepwarp.networks import Encoder, UNet
from stepwarp.registrar.steps import Images, Matrix, TwoStep, VectorField, Velocity
from stepwarp.registrar.steps.steps import exponential


def small_unet(dims: int) -> UNet:
    return UNet(dims, (4, 8))


@pytest.mark.parametrize(
    "make",
    [
        lambda dims: VectorField(small_unet(dims)),
        lambda dims: Velocity(small_unet(dims)),
        lambda dims: Velocity(small_unet(dims), kernel=[(1.0, 0.4), (3.0, 0.6)]),
        lambda dims: Matrix(Encoder(dims, (4, 8))),
        lambda dims: TwoStep(Matrix(Encoder(dims, (4,))), Velocity(small_unet(dims))),
    ],
    ids=["field", "velocity", "momentum", "matrix", "two"],
)
def test_before_training_nothing_moves_and_every_weight_can_learn(make, dims, grid, noise):
    step = make(dims)
    fixed, moving = noise(grid), noise(grid, 1)
    assert step(fixed, moving).on(grid).displacement.abs().max() < 1e-5
    with torch.no_grad():
        for weights in step.parameters():
            weights.add_(0.1 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)))
    moving.warp(step(fixed, moving)).data.square().mean().backward()
    assert all(weights.grad is not None and weights.grad.abs().max() > 0 for weights in step.parameters())


def test_a_step_keeps_nothing(dims, grid, noise):
    step = TwoStep(Matrix(Encoder(dims, (4, 8))), Velocity(small_unet(dims)))
    before = {name: set(vars(module)) for name, module in step.named_modules()}
    names = set(step.state_dict())
    step(noise(grid), noise(grid, 1))
    assert {name: set(vars(module)) for name, module in step.named_modules()} == before
    assert set(step.state_dict()) == names == {name for name, _ in step.named_parameters()}


def test_one_step_serves_any_shape_batch_and_grid(dims, noise):
    step = VectorField(small_unet(dims))
    for shape, batch in (((5, 8, 6), 1), ((12, 7, 9), 3)):
        grid = Grid.isotropic(shape[:dims], 3.0)
        assert step(noise(grid, 0, batch), noise(grid, 1, batch)).on(grid).displacement.shape == (
            batch,
            dims,
            *grid.shape,
        )


@pytest.mark.parametrize(("unit", "scale"), [("voxels", 1.0), ("voxels", 2.5), ("extent", 0.1)])
def test_the_unit_of_a_vector(unit, scale, dims, grid, noise, steps):
    output = torch.rand(dims, *grid.shape)
    found = VectorField(steps.Constant(output), scale, unit)(noise(grid), noise(grid)).on(grid).displacement
    per_voxel = torch.tensor(grid.shape) - 1 if unit == "extent" else torch.ones(dims)
    torch.testing.assert_close(found[0], scale * output * per_voxel.view(-1, *[1] * dims))


def test_the_flow_of_a_constant_velocity_is_a_shift_and_of_a_linear_one_its_exponential():
    grid = Grid.isotropic((41, 45))
    velocity = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, *grid.shape)
    torch.testing.assert_close(exponential(velocity, 6), velocity.contiguous(), atol=1e-5, rtol=0)
    rate = np.array([[0.1, -0.4], [0.4, 0.05]])
    centred = grid.indices() - torch.tensor([20.0, 22.0]).view(1, 2, 1, 1)
    found = exponential(torch.einsum("ab,nbij->naij", torch.from_numpy(rate).float(), centred), 8)
    expected = torch.einsum("ab,nbij->naij", torch.from_numpy(expm(rate) - np.eye(2)).float(), centred)
    middle = (..., slice(14, 27), slice(16, 29))
    torch.testing.assert_close(found[middle], expected[middle], atol=0.02, rtol=0)


def test_a_velocity_followed_back_undoes_it(dims, grid, noise, steps, inside):
    velocity = 0.4 * torch.randn(dims, *[1] * dims, generator=torch.Generator().manual_seed(0)).expand(
        dims, *grid.shape
    ) + 0.1 * torch.sin(grid.indices()[0] / 2)
    images = noise(grid)
    there, back = (Velocity(steps.Constant(sign * velocity), 7)(images, images) for sign in (1, -1))
    points = inside(grid)
    away = (there(points) - points).norm(dim=-1).max()
    assert ((back @ there)(points) - points).norm(dim=-1).max() < 0.05 * away


def test_a_velocity_is_its_momentum_smoothed_by_a_sum_of_gaussians(noise, steps):
    """One point of momentum becomes Gaussians as wide in mm on any grid; constant momentum stays what it is."""
    for mm in (1.0, 2.0):
        grid = Grid.isotropic((41, 41), mm)
        point = torch.zeros(2, *grid.shape)
        point[0, 20, 20] = 1e-3 / mm**2
        kernel = [(3.0, 0.25), (6.0, 0.75)]
        found = Velocity(steps.Constant(point), 0, kernel=kernel)(noise(grid), noise(grid)).displacement[0]
        away = mm * (grid.indices()[0] - 20).norm(dim=0)
        expected = sum(w * torch.exp(-(away**2) / (2 * s**2)) / (2 * np.pi * s**2) for s, w in kernel)
        torch.testing.assert_close(found[0], 1e-3 * expected, atol=3e-7, rtol=0)
        assert found[1].abs().max() == 0
    still = Velocity(steps.Constant(torch.ones(2, *grid.shape)), 0, kernel=kernel)(noise(grid), noise(grid))
    torch.testing.assert_close(still.displacement[:, :, 18:23, 18:23], torch.ones(2, 2, 5, 5), atol=0.05, rtol=0)


def test_what_networks_find_has_an_inverse(dims, grid, noise, steps):
    step = TwoStep(Matrix(steps.SmallMatrixNet(dims)), VectorField(steps.SmallNet(dims, 0.3)))
    found = step(noise(grid), noise(grid, 1))
    residual = (found @ found.inverse()).on(grid).displacement.abs().flatten(1).amax(1)
    assert len(residual) == 2
    assert residual.max() < 2e-3 < 0.1 < found.on(grid).displacement.abs().max()
    found.inverse().on(grid).displacement.square().sum().backward()
    assert all(weights.grad.abs().sum() > 0 for weights in step.parameters())


def test_a_matrix_turns_about_the_centre_and_means_the_same_on_any_spacing(dims, steps):
    output = 0.2 * torch.randn(dims, dims + 1, generator=torch.Generator().manual_seed(2))
    points = torch.rand(1, 20, dims, generator=torch.Generator().manual_seed(3)) * 20
    found = []
    for spacing in (0.5, 2.0):
        shape = tuple(int(n / spacing) for n in (24, 20, 16)[:dims])
        affine = np.diag([spacing] * dims + [1.0])
        affine[:-1, -1] = 7 - np.array(shape) * spacing / 2 + spacing / 2
        grid = Grid(shape, affine)
        images = Images(torch.zeros(1, 1, *shape), grid)
        found.append(Matrix(steps.Constant(output))(images, images))
        turned = Matrix(steps.Constant(torch.cat([output[:, :-1], torch.zeros(dims, 1)], 1)))(images, images)
        centre = torch.full((1, 1, dims), 7.0, dtype=torch.float64)
        torch.testing.assert_close(turned(centre), centre, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0](points), found[1](points), atol=1e-4, rtol=0)
    shift = found[0](centre) - centre
    torch.testing.assert_close(shift[0, 0], 12 * output[:, -1].double(), atol=1e-4, rtol=0)


def test_a_matrix_in_the_axes_of_an_oblique_anisotropic_grid(steps, noise):
    """A quarter turn from the first to the second axis takes a point on the one to the other, at the same distance."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = axes * [0.5, 2.0, 1.0]
    grid = Grid((9, 8, 7), affine)
    turn = torch.tensor([[-1.0, -1, 0, 0], [1, -1, 0, 0], [0, 0, 0, 0]])
    found = Matrix(steps.Constant(turn))(noise(grid), noise(grid))
    start, end = (torch.from_numpy(grid.centre + 3 * axes[:, axis])[None, None] for axis in (0, 1))
    torch.testing.assert_close(found(start)[:1], end, atol=1e-6, rtol=0)


def test_mixed_precision_gives_single_precision_fields(dims, grid, noise):
    step = TwoStep(Matrix(Encoder(dims, (4, 8))), VectorField(small_unet(dims)))
    with torch.no_grad():
        for weights in step.parameters():
            weights.add_(0.05)
    exact = step(noise(grid), noise(grid, 1)).on(grid).displacement
    with torch.autocast("cpu", torch.bfloat16):
        mixed = step(noise(grid), noise(grid, 1)).on(grid).displacement
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - exact).abs().max() < 0.05 * exact.abs().max()


def test_where_the_world_has_its_origin_does_not_matter(dims, grid, noise):
    step = TwoStep(Matrix(Encoder(dims, (4, 8))), VectorField(small_unet(dims)))
    with torch.no_grad():
        for weights in step.parameters():
            weights.add_(0.05 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)))
    moved = grid.affine.copy()
    moved[:-1, -1] += 100
    elsewhere = Grid(grid.shape, moved)
    here = step(noise(grid), noise(grid, 1)).on(grid).displacement
    there = step(noise(elsewhere), noise(elsewhere, 1)).on(elsewhere).displacement
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)


def test_both_images_lie_on_one_grid(dims, grid, noise, steps):
    other = Grid(grid.shape, grid.affine @ np.diag([2.0] * dims + [1.0]))
    for step in (VectorField(steps.SmallNet(dims)), Matrix(steps.SmallMatrixNet(dims))):
        with pytest.raises(ValueError, match="one grid"):
            step(noise(grid), noise(other))


def test_gradients_through_all_kinds_of_steps_are_right(dims, steps):
    """Of the images and of the networks' weights, by finite differences in double precision."""
    shape = (5, 4, 3)[:dims]
    grid = Grid.isotropic(shape, 1.3)
    step = TwoStep(
        TwoStep(Matrix(steps.SmallMatrixNet(dims)), VectorField(steps.SmallNet(dims, 0.31))),
        Velocity(steps.SmallNet(dims, 0.29), 2),
    ).double()
    names = [name for name, _ in step.named_parameters()]

    def moved(image: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        fixed = Images(0.5 * image, grid)

        def found() -> DisplacementField:
            return torch.func.functional_call(
                step, dict(zip(names, weights, strict=True)), (fixed, Images(image, grid))
            )

        return Images(image, grid).warp(found(), "border").data

    image = torch.rand(1, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = [weights.detach().clone().requires_grad_() for weights in step.parameters()]
    assert torch.autograd.gradcheck(
        moved, (image.requires_grad_(), *weights), eps=1e-4, atol=1e-3, rtol=1e-2, fast_mode=True
    )


def test_networks_keep_all_bits_of_single_precision(noise):
    """In TF32, to which cuDNN resorts by itself, a displacement is off by a thousandth of its length."""
    grid, found = Grid.isotropic((8, 8)), []

    class Listening(UNet):
        def forward(self, fixed, moving):
            found.append(torch.backends.cudnn.conv.fp32_precision)
            return super().forward(fixed, moving)

    before = torch.backends.cudnn.conv.fp32_precision
    step = TwoStep(VectorField(Listening(2, (4, 8))), Velocity(Listening(2, (4, 8))))
    step(noise(grid), noise(grid, 1))
    assert found == ["ieee", "ieee"] != [before, before]
    assert torch.backends.cudnn.conv.fp32_precision == before


@pytest.mark.gpu
def test_a_gpus_displacement_has_the_bits_of_single_precision(dims, grid, noise):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)
    step = VectorField(small_unet(dims))
    with torch.no_grad():
        for weights in step.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    fixed, moving = noise(grid), noise(grid, 1)

    def found(dtype):
        pair = (Images(each.data.to("cuda", dtype), grid) for each in (fixed, moving))
        return step.to("cuda", dtype)(*pair).displacement.detach()

    here, exact = found(torch.float32), found(torch.float64)
    assert (here - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.gpu
def test_the_same_on_a_gpu_and_all_of_it_stays_there(dims, grid, noise, inside):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    step = TwoStep(Matrix(Encoder(dims, (4, 8))), Velocity(small_unet(dims)))
    with torch.no_grad():
        for weights in step.parameters():
            weights.add_(0.05)
    fixed, moving = noise(grid), noise(grid, 1)
    here = step(fixed, moving).on(grid).displacement
    there = step.cuda()(Images(fixed.data.cuda(), grid), Images(moving.data.cuda(), grid))
    torch.testing.assert_close(there.on(grid).displacement.cpu(), here, atol=1e-3, rtol=0)
    back = there.inverse()
    points = inside(grid).cuda()
    assert {each.device for each in (back(points), back[0].on(grid).displacement)} == {points.device}
    torch.testing.assert_close((back @ there)(points).cpu(), inside(grid).expand(2, -1, -1), atol=0.05, rtol=0)
