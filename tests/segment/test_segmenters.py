"""Files of segmenters."""

import json

import pytest
import safetensors.torch
import torch

from stepwarp.errors import InputError, OutputError
from stepwarp.registrar.weights import weights_path
from stepwarp.segment import load_segmenter, save_segmenter

from .conftest import CARD, KNOWN, SHAPE


def test_a_name_that_is_none_is_told_which_ones_segment():
    with pytest.raises(InputError, match="no weights of that name come with stepwarp: there are brain-any"):
        load_segmenter("nothing")


def test_what_is_written_is_what_is_read(tiny, tiny_state):
    assert [(each.id, each.name, each.brain) for each in tiny.structures] == [
        (2, "white", True),
        (16, "stem", True),
        (24, "fluid", False),
    ]
    assert (tiny.header.card, tiny.header.mm, tiny.header.box) == (CARD, 2.0, (24, 24, 24))
    assert all(torch.equal(tensor, tiny_state[name]) for name, tensor in tiny.network.state_dict().items())
    assert not tiny.network.training


def test_the_shipped_one_says_all_that_must_be_known():
    header = load_segmenter().header
    assert (header.card.name, header.card.licence) == ("brain-any", "label maps Apache-2.0")
    assert [each.name for each in header.structures if not each.brain] == ["fluid around the brain"]
    assert all(0 < low < high for low, high in (each.millilitres for each in header.structures))


def test_a_file_is_not_overwritten_unasked(tiny_file, tiny_state):
    with pytest.raises(OutputError, match="exists already"):
        save_segmenter(tiny_file, tiny_state, KNOWN, CARD, **SHAPE)


def test_a_state_of_another_network_is_not_written(tmp_path, tiny_state):
    with pytest.raises(InputError, match="has the shape"):
        save_segmenter(tmp_path / "other.safetensors", tiny_state, KNOWN[:2], CARD, **SHAPE)
    assert not list(tmp_path.iterdir())


def forged(path, tiny_state, **changes):
    """A file like the tiny one's, but for some of what it says of itself."""
    said = {"kind": "segmenter", "version": 1, "card": CARD.model_dump(), **SHAPE}
    said |= {"structures": [each.model_dump() for each in KNOWN]} | changes
    safetensors.torch.save_file(tiny_state, path, {"stepwarp": json.dumps(said)})
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "cannot be understood. Is it of a later version"),
        ({"structures": []}, "cannot be understood"),
        ({"channels": [4, 1000000, 1000000]}, "lacks|has the shape"),
        ({"kind": None}, "holds no segmenter. Those that come with stepwarp: brain-any"),
    ],
)
def test_a_file_that_says_what_is_not_so_is_refused(tmp_path, tiny_state, changes, said):
    with pytest.raises(InputError, match=said):
        load_segmenter(forged(tmp_path / "forged.safetensors", tiny_state, **changes))


@pytest.mark.parametrize("content", [b"", b"text", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 64])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "none.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"none\.safetensors: "):
        load_segmenter(path)


def test_weights_that_register_are_no_segmenter():
    with pytest.raises(InputError, match="holds no segmenter"):
        load_segmenter(weights_path("brain-t1"))
