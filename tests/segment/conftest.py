import pytest
import torch

from stepwarp.networks.segmenter import Segmenter
from stepwarp.registrar.weights import Card
from stepwarp.segment import KnownStructure, load_segmenter, save_segmenter

SHAPE = {"channels": (4, 4), "convolutions": 1, "mm": 2.0, "box": (24, 24, 24)}
KNOWN = [
    KnownStructure(id=2, name="white", millilitres=(1, 50), centre=(0, 0, 5)),
    KnownStructure(id=16, name="stem", millilitres=(1, 50), centre=(0, -5, -20)),
    KnownStructure(id=24, name="fluid", brain=False, millilitres=(1, 50), centre=(0, 0, 0)),
]
CARD = Card(name="tiny", data="nothing", licence="none")


@pytest.fixture(scope="session")
def tiny_state():
    torch.manual_seed(0)
    return Segmenter(3, 1 + len(KNOWN), SHAPE["channels"], SHAPE["convolutions"]).state_dict()


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory, tiny_state):
    """A segmenter of three structures that knows nothing."""
    path = tmp_path_factory.mktemp("segmenter") / "tiny.safetensors"
    save_segmenter(path, tiny_state, KNOWN, CARD, **SHAPE)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_file):
    return load_segmenter(tiny_file)
