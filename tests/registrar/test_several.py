"""Several pairs of images of the same two subjects, as the linear and the deformable stage take them."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from stepwarp.config import AffineSettings, DeformableSettings, Level
from stepwarp.geometry import Affine, Grid, Image
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.registrar.affine import register_linear
from stepwarp.registrar.deformable import optimise
from stepwarp.registrar.pairs import ImagePair

LINEAR = AffineSettings(across=12.5, refine_across=(), candidates=1)
SETTINGS = DeformableSettings(levels=(Level(across=12, iterations=8),))


def folded(image):
    """Another contrast: grey at a tissue's, brighter on both sides of it."""
    return Image(torch.where(image.data > 0.05, (image.data - 0.6).abs(), 0), image.grid, "folded")


def elsewhere(image):
    """The same image on a coarser grid whose axes lie otherwise."""
    turn = Rotation.from_euler("xyz", (9, -7, 12), degrees=True).as_matrix()
    shape = (44, 52, 40)
    linear = turn * (4.0, -4.5, 5.0)
    offset = image.grid.centre - linear @ ((np.array(shape) - 1) / 2)
    return image.warp(Affine.identity(3), Grid(shape, np.vstack([np.column_stack([linear, offset]), [0, 0, 0, 1]])))


def still(image):
    """Something that says nothing of how the subject lies: a ball about its centre of mass."""
    index = image.grid.indices()[0]
    mass = (index * image.data).flatten(1).sum(1) / image.data.sum()
    away = (index - mass[:, None, None, None]).square().sum(0).sqrt() * 3
    return Image((1 - away / 60).clamp_min(0), image.grid, "ball")


@pytest.fixture(scope="module")
def start(known):
    points = known.points()
    homogeneous = np.column_stack([points, np.ones(len(points))])
    return Affine(np.linalg.lstsq(homogeneous, known.truth(points), rcond=None)[0].T)


def test_a_pair_that_is_given_twice_is_as_one_and_one_of_weight_2_as_two(known, start):
    def found(*further):
        return optimise(known.fixed, known.moving, start, SETTINGS, further=further)

    same = ImagePair(known.fixed, known.moving, LNCC())
    other = [ImagePair(folded(known.fixed), folded(known.moving), SSD(), weight) for weight in (1.0, 2.0)]
    once, again = found(), found(same)
    torch.testing.assert_close(again.warp.displacement, once.warp.displacement, atol=1e-4, rtol=0)
    losses = [[row["loss"] for row in each.trace] for each in (once, again)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    twice, doubled, single = found(other[0], other[0]), found(other[1]), found(other[0])
    torch.testing.assert_close(doubled.warp.displacement, twice.warp.displacement, atol=1e-3, rtol=0)
    assert (single.warp.displacement - twice.warp.displacement).abs().max() > 0.05


def test_the_linear_stage_is_the_same_too(known):
    same, beside = ImagePair(known.fixed, known.moving, NCC()), Affine.identity(3)
    once, again = (
        register_linear(known.fixed, known.moving, "rigid", NCC(), NCC(), LINEAR, initial=beside, further=further)
        for further in ((), (same,))
    )
    points = known.points()
    assert np.linalg.norm(once.transform(points) - again.transform(points), axis=1).max() < 0.02
    assert again.loss == pytest.approx(once.loss, abs=1e-5)


def test_what_a_further_pair_shows_on_grids_of_its_own_is_found_where_the_first_shows_nothing(moved_by):
    turn = Rotation.from_rotvec(np.radians(35) * np.array([0.6, -0.5, 0.62])).as_matrix()
    case = moved_by(Affine(np.column_stack([turn, (40.0, -25.0, 30.0)])))
    fixed, moving = still(case.fixed), still(case.moving)
    told = ImagePair(elsewhere(case.fixed), elsewhere(case.moving), LNCC())
    alone, both = (
        register_linear(fixed, moving, "rigid", NCC(), LNCC(), LINEAR, further=further).transform
        for further in ((), (told,))
    )
    assert case.error(alone) > 10
    assert case.error(both) < 1


def test_a_further_pair_bends_what_the_first_says_nothing_of(known, start):
    told = ImagePair(elsewhere(known.fixed), elsewhere(known.moving), LNCC())
    fixed, moving = still(known.fixed), still(known.fixed).warp(start.inverse(), known.moving.grid)
    finer = DeformableSettings(levels=(Level(across=12, iterations=20), Level(across=25, iterations=20)))
    found = optimise(fixed, moving, start, finer, further=(told,))
    points = known.points()
    error = np.linalg.norm(start(found.warp(points)) - known.truth(points), axis=1).mean()
    assert error < 0.75 * known.error(start)
