import numpy as np
import pytest
import torch

from stepwarp.data.augment import (
    Augmentation,
    Motion,
    left_right_partners,
    teacher_after,
    thick_slices,
)
from stepwarp.data.scans import Labelled
from stepwarp.data.settings import AffineAmounts, AugmentSettings, box_grid
from stepwarp.geometry import Affine, DisplacementField, Image, LabelMap
from stepwarp.kernels import jacobian

NOTHING = dict.fromkeys(("flip", "elastic", "bias", "gamma", "blur", "noise", "slices", "cut"), 0)
STILL = {"both": AffineAmounts(), "one": AffineAmounts()}
PARTNERS = {2: 41, 41: 2}


def rng(seed=0):
    return np.random.default_rng(seed)


def only(**more):
    return AugmentSettings(**{**NOTHING, **STILL, **more})


@pytest.fixture
def image(box):
    """Smooth values with a black margin, largest 1.1."""
    lines = torch.meshgrid(*[torch.linspace(0, 3, n) for n in box.shape], indexing="ij")
    values = 0.6 + 0.5 * torch.sin(lines[0] + 2 * lines[1]) * torch.cos(lines[2])
    values[:3] = values[-3:] = values[:, :3] = 0
    return values[None, None]


@pytest.fixture
def labelled(box):
    index = torch.zeros(1, 1, *box.shape, dtype=torch.uint8)
    index[:, :, 4:9, 6:16, 5:12] = 1
    index[:, :, 11:16, 6:16, 5:12] = 2
    return Labelled(index, torch.tensor([0, 2, 41], dtype=torch.int32))


def test_an_image_moves_as_the_motion_says_and_is_read_once(box, image, labelled):
    for motion in Augmentation(AugmentSettings(elastic=1, flip=1), box).motions(rng()):
        # The same through the package's own transforms: an affine after a field is one interpolation there, too.
        assert motion.bend is not None
        expected = Image(image[0, 0], box).warp(motion.transform()).data
        assert torch.allclose(motion.apply(image, box)[0, 0], expected, atol=1e-5)
        expected = LabelMap(labelled.index[0, 0], box).warp(motion.transform()).data
        assert torch.equal(motion.apply(labelled.index, box, "nearest")[0, 0], expected)


def test_what_turns_both_leaves_their_relation(box, image):
    fixed, moving = Augmentation(only(both=AffineAmounts(degrees=20, scale=0.2, shear=0.1, mm=8)), box).motions(rng())
    assert torch.equal(fixed.apply(image, box), moving.apply(image, box))
    assert not torch.equal(fixed.apply(image, box), image)
    fixed, moving = Augmentation(only(one=AffineAmounts(degrees=20)), box).motions(rng())
    assert fixed.is_still
    assert not moving.is_still


def test_affines_stay_within_their_amounts(box):
    augmentation = Augmentation(only(both=AffineAmounts(degrees=10, scale=0.1, mm=5)), box)
    for seed in range(50):
        matrix = augmentation.motions(rng(seed))[0].affine
        scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
        assert (scales >= 0.9).all()
        assert (scales <= 1.1).all()
        assert (np.abs((matrix @ [*box.centre, 1])[:3] - box.centre) <= 5).all()
        turn = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
        assert np.degrees(np.arccos((np.trace(turn) - 1) / 2)) <= 10 * np.sqrt(3)


@pytest.mark.parametrize("sd", [2, 50])
def test_bending_is_smooth_and_folds_nothing_however_strong(sd):
    box = box_grid((0, 0, 0), (120, 90, 100), 2)
    augmentation = Augmentation(only(elastic=1, elastic_mm=24, elastic_sd_mm=sd), box)
    for seed in range(5):
        bend = augmentation.motions(rng(seed))[0].bend
        assert jacobian.determinant(bend).min() > 0
        assert bend.norm(dim=1).max() * 2 > sd / 10


def test_mirrored_label_maps_have_their_sides_swapped(box, labelled):
    augmentation = Augmentation(only(flip=1), box, PARTNERS)
    for motion in augmentation.motions(rng(), labelled=True):
        moved = augmentation.move_labels(labelled, motion).values()
        # What was left is on the other side, and is called right: 2 stays on its side of the box.
        assert torch.equal(moved.flip(2), torch.tensor([0, 41, 2])[labelled.index.int()].int())
        assert (moved == 2).nonzero()[:, 2].float().mean() < 10 < (moved == 41).nonzero()[:, 2].float().mean()


def test_without_partners_labels_are_not_mirrored_and_images_are(box, image):
    augmentation = Augmentation(only(flip=1), box)
    assert all(motion.is_still for motion in augmentation.motions(rng(), labelled=True))
    assert all(torch.allclose(motion.apply(image, box), image.flip(2)) for motion in augmentation.motions(rng()))


def test_the_share_of_pairs_that_is_mirrored_is_the_one_asked_for(box):
    augmentation = Augmentation(only(flip=0.3), box)
    mirrored = [augmentation.motions(rng(seed))[0].mirrored for seed in range(300)]
    assert 0.2 < np.mean(mirrored) < 0.4


@pytest.mark.parametrize("what", ["bias", "gamma", "blur", "noise", "slices"])
def test_each_change_of_intensity_alone_keeps_range_and_background(box, image, what):
    augmentation = Augmentation(only(**{what: 1}), box)
    before = image.clone()
    for seed in range(3):
        varied = augmentation.vary(image, rng(seed))
        assert type(varied) is torch.Tensor
        assert varied.dtype == torch.float32
        assert varied.shape == image.shape
        assert varied.min() >= 0
        assert varied.max() <= image.max()
        assert (varied - image).abs().mean() > 1e-4
        if what not in ("blur", "slices"):
            assert (varied[image == 0] == 0).all()
    assert torch.equal(image, before)


def test_nothing_asked_is_nothing_done(box, image):
    augmentation = Augmentation(only(), box)
    assert all(motion.is_still for motion in augmentation.motions(rng()))
    assert torch.equal(augmentation.vary(image, rng()), image)


def test_the_same_seed_gives_the_same_and_another_another(box, image):
    settings = AugmentSettings(elastic=1, bias=1, gamma=1, blur=1, noise=1, slices=1)

    def result(seed):
        augmentation, generator = Augmentation(settings, box), rng(seed)
        motions = augmentation.motions(generator)
        return [augmentation.vary(motion.apply(image, box), generator) for motion in motions]

    assert all(map(torch.equal, result(3), result(3)))
    assert not any(map(torch.equal, result(3), result(4)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_blur_one_axis_and_keep_the_mean(axis):
    image = torch.rand(1, 1, 24, 20, 16, generator=torch.Generator().manual_seed(0))
    result = thick_slices(image, axis, 4)
    assert result.mean() == pytest.approx(float(image.mean()), abs=0.02)
    steps = [float(result.diff(dim=n).abs().mean() / image.diff(dim=n).abs().mean()) for n in (2, 3, 4)]
    # Along the axis a slice of four voxels is a line from centre to centre; across it, the mean of four.
    assert steps.pop(axis) < 0.2 < min(steps)
    flat = torch.ones(1, 1, 24, 20, 17)
    assert torch.allclose(thick_slices(flat, axis, 3.3), flat, atol=1e-6)


def test_of_a_field_of_view_that_is_cut_one_end_is_missing(box):
    augmentation, ends = Augmentation(only(cut=1), box), set()
    for seed in range(40):
        missing = augmentation.vary(torch.ones(1, 1, *box.shape), rng(seed))[0, 0] == 0
        planes = [missing.movedim(axis, 0).flatten(1).all(1) for axis in range(3)]
        (axis,) = (axis for axis in range(3) if planes[axis].any())
        assert missing.float().mean() == pytest.approx(float(planes[axis].float().mean())), "whole planes alone"
        assert missing.float().mean() < 0.25
        ends.add((axis, bool(planes[axis][0])))
    assert len(ends) == 6


def test_a_teacher_follows_what_is_done_to_its_images(box):
    generator = torch.Generator().manual_seed(0)
    teacher = Affine(np.array([[1.05, 0.02, 0, 1], [0, 0.97, 0.03, -0.5], [0, 0, 1, 0.7], [0, 0, 0, 1.0]]))
    fixed, moving = Augmentation(AugmentSettings(elastic=1, flip=1), box).motions(rng(1))
    result = DisplacementField(teacher_after(teacher, fixed, moving), box)
    # A point that is seen at x was at fixed(x); it belongs to teacher(fixed(x)), which is now seen at result(x).
    index = torch.rand(200, 3, generator=generator, dtype=torch.float64) * 6 + torch.tensor([7.0, 9, 6])
    points = index.round().numpy() @ box.linear.T + box.affine[:3, 3]
    there = moving.transform()(result(points))
    assert np.linalg.norm(there - teacher(fixed.transform()(points)), axis=1).max() < 0.05


def test_partners_are_found_by_name():
    names = {36: "Right Caudate", 37: "Left Caudate", 4: "3rd Ventricle", 31: "Right Amygdala"}
    names |= {17: "Left-Hippocampus", 53: "Right-Hippocampus", 100: "ctx_lh_insula", 200: "ctx_rh_insula"}
    assert left_right_partners(names) == {36: 37, 37: 36, 17: 53, 53: 17, 100: 200, 200: 100}


def test_a_still_motion_returns_what_it_was_given(box, image):
    assert Motion(box, np.eye(4)).apply(image, box) is image
