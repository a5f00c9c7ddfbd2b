import numpy as np
import pytest
import torch

from stepwarp.geometry import Affine, Grid, Image, LabelMap

DTYPES = [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64]


def test_labels_are_never_invented(grid: Grid, moving_grid: Grid, affine: Affine, smooth_field):
    labels = torch.tensor([0, 3, 1000, 7])[torch.randint(0, 4, moving_grid.shape)]
    warped = LabelMap(labels, moving_grid).warp(affine @ smooth_field(grid), onto=grid)
    assert isinstance(warped, LabelMap)
    assert set(warped.data.unique().tolist()) == {0, 3, 7, 1000}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels_keep_their_type_and_all_their_digits(dtype: torch.dtype, grid: Grid, affine: Affine):
    """Beyond 2^24 a float32 would round an odd id to an even one."""
    largest = min(torch.iinfo(dtype).max, 2**53 + 1)
    labels = torch.full(grid.shape, largest, dtype=dtype)
    warped = LabelMap(labels, grid).warp(affine).data
    assert warped.dtype == dtype
    assert {int(v) for v in np.unique(warped.numpy())} == {0, largest}


@pytest.mark.parametrize("kind", [Image, LabelMap])
def test_outside_reads_zero(kind: type, grid: Grid):
    ones = kind(torch.ones(grid.shape, dtype=torch.int32), grid)
    away = Affine(np.block([[np.eye(3), np.full((3, 1), 1000.0)], [np.zeros(3), 1]]))
    assert (ones.warp(away).data == 0).all()


@pytest.mark.parametrize("kind", [Image, LabelMap])
def test_identity_changes_no_voxel(kind: type, grid: Grid, noise):
    volume = kind((noise(grid.shape) * 100).int(), grid, "scan")
    same = volume.warp(Affine.identity(3))
    assert same.name == "scan"
    assert same.grid == grid
    torch.testing.assert_close(same.data.double(), volume.data.double(), rtol=0, atol=1e-3 * (kind is Image))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int16, torch.float16], ids=str)
def test_intensities_become_floats(dtype: torch.dtype, grid: Grid, noise):
    data = (noise(grid.shape) * 50).to(dtype)
    warped = Image(data, grid).warp(Affine.identity(3)).data
    # Only what float32 does not hold comes as float64, and stays it.
    assert warped.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(warped.float(), data.float(), rtol=0, atol=1e-3)


def test_an_affine_after_a_field_interpolates_once(grid: Grid, affine: Affine, smooth_field):
    """A ramp survives one linear interpolation unchanged: its values are a function of the mapped points alone."""
    wide = Grid((60, 60, 60), np.vstack([np.c_[1.5 * np.eye(3), np.full(3, -45.0)], [0, 0, 0, 1]]))
    world = wide.indices(dtype=torch.float64)[0] * 1.5 - 45
    ramp = Image((world[0] + 2 * world[1] - world[2]).float(), wide)
    transform = affine @ smooth_field(grid)
    voxels = grid.indices(dtype=torch.float64)[0].flatten(1).T.numpy() @ grid.linear.T + grid.affine[:3, 3]
    expected = transform(voxels) @ [1, 2, -1]
    np.testing.assert_allclose(ramp.warp(transform, onto=grid).data.flatten(), expected, atol=2e-3)


@pytest.mark.parametrize("kind", [Image, LabelMap])
def test_a_picture_in_two_dimensions(kind: type):
    grid = Grid.isotropic((6, 5), 0.5)
    picture = kind(torch.arange(30).reshape(6, 5), grid)
    shift = Affine(np.array([[1, 0, 0.5], [0, 1, -0.5]]))
    shifted = picture.warp(shift).data
    torch.testing.assert_close(shifted[:-1, 1:], picture.data[1:, :-1].to(shifted.dtype))
    assert (shifted[-1] == 0).all()
    assert (shifted[:, 0] == 0).all()


def test_a_volume_may_want_a_gradient(grid: Grid, smooth_field, noise):
    data = noise(grid.shape).requires_grad_()
    Image(data, grid).warp(smooth_field(grid)).data.sum().backward()
    assert data.grad is not None
    assert data.grad.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Image, LabelMap])
def test_cuda_warps_alike(kind: type, grid: Grid, moving_grid: Grid, affine: Affine, smooth_field, noise, cuda):
    data, transform = (noise(moving_grid.shape) * 100).int(), affine @ smooth_field(grid)
    on_cuda = kind(data.to(cuda), moving_grid).warp(transform, onto=grid).data
    assert on_cuda.device.type == "cuda"
    plain = kind(data, moving_grid).warp(transform, onto=grid).data
    torch.testing.assert_close(on_cuda.cpu(), plain, rtol=0, atol=1e-2 * (kind is Image))


def test_a_coarser_image_has_the_means_of_blocks_where_the_blocks_are():
    grid = Grid((5, 4, 6), np.diag([1.0, 2.0, 3.0, 1.0]))
    values = torch.arange(5.0)[:, None, None].expand(grid.shape).contiguous()
    image = Image(values.to(torch.int16), grid, "ramp").coarser((2, 1, 3))
    assert image.grid.shape == (3, 4, 2)
    assert image.name == "ramp"
    torch.testing.assert_close(image.data[:, 0, 0], torch.tensor([0.5, 2.5, 2.0]))
    np.testing.assert_allclose(image.grid.affine[:3, 3], [0.5, 0, 3])
