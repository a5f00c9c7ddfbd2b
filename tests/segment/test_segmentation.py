"""What is made of the probabilities of a segmenter, on the image's own grid."""

import numpy as np
import pytest
import torch

from stepwarp.errors import InputError
from stepwarp.files import read_image
from stepwarp.geometry import Affine, Grid, Image
from stepwarp.segment import Segmentation, load_segmenter, segment
from stepwarp.segment.segmentation import one_piece

from .conftest import KNOWN

#: 2 mm voxels of the network, 1 mm voxels of the image, their centres half a coarse voxel apart.
COARSE = Grid((16, 16, 16), np.diag([2.0, 2.0, 2.0, 1.0]))
FINE = Grid((32, 32, 32), np.array([[1, 0, 0, -0.5], [0, 1, 0, -0.5], [0, 0, 1, -0.5], [0, 0, 0, 1.0]]))


def made(labels, image=FINE):
    """The segmentation of a map of classes (*COARSE.shape), sure of all of it."""
    probabilities = torch.nn.functional.one_hot(labels, 1 + len(KNOWN)).movedim(-1, 0).float()
    return Segmentation(Image(torch.zeros(image.shape), image, "head.nii.gz"), tuple(KNOWN), probabilities, COARSE)


@pytest.fixture
def classes():
    """A cube of white matter with a hole and a stem below it, fluid beside them, and a speck of white far off."""
    labels = torch.zeros(COARSE.shape, dtype=torch.long)
    labels[4:10, 4:10, 6:12] = 1
    labels[6:8, 6:8, 8:10] = 0
    labels[5:9, 5:9, 3:6] = 2
    labels[10:12, 4:10, 6:12] = 3
    labels[14, 14, 14] = 1
    return labels


def test_the_mask_is_one_piece_without_holes(classes):
    mask = made(classes).mask
    assert mask.grid == FINE
    assert mask.data[13, 13, 17] == 1, "the hole"
    assert mask.data[28:30, 28:30, 28:30].sum() == 0, "the speck"
    assert torch.equal(torch.from_numpy(one_piece(mask.data.numpy() > 0)), mask.data > 0)


def test_structures_have_their_ids_where_they_are(classes):
    found = made(classes).structures.data
    assert set(found.unique().tolist()) == {0, 2, 16, 24}
    at = [found[10, 10, 20], found[13, 13, 8], found[22, 14, 18], found[13, 13, 17], found[29, 29, 29]]
    assert [int(each) for each in at] == [2, 16, 24, 0, 0]


def test_volumes_are_of_the_image_s_voxels(classes):
    volumes = made(classes).volumes
    assert volumes["white"] == pytest.approx((6**3 - 2**3) * 8e-3, rel=0.1)
    assert volumes["stem"] == pytest.approx(4 * 4 * 3 * 8e-3, rel=0.2)
    assert volumes["brain mask"] >= volumes["white"] + volumes["stem"]


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_an_image_stored_otherwise_has_the_same_structures(classes, axes):
    affine = FINE.affine @ np.array([[-1, 0, 0, 31], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    turned = Grid(tuple(FINE.shape[a] for a in axes), affine[:, [*axes, 3]])
    straight, other = made(classes), made(classes, turned)
    back = other.structures.data.permute(*np.argsort(axes).tolist()).flip(0)
    assert torch.equal(back, straight.structures.data)
    assert other.volumes == straight.volumes


def test_nothing_is_nothing():
    found = made(torch.zeros(COARSE.shape, dtype=torch.long))
    assert found.mask.data.sum() == found.structures.data.sum() == 0
    assert found.volumes == {"brain mask": 0, "white": 0, "stem": 0, "fluid": 0}
    assert found.head.why_not is not None
    assert found.head.layout_mm is None


@pytest.mark.parametrize(("shape", "spacing"), [((9, 8, 7), 1.0), ((40, 60, 33), 1.5), ((70, 20, 50), 2.0)])
def test_images_of_any_size_are_segmented_on_their_own_grid(tiny, one_thread, shape, spacing):
    image = Image(torch.rand(shape, generator=torch.Generator().manual_seed(1)), Grid.isotropic(shape, spacing), "any")
    found = segment(image, tiny)
    assert found.structures.grid == found.mask.grid == image.grid
    assert found.probabilities.shape[1:] == found.grid.shape
    torch.testing.assert_close(found.probabilities.sum(0), torch.ones(found.grid.shape))


def test_a_head_that_lies_otherwise_is_seen_upright_where_that_is_known(tiny, one_thread):
    straight = Image(
        torch.rand(30, 26, 28, generator=torch.Generator().manual_seed(1)), Grid.isotropic((30, 26, 28), 2.0)
    )
    turn = Affine(np.array([[1.0, 0, 0, 5], [0, 0, -1, 20], [0, 1, 0, -9]]))
    lying = Image(straight.data, Grid(straight.grid.shape, turn.matrix @ straight.grid.affine), "lying")
    expected, found = segment(straight, tiny), segment(lying, tiny, turn.inverse())
    torch.testing.assert_close(found.probabilities, expected.probabilities)
    assert np.allclose(found.grid.affine, turn.matrix @ expected.grid.affine)
    assert torch.equal(found.structures.data, expected.structures.data)
    assert not torch.equal(segment(lying, tiny).structures.data, expected.structures.data)


def test_what_is_larger_than_the_training_s_images_is_looked_at_again_around_the_brain(tiny, one_thread, monkeypatch):
    seen = []
    look = type(tiny).probabilities

    def watched(self, image):
        seen.append(image.grid)
        found = torch.zeros_like(look(self, image))
        found[0] = 1
        inside = (torch.tensor(image.grid.world(image.grid.indices()[0].movedim(0, -1).numpy())) - 30).norm(dim=-1) < 8
        found[:2, inside] = torch.tensor([[0.0], [1.0]])
        return found

    monkeypatch.setattr(type(tiny), "probabilities", watched)
    whole = Image(torch.rand(60, 60, 60, generator=torch.Generator().manual_seed(1)), Grid.isotropic((60,) * 3, 2.0))
    assert segment(whole, tiny).grid.shape == tiny.header.box
    assert len(seen) == 2
    assert np.allclose(seen[1].centre, 30, atol=2)


def test_what_spans_more_than_a_body_is_refused(tiny):
    vast = Image(torch.eye(30).expand(30, 30, 30).contiguous(), Grid.isotropic((30, 30, 30), 40.0), "vast.nii")
    with pytest.raises(InputError, match=r"vast\.nii: shows .* mm, and no head is that large"):
        segment(vast, tiny)


@pytest.fixture(scope="module")
def shipped():
    return load_segmenter()


@pytest.mark.data
def test_a_real_brain_is_told_from_what_is_none(data_folder, shipped):
    brain = read_image(data_folder / "oasis" / "1013_SS.nii.gz")
    found = segment(brain, shipped)
    assert found.head.why_not is None
    assert 1100 < found.head.millilitres < 1300
    mask, true = found.mask.data > 0, brain.data > 0
    assert 2 * (mask & true).sum() / (mask.sum() + true.sum()) > 0.97


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["chest/moving_other_scan", "sphere", "mask", "upside down"])
def test_what_is_no_head_is_not_taken_for_one(data_folder, shipped, name):
    brain = read_image(data_folder / "oasis" / "1013_SS.nii.gz")
    ball = (np.indices((90, 90, 90)) - 44.5) ** 2
    image = {
        "sphere": lambda: Image(torch.from_numpy(ball.sum(0) < 35**2).float(), Grid.isotropic((90,) * 3, 2.0)),
        "mask": lambda: Image((brain.data > 0).float(), brain.grid),
        "upside down": lambda: Image(brain.data.flip(2), brain.grid),
    }.get(name, lambda: read_image(data_folder / f"{name}.nii.gz"))()
    assert segment(image, shipped).head.why_not is not None
