import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stepwarp.data.augment import Augmentation
from stepwarp.data.manifest import Scan
from stepwarp.data.scans import CachedScans, Labelled
from stepwarp.data.settings import AugmentSettings, SynthesisSettings, box_grid
from stepwarp.data.synthesis import FREESURFER_BRAIN, FREESURFER_PARTNERS, Synthesis, like_t1
from stepwarp.errors import InputError
from stepwarp.files import read_labels
from stepwarp.geometry import LabelMap
from stepwarp.kernels.sampling import average_pool
from stepwarp.registrar.weights.recipe import Recipe, Spacing, Tissue

FLAT = {"texture": (0, 0), "blur_voxels": (0, 0)}


@pytest.fixture
def labelled(box):
    """Two sides, one structure on top, and something that is no brain."""
    index = torch.zeros(1, 1, *box.shape, dtype=torch.uint8)
    index[:, :, 3:10, 4:20, 3:15] = 1
    index[:, :, 10:17, 4:20, 3:15] = 2
    index[:, :, 8:12, 10:14, 6:12] = 3
    index[:, :, :2] = 4
    return Labelled(index, torch.tensor([0, 2, 41, 14, 507], dtype=torch.int32))


def paint(labelled, seed=0, other=None, partners=None, detail=1, **settings):
    synthesis = Synthesis(SynthesisSettings(**settings), partners, detail)
    return synthesis.paint_pair([labelled, other or labelled], np.random.default_rng(seed))


def greys(image, labelled):
    """Label -> the values that its voxels have."""
    return {
        int(label): image[labelled.index == place].unique().tolist()
        for place, label in enumerate(labelled.ids.tolist())
    }


def test_without_texture_and_blur_an_image_shows_the_labels_and_nothing_else(labelled):
    for image in paint(labelled, **FLAT):
        assert image.dtype == torch.float32
        values = greys(image, labelled)
        assert all(len(there) == 1 for there in values.values())
        assert len({there[0] for there in values.values()}) == 5
        assert values[0] == [0]


def test_both_images_of_a_pair_are_painted_alike_or_not_as_asked(labelled):
    same, other = paint(labelled, same_contrast=1, **FLAT), paint(labelled, same_contrast=0, **FLAT)
    assert torch.equal(*same)
    assert not torch.equal(*other)
    textured = paint(labelled, same_contrast=1)
    assert not torch.equal(*textured)
    assert torch.corrcoef(torch.stack(textured).flatten(1))[0, 1] > 0.9


def test_only_the_labels_to_keep_are_painted(labelled):
    image, _ = paint(labelled, keep=(2, 14), **FLAT)
    values = greys(image, labelled)
    assert values[41] == values[507] == values[0] == [0]
    assert values[2][0] > 0
    bright = greys(paint(labelled, keep=(2, 14), bright_background=1, **FLAT)[0], labelled)
    assert bright[41] == bright[507] == bright[0]
    assert bright[0][0] > 0


def test_a_share_of_images_is_stripped_with_or_without_the_fringe_and_with_rough_edges(labelled):
    def shown(image):
        return {label for label, there in greys(image, labelled).items() if max(there) > 0}

    stripped = {"keep": (2, 41), "fringe": (14,), "keep_share": 0.5, **FLAT}
    seen = [frozenset(shown(image)) for seed in range(30) for image in paint(labelled, seed, **stripped)]
    assert set(seen) == {frozenset({2, 41}), frozenset({2, 41, 14}), frozenset({2, 41, 14, 507})}
    assert 15 < sum(507 in each for each in seen) < 45
    kept = torch.isin(labelled.values(), torch.tensor([2, 41, 14]))
    rough = [paint(labelled, seed, keep=(2, 41, 14), rough=1, **FLAT)[0] > 0 for seed in range(6)]
    beside = [float((image != kept).float().mean()) for image in rough]
    assert 0.01 < max(beside) < 0.2
    assert min(beside) < 0.01


def test_greys_like_t1_and_like_t2_are_in_their_order(labelled):
    # White matter and ventricle.
    for what, sign in (("t1_like", 1), ("t2_like", -1)):
        seen = [greys(paint(labelled, seed, **{what: 1}, **FLAT)[0], labelled) for seed in range(20)]
        assert all(sign * (each[2][0] - each[14][0]) > 0 for each in seen)
    with pytest.raises(ValidationError, match="more than all of them"):
        SynthesisSettings(t1_like=0.7, t2_like=0.4)


def test_painted_in_detail_a_voxel_is_the_mean_of_its_parts(labelled):
    (fine, _), (coarse, _) = paint(labelled, **FLAT), paint(labelled, detail=2, **FLAT)
    ratio = coarse / average_pool(fine, (2, 2, 2)).clamp_min(1e-6)
    assert ratio[coarse > 0].std() < 1e-5, "but for the scale, of which bright tissue is 1"
    assert coarse.shape[2:] == tuple(n // 2 for n in fine.shape[2:])


def test_left_and_right_are_painted_alike(labelled):
    values = greys(paint(labelled, partners=FREESURFER_PARTNERS, **FLAT)[0], labelled)
    assert values[2] == values[41] != values[14]


def test_intensities_are_scaled_as_those_of_scans(labelled):
    for seed in range(10):
        for image in paint(labelled, seed):
            assert image.min() >= 0
            assert image.max() <= 1.2
            assert 0.9 < image[image > 0].quantile(0.995) < 1.1


def test_texture_and_blur_are_there_when_asked(labelled):
    plain, _ = paint(labelled, **FLAT)
    rough, _ = paint(labelled, texture=(0.05, 0.05), blur_voxels=(0, 0))
    soft, _ = paint(labelled, texture=(0, 0), blur_voxels=(1, 1))
    inside = labelled.index == 1
    assert plain[inside].std() < 1e-6
    assert rough[inside].std() > 0.02
    # Partial volume: the greys between two neighbours appear on their border.
    assert len(soft.unique()) > 50 > len(plain.unique())


def test_the_same_seed_paints_the_same(labelled):
    assert all(map(torch.equal, paint(labelled, 5), paint(labelled, 5)))
    assert not any(map(torch.equal, paint(labelled, 5), paint(labelled, 6)))


def test_a_painted_image_lies_exactly_on_its_moved_labels(box, labelled):
    augmentation = Augmentation(AugmentSettings(flip=1, elastic=1), box, FREESURFER_PARTNERS)
    motions = augmentation.motions(np.random.default_rng(0), labelled=True)
    moved = [augmentation.move_labels(labelled, motion) for motion in motions]
    assert not torch.equal(moved[0].index, moved[1].index)
    images = Synthesis(SynthesisSettings(same_contrast=0, **FLAT)).paint_pair(moved, np.random.default_rng(0))
    for image, labels in zip(images, moved, strict=True):
        shown = [image[labels.values() == label].unique() for label in labels.values().unique()]
        assert all(len(values) == 1 for values in shown)


def test_nothing_to_paint_is_said_so(labelled):
    with pytest.raises(InputError, match=r"synthesis\.keep"):
        paint(labelled, keep=(99,))


def test_the_plain_t1_shows_white_matter_brightest_and_no_skull(box, labelled):
    image = like_t1(LabelMap(labelled.values()[0, 0], box))
    values = greys(image.data[None, None], labelled)
    assert values[2] == values[41] == [1]
    assert values[507] == values[0] == [0]
    assert 0 < values[14][0] < 0.5
    with pytest.raises(InputError, match="FreeSurfer"):
        like_t1(LabelMap(torch.full(box.shape, 999), box))


@pytest.mark.data
def test_real_label_maps_become_brains(data_folder):
    path = data_folder / "synthseg" / "training_seg_01.nii.gz"
    labels = read_labels(path)
    brain = torch.isin(labels.data, torch.tensor(FREESURFER_BRAIN))
    index = brain.nonzero().double().mean(0).numpy()
    centre = labels.grid.linear @ index + labels.grid.affine[:3, 3]
    recipe = Recipe(intensities=Tissue(), grid=Spacing(mm=4))
    scan = Scan("01", path, path)
    box = box_grid(tuple(centre), (160, 192, 160), 4)
    labelled = CachedScans([scan], {"01": np.eye(4)}, box, recipe, labels=True)["01"].labelled()
    assert int(labelled.ids.max()) > 500
    present = torch.isin(labelled.values(), torch.tensor(FREESURFER_BRAIN))
    assert int(present.sum()) * 64 == pytest.approx(int(brain.sum()), rel=0.03)
    image, _ = paint(labelled, keep=FREESURFER_BRAIN, partners=FREESURFER_PARTNERS, blur_voxels=(0, 0))
    assert (image[~present] == 0).all()
    assert (image[present] > 0).float().mean() > 0.97
    # Each side of FreeSurfer's table is there, about as large as the other, and on its own side of the brain.
    for left, right in ((2, 41), (3, 42), (10, 49), (17, 53), (7, 46), (12, 51)):
        sides = [(labelled.values() == label).nonzero()[:, 2].float() for label in (left, right)]
        assert len(sides[0]) == pytest.approx(len(sides[1]), rel=0.35)
        assert sides[0].mean() < sides[1].mean()
