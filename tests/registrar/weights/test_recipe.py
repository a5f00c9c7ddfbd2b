"""What a network is given."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from stepwarp.errors import InputError
from stepwarp.geometry import Affine, Grid, Image
from stepwarp.registrar.weights.recipe import FullExtent, Maximum, Modality, Quantiles, Recipe, Spacing, Window


def volume(values: torch.Tensor) -> Image:
    return Image(values, Grid.isotropic(tuple(values.shape)), "volume")


def test_intensities():
    values = torch.arange(1000.0).reshape(10, 10, 10)
    scaled = Quantiles().scale(volume(values)).data
    assert (scaled.min(), scaled.max()) == (0, 1)
    assert scaled.flatten()[494] == pytest.approx(494 / 989)
    lungs = values * 4 - 2000
    for recipe in (Modality(), Window(low=-1000, high=1000)):
        scaled = recipe.scale(volume(lungs)).data.flatten()
        assert scaled[250] == 0
        assert scaled[500] == 0.5
        assert scaled[800] == 1
    assert torch.equal(Modality().scale(volume(values)).data, Quantiles().scale(volume(values)).data)
    brightest = Maximum(to=0.9).scale(volume(values)).data
    assert brightest.max() == pytest.approx(0.9)
    assert brightest.flatten()[333] == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize("recipe", [Quantiles(), Modality(), Maximum()])
def test_an_image_of_nothing(recipe):
    with pytest.raises(InputError, match="volume: no voxel"):
        recipe.scale(volume(torch.zeros(4, 4, 4)))


def test_the_full_extent_is_what_interpolate_makes_of_it(pair):
    """F.interpolate of ITK's array (z, y, x), as icon_registration calls it; also where voxels are left out."""
    shape = (30, 9, 20)
    recipe = Recipe(intensities=Window(low=0, high=1000), grid=FullExtent(shape=shape, axes="SAR"))
    prepared = recipe.prepare(*pair)
    for image, prepared_image in zip(pair, (prepared.fixed, prepared.moving), strict=True):
        array = (image.data / 1000).permute(2, 1, 0)[None, None]
        expected = F.interpolate(array, size=shape, mode="trilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(prepared_image.data, expected, atol=1e-5, rtol=0)
    faces = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], indexing="ij")).reshape(3, -1).T
    world = Affine(prepared.fixed.grid.affine)(faces)
    own = np.sort(Affine(pair[0].grid.inverse_affine)(world), axis=0)
    np.testing.assert_allclose(own[[0, -1]], [[-0.5] * 3, np.array(pair[0].grid.shape) - 0.5], atol=1e-9)


@pytest.mark.parametrize("axes", ["RAS", "SAR", "LPS", "PIR"])
def test_axes_point_where_their_letters_say(axes, pair):
    grid = FullExtent(shape=(8, 9, 10), axes=axes).grid(pair[0])
    for letter, column in zip(axes, grid.linear.T, strict=True):
        world = next(number for number, letters in enumerate(("RL", "AP", "SI")) if letter in letters)
        assert np.abs(column).argmax() == world
        assert (column[world] > 0) == (letter in "RAS")
    assert np.allclose(grid.centre, pair[0].grid.centre)


@pytest.mark.parametrize("axes", ["RA", "RLS", "XYZ", "RASS", ""])
def test_axes_that_are_none(axes):
    with pytest.raises(ValidationError, match="three letters"):
        FullExtent(shape=(8, 8, 8), axes=axes)


@pytest.mark.parametrize(("mm", "multiple"), [(1.0, 1), (2.0, 4), (3.3, 8)])
def test_a_grid_of_a_spacing_covers_the_image(mm, multiple, pair):
    own, grid = pair[0].grid, Spacing(mm=mm, multiple=multiple).grid(pair[0])
    assert np.allclose(grid.spacing, mm)
    assert all(n % multiple == 0 for n in grid.shape)
    assert np.allclose(grid.centre, own.centre)
    assert np.allclose(grid.linear / mm, own.linear / own.spacing)
    sizes, needed = np.array(grid.shape) * mm, np.array(own.shape) * own.spacing
    assert (sizes > needed - 0.01 * mm).all()
    assert (sizes < needed + mm * multiple).all()


def test_both_images_in_one_world_unless_there_is_a_start(pair):
    fixed = pair[0]
    recipe = Recipe(intensities=Window(low=0, high=300), grid=Spacing(mm=1.5))
    prepared = recipe.prepare(fixed, fixed)
    torch.testing.assert_close(prepared.fixed.data, prepared.moving.data)
    start = Affine(np.array([[1, 0, 0, 2.0], [0, 1, 0, -1], [0, 0, 1, 3], [0, 0, 0, 1]]) @ np.eye(4))
    elsewhere = Image(fixed.data, Grid(fixed.grid.shape, start.matrix @ fixed.grid.affine))
    torch.testing.assert_close(recipe.prepare(fixed, elsewhere, start).moving.data, prepared.fixed.data)
    assert recipe.prepare(fixed, elsewhere, start).start is start


def test_a_finer_image_is_averaged_not_thinned_out():
    """Single voxels in a checkerboard: their mean, not one or the other."""
    index = np.indices((24, 24, 24)).sum(0) % 2
    fine = Image(torch.from_numpy(index).float(), Grid.isotropic((24, 24, 24), 0.5), "fine")
    read = Spacing(mm=1.0).read(fine, Affine.identity(3), Spacing(mm=1.0).grid(fine))
    torch.testing.assert_close(read.data, torch.full((12, 12, 12), 0.5))


def test_the_grid_can_leave_out_the_empty_space():
    """A small bright block in a large image, off its centre and at its border along one axis."""
    data = torch.zeros(40, 50, 60)
    data[10:20, 0:20, 30:40] = 1
    affine = np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = (5, -7, 11)
    image = Image(data, Grid(data.shape, affine), "block")
    grid = Spacing(mm=2, margin_mm=6).grid(image)
    ends = [grid.affine @ [*(np.array(grid.shape) * side - 0.5), 1] for side in (0, 1)]
    low, high = (np.linalg.inv(affine) @ end for end in ends)
    np.testing.assert_allclose(low[:3], [3.5, -0.5, 23.5])
    np.testing.assert_allclose(high[:3], [25.5, 25.5, 45.5])
    empty = Image(torch.zeros(10, 12, 14), Grid.isotropic((10, 12, 14), 1.0), "empty")
    assert Spacing(mm=2, margin_mm=6).grid(empty) == Spacing(mm=2).grid(empty)


def test_images_of_other_dimensions(pair):
    flat = volume(torch.rand(9, 9))
    with pytest.raises(InputError, match="2 axes"):
        Recipe(intensities=Quantiles(), grid=FullExtent(shape=(8, 8, 8))).prepare(flat, flat)
    with pytest.raises(InputError, match="2 axes"):
        Recipe(intensities=Quantiles(), grid=Spacing(mm=2)).prepare(pair[0], flat)
    still = Recipe(intensities=Quantiles(), grid=FullExtent(shape=(7, 8))).prepare(flat, flat)
    assert still.moving.data.shape == (7, 8)


@pytest.mark.parametrize(
    "grid", [Spacing(mm=1e-300), Spacing(mm=1, multiple=10**19), FullExtent(shape=(30_000, 30_000, 30_000))]
)
def test_a_grid_that_fits_into_no_memory_is_refused(grid):
    with pytest.raises(InputError, match="volume: the network wants it on a grid of"):
        grid.grid(volume(torch.zeros(4, 4, 4)))
