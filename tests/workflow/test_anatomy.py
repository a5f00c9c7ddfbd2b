"""What a segmenter knows of a pair: masks of its brains, and whether structures meet."""

import json

import numpy as np
import pytest
import torch

from stepwarp.errors import InputError
from stepwarp.geometry import Affine, Grid, Image, LabelMap
from stepwarp.layout import MASKS
from stepwarp.segment import KnownStructure, Segmentation
from stepwarp.segment.head import Head
from stepwarp.workflow import anatomy, verdict
from stepwarp.workflow.register import register

KNOWN = (
    KnownStructure(id=2, name="dark", millilitres=(1, 50), centre=(0, 0, 5)),
    KnownStructure(id=16, name="bright", millilitres=(1, 50), centre=(0, 0, 0)),
    KnownStructure(id=24, name="fluid", brain=False, millilitres=(1, 50), centre=(0, 0, 0)),
)
HEAD, NONE = Head(0.9, 1.0, 2.0, 1200.0), Head(0.4, 0.3, 40.0, 2199.0)


@pytest.fixture
def heads(monkeypatch):
    """A segmenter that tells dark from bright tissue; `[name]` says what the image of that name is taken for, as it
    lies. One that is laid otherwise is a head."""
    taken = {}

    def segment(image, segmenter, upright=None):
        if upright is not None and taken.get("turned") == "too large":
            raise InputError("shows too much")
        bright = image.data / image.data.max()
        classes = (bright > 0.2).long() + (bright > 0.6).long()
        probabilities = torch.nn.functional.one_hot(classes, 1 + len(KNOWN)).movedim(-1, 0).float()
        found = Segmentation(image, KNOWN, probabilities, image.grid)
        found.__dict__["head"] = HEAD if upright is not None else taken.get(image.name, HEAD)
        return found

    monkeypatch.setattr(anatomy, "segment", segment)
    return taken


def bits(registration):
    return registration.affine.matrix.tobytes(), registration.warp.displacement.numpy().tobytes()


def test_to_name_structures_changes_no_bit_of_the_registration(brains, recipe, registration, heads):
    found = register(brains.fixed, brains.moving, preset=recipe, threads=1, structures=True)
    assert bits(found) == bits(registration)
    met = found.record["measures"]["structures"]
    assert 0.2 < met["affine"] < met["final"] < 1
    assert met["fixed"] == HEAD.as_dict()
    assert found.record["segmenter"]["name"] == "brain-any"
    assert registration.record["segmenter"] is None
    assert "structures" not in registration.record["measures"]


def test_to_strip_is_to_give_the_brains_as_masks(brains, recipe, heads, tmp_path):
    stripped = register(brains.fixed, brains.moving, preset=recipe, threads=1, strip=True)
    masks = list(stripped.found_masks.values())
    by_hand = register(brains.fixed, brains.moving, preset=recipe, threads=1, fixed_mask=masks[0], moving_mask=masks[1])
    assert bits(stripped) == bits(by_hand)
    out = stripped.save(tmp_path / "out")
    record = json.loads((out / "registration.json").read_text())
    assert [record["inputs"][f"{role}_mask"]["found"] for role in ("fixed", "moving")] == list(MASKS)
    assert set(MASKS) < set(record["outputs"])
    assert record["settings"]["strip"] is True
    assert all(name in (out / "report.html").read_text() for name in MASKS)


def test_a_mask_that_is_given_is_kept(brains, recipe, heads):
    mine = LabelMap((brains.fixed.data > 0).to(torch.uint8), brains.fixed.grid, "mine")
    found = register(
        brains.fixed, brains.moving, preset=recipe, threads=1, strip=True, fixed_mask=mine, affine_only=True
    )
    assert list(found.found_masks) == [MASKS[1]]
    assert "found" not in found.record["inputs"]["fixed_mask"]


@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_what_shows_no_head_is_not_stripped(brains, recipe, heads, role):
    heads[getattr(brains, role).name] = NONE
    with pytest.raises(InputError, match="does not look like a head"):
        register(brains.fixed, brains.moving, preset=recipe, threads=1, strip=True)


def test_of_one_head_and_one_that_is_none_no_overlap_is_told(brains, recipe, heads):
    heads[brains.moving.name] = NONE
    found = register(
        brains.fixed, brains.moving, preset=recipe, threads=1, structures=True, affine_only=True, escalate=False
    )
    assert "affine" not in found.record["measures"]["structures"]
    assert found.record["verdict"]["status"] == "fail"
    assert found.record["verdict"]["reasons"][0].startswith("the moving image does not look like a head")


def test_structures_overlap_as_far_as_both_images_show_them(brains, heads):
    image, still = brains.fixed, Affine.identity(3)
    half = Grid((*image.grid.shape[:2], image.grid.shape[2] // 2), image.grid.affine)
    whole, part = (anatomy.segment(each, None) for each in (image, Image(image.data[..., : half.shape[2]], half)))
    assert anatomy._overlap(whole, whole, still) == anatomy._overlap(whole, part, still) == 1
    away = Affine(np.array([[1, 0, 0, 30.0], [0, 1, 0, 0], [0, 0, 1, 0]]))
    assert 0 < anatomy._overlap(whole, whole, away) < 0.7


@pytest.fixture
def whole(brains):
    """The fixed brain with what surrounds it, three times as large as itself."""
    data = brains.fixed.data
    around = torch.nn.functional.max_pool3d((data > 0)[None, None].float(), 11, 1, 5)[0, 0]
    return Image(torch.where(data > 0, data, 0.15 * data.max() * around), brains.fixed.grid, "whole")


@pytest.mark.parametrize("turned", [False, True])
def test_a_whole_head_and_a_stripped_one_are_compared_where_their_brains_are(brains, whole, recipe, heads, turned):
    pair = (brains.moving, whole) if turned else (whole, brains.moving)
    found = register(*pair, preset=recipe, threads=1)
    asked = register(*pair, preset=recipe, threads=1, strip=True)
    assert bits(found) == bits(asked)
    assert list(found.found_masks) == list(MASKS)
    assert any("one image shows a whole head and the other one a stripped one" in each for each in reasons(found))
    assert not any("a stripped one" in each for each in reasons(asked))


def test_unless_that_is_not_wanted_or_there_are_masks_or_one_is_no_head(brains, whole, recipe, heads):
    mine = LabelMap((brains.fixed.data > 0).to(torch.uint8), brains.fixed.grid, "mine")  # of the brain
    asked = {"preset": recipe, "threads": 1, "affine_only": True, "escalate": False}
    assert register(whole, brains.moving, strip=False, **asked).found_masks == {}
    assert register(whole, brains.moving, fixed_mask=mine, **asked).found_masks == {}
    heads[brains.moving.name] = NONE
    assert register(whole, brains.moving, **asked).found_masks == {}


def test_of_a_mask_that_leaves_more_than_the_brain_only_the_brain_counts(brains, whole, recipe, heads):
    """As one of a lesion does."""
    lesion = torch.ones(whole.grid.shape, dtype=torch.uint8)
    lesion[20:24, 25:29, 20:24] = 0
    asked = {"preset": recipe, "threads": 1, "affine_only": True, "escalate": False}
    found = register(whole, brains.moving, fixed_mask=LabelMap(lesion, whole.grid, "mine"), **asked)
    both = lesion * found.found_masks[MASKS[0]].data
    by_hand = register(
        whole, brains.moving, fixed_mask=LabelMap(both, whole.grid), moving_mask=found.found_masks[MASKS[1]], **asked
    )
    assert found.affine.matrix.tobytes() == by_hand.affine.matrix.tobytes()
    assert found.record["inputs"]["fixed_mask"]["found"] == MASKS[0]


def test_of_two_heads_that_show_as_much_nobody_asks_what_they_are(brains, whole, recipe, monkeypatch):
    monkeypatch.setattr(anatomy, "segment", lambda *given: pytest.fail("nobody asked"))
    asked = {"preset": recipe, "threads": 1, "affine_only": True, "escalate": False}
    for pair in ((brains.fixed, brains.moving), (whole, whole)):
        assert "structures" not in register(*pair, **asked).record["measures"]


def inverted(image, name):
    data = image.data
    return Image(torch.where(data > 0.02, 1.05 - data / data.max(), 0.0), image.grid, name)


def test_where_images_share_little_structures_are_asked_in_the_end(brains, recipe, registration, heads, monkeypatch):
    monkeypatch.setattr(verdict, "_INFORMATION_CHECK", 1.0)
    found = register(brains.fixed, brains.moving, preset=recipe, threads=1)
    assert bits(found) == bits(registration)
    assert [stage["name"] for stage in found.record["stages"]][-2:] == ["measure", "structures"]
    assert 0.2 < found.record["measures"]["structures"]["affine"] < found.record["measures"]["structures"]["final"]
    assert found.record["segmenter"]["name"] == "brain-any"


@pytest.mark.parametrize("lying", ["fixed", "moving"])
def test_a_head_that_lies_otherwise_than_its_header_says_is_known_once_it_is_laid_beside_the_other(
    brains, recipe, heads, lying
):
    turn = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    pair = {"fixed": brains.fixed, "moving": inverted(brains.moving, "inverted")}
    image = pair[lying]
    pair[lying] = Image(image.data, Grid(image.grid.shape, turn @ image.grid.affine), image.name)
    heads[image.name] = NONE
    met = register(**pair, preset=recipe, threads=1, escalate=False).record["measures"]["structures"]
    assert met[lying]["is_head"]
    assert "final" in met


def test_a_second_look_that_fails_costs_nothing_but_itself(brains, recipe, heads):
    turn = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    lying = inverted(brains.moving, "inverted")
    lying = Image(lying.data, Grid(lying.grid.shape, turn @ lying.grid.affine), lying.name)
    heads |= {"inverted": NONE, "turned": "too large"}
    met = register(brains.fixed, lying, preset=recipe, threads=1, escalate=False).record["measures"]["structures"]
    assert [met[role]["is_head"] for role in ("fixed", "moving")] == [True, False]


@pytest.mark.parametrize("similarity", ["auto", "mi"])
def test_a_deformation_that_takes_structures_apart_is_dropped_where_contrasts_are_in_doubt(
    brains, recipe, registration, heads, monkeypatch, similarity
):
    linear = []

    def overlap(fixed, moving, way):
        linear[:] = [way] if isinstance(way, Affine) else linear
        return 0.9 if np.abs(way(brains.points) - linear[0](brains.points)).max() < 0.01 else 0.8

    monkeypatch.setattr(anatomy, "_overlap", overlap)
    other = inverted(brains.moving, "inverted")
    found = register(brains.fixed, other, preset=recipe, threads=1, similarity=similarity)
    assert not found.warp.displacement.any()
    assert "took apart structures" in found.record["stopped"]
    assert any("took apart structures" in each for each in reasons(found))
    assert found.record["verdict"]["status"] == "check"
    assert found.record["segmenter"]["name"] == "brain-any"
    # One contrast, so that greys are to be believed.
    assert bits(register(brains.fixed, brains.moving, preset=recipe, threads=1, structures=True)) == bits(registration)


def reasons(registration):
    return registration.record["verdict"]["reasons"]
