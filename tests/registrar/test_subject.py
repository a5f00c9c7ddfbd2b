"""What must not matter to the search: the unit of length, the space around the subject, where a file ends."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stepwarp.config import AffineSettings, DeformableSettings, Level
from stepwarp.geometry import Affine, Grid, Image
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.registrar.affine import register_linear
from stepwarp.registrar.deformable import optimise
from stepwarp.registrar.subject import ImagedSubject, voxel_edge

#: In a brain of 150 mm in voxels of 3 mm: of 12 and of 6 mm.
QUICK = DeformableSettings(levels=[Level(across=12.5, iterations=12), Level(across=25, iterations=12)])
LINEAR = AffineSettings(across=12.5, refine_across=(25,), candidates=2)


def padded(image, *ends):
    """The image with so many voxels more at both ends of each axis, or fewer; where it lies stays."""
    before = np.array(ends)[:, 0]
    affine = image.grid.affine.copy()
    affine[:-1, -1] = image.grid.world(-before.astype(float))
    data = F.pad(image.data, [int(n) for pair in reversed(ends) for n in pair])
    return Image(data, Grid(tuple(data.shape), affine), image.name)


def scaled(image, factor):
    """The same voxels in another unit of length."""
    return Image(image.data, Grid(image.grid.shape, np.diag([factor] * 3 + [1.0]) @ image.grid.affine), image.name)


def short(image, planes):
    """Without the lowest of the planes that show something."""
    first = int((image.data > 0.05).any(0).any(0).nonzero().min())
    return padded(image, (0, 0), (0, 0), (-first - planes, 0))


@pytest.fixture(scope="module")
def start(known):
    return register_linear(known.fixed, known.moving, "affine", NCC(), NCC(), LINEAR).transform


@pytest.fixture(scope="module")
def found(known, start):
    return optimise(known.fixed, known.moving, start, QUICK)


@pytest.mark.parametrize("factor", [0.01, 0.1, 7.0])
def test_the_unit_of_length_changes_nothing_but_the_unit(known, start, found, factor):
    fixed, moving = scaled(known.fixed, factor), scaled(known.moving, factor)
    affine = register_linear(fixed, moving, "affine", NCC(), NCC(), LINEAR).transform
    points = known.points()
    np.testing.assert_allclose(affine(factor * points) / factor, start(points), atol=1e-3)
    there = Affine(np.diag([factor] * 3 + [1.0]) @ start.matrix @ np.diag([1 / factor] * 3 + [1.0]))
    warp = optimise(fixed, moving, there, QUICK).warp
    assert (warp.displacement - found.warp.displacement).abs().mean() < 1e-3


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_empty_space_changes_nothing(known, start, found, which):
    images = {"fixed": known.fixed, "moving": known.moving}
    images[which] = padded(images[which], (5, 0), (3, 14), (0, 7))
    affine = register_linear(*images.values(), "affine", NCC(), NCC(), LINEAR).transform
    np.testing.assert_allclose(affine(known.points()), start(known.points()), atol=0.1)
    warp = optimise(*images.values(), start, QUICK).warp
    assert np.abs(warp(known.points()) - found.warp(known.points())).mean() < 1e-2


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_what_a_file_does_not_show_is_unknown_and_bends_nothing(known, start, found, which):
    """30 mm short at the bottom; taken for air, the points above the cut would be drawn to the edge."""
    images = {"fixed": known.fixed, "moving": known.moving}
    images[which] = short(images[which], 10)
    floor = images[which].grid.corners()[:, 2].min()
    points = known.points(every=5)
    heights = (points if which == "fixed" else known.truth(points))[:, 2] - floor
    points = points[(heights > 0) & (heights < 12)]
    seen = optimise(*images.values(), start, QUICK).warp
    images[which] = padded(images[which], (0, 0), (0, 0), (1, 0))
    blind = optimise(*images.values(), start, QUICK).warp
    moved, misled = (np.linalg.norm(w(points) - found.warp(points), axis=1).mean() for w in (seen, blind))
    assert moved < 0.7 * misled


def test_exchanged_images_have_the_inverse_affine(known, start):
    back = register_linear(known.moving, known.fixed, "affine", NCC(), NCC(), LINEAR).transform
    points = known.points()
    assert np.linalg.norm(back(start(points)) - points, axis=1).max() < 0.1


def test_a_level_that_would_be_no_finer_is_left_out(known, start):
    """On voxels of 3 mm there is none of 1.5 mm."""
    levels = [Level(across=across, iterations=2) for across in (12.5, 25, 50, 100, 200)]
    deformation = optimise(known.fixed, known.moving, start, DeformableSettings(levels=levels))
    assert list(dict.fromkeys(row["level_mm"] for row in deformation.trace)) == [12, 6, 3]


def test_a_level_that_would_do_harm_leaves_what_it_was_given(known):
    """Steps of a voxel, hardly smoothed, after noise in images that lie on each other already."""
    noise = 0.02 * torch.rand(known.fixed.grid.shape, generator=torch.Generator().manual_seed(0))
    moving = Image(known.fixed.data + noise, known.fixed.grid)
    wild = Level(across=25, iterations=6, step=1, smooth_update=0, smooth_field=0)
    settings = DeformableSettings(levels=[wild], similarity="ncc", patience=6)
    torn = optimise(known.fixed, moving, Affine.identity(3), settings)
    losses = [row["loss"] for row in torn.trace]
    assert losses[-1] > losses[0]
    assert not torn.warp.displacement.any()


def test_the_box_of_a_subject_takes_no_notice_of_specks(template):
    brain = template.brain
    speck = brain.data.clone()
    speck[0, 0, 0] = 1
    clean, specked = ImagedSubject(brain), ImagedSubject(Image(speck, brain.grid))
    assert (clean.low > 0).any()
    np.testing.assert_array_equal(clean.low, specked.low)
    np.testing.assert_array_equal(clean.high, specked.high)


def test_what_lies_beyond_a_cut_has_no_weight_and_other_space_has(template):
    cut = short(template.brain, 10)
    subject = ImagedSubject(cut)
    blocks = subject.all_blocks((4, 4, 4))
    _, trusted = subject.pooled(blocks, "cpu")
    inside = blocks.grid.index(cut.grid.world(np.array([[0.0, 0, 0]])))[0].round().astype(int)
    below, above = trusted[0, 0, :, :, 0], trusted[0, 0, :, :, -1]
    assert not below.any()
    assert above.all()
    assert trusted[0, 0][tuple(np.maximum(inside, 1))] > 0


@pytest.mark.parametrize(
    ("size", "finest", "edges"),
    [(150, 1, [8, 4, 2, 1]), (150, 0.5, [8, 4, 2, 1]), (150, 2, [8, 4, 2, 2]), (15, 0.1, [0.8, 0.4, 0.2, 0.1])],
)
def test_voxels_are_a_part_of_the_subject(size, finest, edges):
    assert [voxel_edge(size, across, finest) for across in (22, 44, 88, 176)] == pytest.approx(edges)


def test_masks_go_on_as_they_end(template):
    """A mask that leaves out a lesion says nothing of the space around the file."""
    brain = template.brain
    mask = torch.ones(brain.grid.shape)
    mask[20:30, 20:30, 20:30] = 0
    subject = ImagedSubject(brain, Image(mask, brain.grid))
    _, trusted = subject.pooled(subject.all_blocks((2, 2, 2)), "cpu")
    assert trusted[0, 0, 0].all()
    assert trusted.min() == 0
