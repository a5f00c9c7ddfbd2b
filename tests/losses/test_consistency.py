"""Inverse consistency and its gradient: known values, any grid, icon_registration."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from stepwarp.geometry import Affine, DisplacementField, Grid
from stepwarp.kernels import backend
from stepwarp.losses.consistency import gradicon, inverse_consistency, scattered

SHAPES = [(9,), (8, 11), (7, 9, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
LOSSES = {"inverse_consistency": inverse_consistency, "gradicon": gradicon}
each_loss = pytest.mark.parametrize("name", LOSSES)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grids() -> dict[str, Grid]:
    """The same cube of about 60 mm, in cubes, in slices, coarser, and turned."""
    turn = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix()
    made = {}
    for name, shape, spacing, axes in (
        ("cubes", (31, 31, 31), (2, 2, 2), np.eye(3)),
        ("slices", (41, 41, 13), (1.5, 1.5, 5), np.eye(3)),
        ("fine", (61, 51, 41), (1, 1.2, 1.5), np.diag([-1.0, -1.0, 1.0])),
        ("oblique", (31, 25, 41), (2, 2.5, 1.5), turn),
    ):
        affine = np.eye(4)
        affine[:3, :3] = axes * spacing
        affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
        made[name] = Grid(shape, affine)
    return made


def linear(matrix: np.ndarray, grid: Grid) -> Tensor:
    return Affine(matrix).on(grid).displacement.double()


def stretch(grid: Grid, factor: float) -> Tensor:
    """x -> factor x, about the centre voxel."""
    middle = torch.tensor([n // 2 for n in grid.shape]).view(1, -1, *[1] * grid.ndim)
    return (factor - 1) * (grid.indices(dtype=torch.float64) - middle)


@each_loss
@each_shape
def test_inverse_translations_cost_nothing(name: str, shape: tuple[int, ...]):
    shift = random(2, len(shape), *[1] * len(shape)).expand(2, len(shape), *shape)
    assert float(LOSSES[name](shift, -shift, Grid.isotropic(shape, 3))) == pytest.approx(0, abs=1e-20)


@each_shape
def test_a_translation_that_is_left(shape: tuple[int, ...]):
    """|shift|^2 in mm^2 to ICON, which GradICON does not see."""
    grid = Grid.isotropic(shape, 3)
    shift = torch.ones(1, len(shape), *shape, dtype=torch.float64)
    assert float(inverse_consistency(shift, 0 * shift, grid)) == pytest.approx(9 * len(shape))
    assert float(gradicon(shift, 0 * shift, grid)) == pytest.approx(0, abs=1e-20)


@each_shape
def test_a_stretch_that_is_left(shape: tuple[int, ...]):
    """phi = 1.1 x and the identity: de/dx is .1 along every axis, wherever it is looked for inside the grid."""
    grid = Grid.isotropic(shape, 3)
    inside = 1 + random(1, len(shape), *shape).abs().clamp_max(2)
    both = (stretch(grid, 1.1), torch.zeros(1, len(shape), *shape, dtype=torch.float64))
    for forward, backward in (both, both[::-1]):
        assert float(gradicon(forward, backward, grid, inside)) == pytest.approx(0.01 * len(shape))


def test_the_same_maps_on_any_grid():
    """Two linear maps with a residual that is known: e = (A B - 1) x."""
    rng = np.random.default_rng(0)
    first, second = np.eye(4), np.eye(4)
    first[:3, :3] += 0.05 * rng.normal(size=(3, 3))
    second[:3, :3] += 0.05 * rng.normal(size=(3, 3))
    second[:3, 3] = rng.normal(size=3)
    rest = first @ second - np.eye(4)
    world = rng.uniform(-10, 10, (500, 3))
    expected = np.square(world @ rest[:3, :3].T + rest[:3, 3]).sum(1).mean()
    for grid in grids().values():
        maps = linear(first, grid), linear(second, grid)
        index = (world - grid.affine[:3, 3]) @ np.linalg.inv(grid.linear).T
        points = torch.tensor(index.T)[None]
        assert float(inverse_consistency(*maps, grid, points)) == pytest.approx(expected, rel=1e-4)
        assert float(gradicon(*maps, grid, points)) == pytest.approx(np.square(rest[:3, :3]).sum(), rel=1e-4)


@each_loss
def test_the_same_smooth_maps_on_any_grid(name: str):
    """Waves that fade towards the border, sampled on each grid; at the grid's own points."""
    values = []
    for grid in grids().values():
        world = torch.tensor(Affine(grid.affine)(grid.indices(dtype=torch.float64)[0].flatten(1).T.numpy()))
        near = torch.exp(-world.square().sum(1, keepdim=True) / 2 / 10**2)
        maps = []
        for wave in ((0.11, 0.07, -0.1), (-0.08, 0.1, 0.06)):
            shift = 2 * near * torch.sin(world * torch.tensor(wave) + torch.tensor([0.5, 1.0, 2.0]))
            maps.append(DisplacementField.from_millimetres(shift.view(*grid.shape, 3), grid).displacement)
        volume = np.prod(grid.shape) * np.prod(grid.spacing)
        torch.manual_seed(0)
        values.append(float(LOSSES[name](*maps, grid)) * volume)
    np.testing.assert_allclose(values, values[0], rtol=0.1)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 4, 3)], ids=str)
@each_loss
def test_gradients(name: str, shape: tuple[int, ...]):
    grid = Grid.isotropic(shape, 2)
    forward, backward = (0.4 * random(1, len(shape), *shape, seed=n).requires_grad_() for n in range(2))
    points = scattered(forward.detach(), generator=torch.Generator().manual_seed(2))
    torch.autograd.gradcheck(lambda a, b: LOSSES[name](a, b, grid, points), (forward, backward))


@each_loss
def test_kernels_agree_with_the_reference(name: str):
    grid = grids()["slices"]
    maps = [0.7 * random(2, 3, *grid.shape, seed=n) for n in range(2)]
    points = scattered(maps[0], generator=torch.Generator().manual_seed(2))
    results = []
    for by_hand, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        given = [m.to(dtype).requires_grad_() for m in maps]
        with backend.use(by_hand):
            value = LOSSES[name](*given, grid, points.to(dtype))
        results.append([t.double() for t in (value.detach(), *torch.autograd.grad(value, given))])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() < 2e-3 * theirs.norm()


@each_shape
def test_one_point_in_every_block(shape: tuple[int, ...]):
    points = scattered(torch.zeros(2, len(shape), *shape), stride=2)
    blocks = tuple(-(-n // 2) for n in shape)
    assert points.shape == (2, len(shape), *blocks)
    index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in blocks], indexing="ij"))
    # Voxel n reaches from n - 0.5 to n + 0.5, so block n from 2n - 0.5 to 2n + 1.5.
    within = points - (2 * index - 0.5)
    assert (within >= 0).all()
    assert (within <= 2).all()
    assert (points >= -0.5).all()
    assert all(points[:, axis].max() <= n - 0.5 for axis, n in enumerate(shape))
    assert not torch.equal(points[0], points[1])


class TestAgainstIcon:
    """icon_registration works on the cube [0, 1]^D and takes means over the components where ours are sums.

    Its ways that are not ours: points are displaced by normal noise of the scale of the *last* axis (here switched off
    or taken over), steps are .001 of the cube's width, `BendingEnergyNet` divides by D^2 and takes mixed derivatives
    over two voxels, `DiffusionRegularizedNet` multiplies all axes by shape[2]^2 where (n - 1)^2 is meant, each axis
    with its own n, so that it is right on no grid and nearly right on large cubes only."""

    SHAPE = (12, 12, 12)

    @pytest.fixture
    def icon(self, monkeypatch: pytest.MonkeyPatch):
        icon = pytest.importorskip("icon_registration")
        monkeypatch.setattr("icon_registration.config.device", torch.device("cpu"))
        randn = torch.randn
        # The noise it adds to its points is the one that is drawn without a generator.
        monkeypatch.setattr(torch, "randn", lambda *n, **how: randn(*n, **how) if how else torch.full(n, 0.3))
        return icon

    def maps(self) -> list[Tensor]:
        return [0.5 * random(1, 3, *self.SHAPE, seed=n).float() for n in range(2)]

    def unit(self) -> Grid:
        return Grid(self.SHAPE, np.diag([*(1 / (n - 1) for n in self.SHAPE), 1.0]))

    def theirs(self, icon, loss: str):
        """Their loss around a net that returns one prescribed map, and then the other."""
        import icon_registration.network_wrappers as wrappers

        fields = [u / (self.SHAPE[0] - 1) for u in self.maps()]

        class Prescribed(wrappers.RegistrationModule):
            def forward(self, image_a: Tensor, image_b: Tensor):
                field = self.as_function(fields[int(image_a.mean() > 0.5)])
                return lambda x: x + field(x)

        net = getattr(icon.losses, loss)(Prescribed(), icon.losses.ssd, 1.0)
        net.assign_identity_map((1, 1, *self.SHAPE))
        return net(torch.zeros(1, 1, *self.SHAPE), torch.ones(1, 1, *self.SHAPE))

    def points(self, noise: float, stride: int) -> Tensor:
        index = self.unit().indices() + 0.3 * noise / self.SHAPE[-1] * (self.SHAPE[0] - 1)
        return index[(..., *[slice(None, None, stride)] * 3)]

    def test_inverse_consistency(self, icon):
        forward, backward = self.maps()
        points = self.points(1, 1)
        both = [inverse_consistency(a, b, self.unit(), points) for a, b in ((forward, backward), (backward, forward))]
        theirs = self.theirs(icon, "InverseConsistentNet").inverse_consistency_loss
        assert float(sum(both)) / 3 == pytest.approx(float(theirs), rel=1e-4)

    @pytest.mark.parametrize(("loss", "noise", "stride"), [("GradientICON", 1, 1), ("GradientICONSparse", 2, 2)])
    def test_gradicon(self, icon, loss: str, noise: float, stride: int):
        forward, backward = self.maps()
        delta = 0.001 * (self.SHAPE[0] - 1)
        ours = gradicon(forward, backward, self.unit(), self.points(noise, stride), delta)
        assert float(ours) / 3 == pytest.approx(float(self.theirs(icon, loss).inverse_consistency_loss), rel=2e-3)
