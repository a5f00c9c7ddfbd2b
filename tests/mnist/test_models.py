import pytest
import torch

from stepwarp.errors import InputError
from stepwarp.mnist import models
from stepwarp.mnist.data import pairs
from stepwarp.mnist.models import MODELS, TIED
from stepwarp.mnist.networks import Equivariant
from stepwarp.registrar.steps import parameters
from stepwarp.registrar.steps.structure import steps_run


@pytest.mark.parametrize("name", MODELS)
def test_every_network_takes_the_same_number_of_steps_and_begins_with_the_identity(name, digits, settings):
    model = MODELS[name]
    step = model.as_used(model.untrained(settings, 0), settings)
    assert steps_run(step) == settings.steps
    found = step(*pairs(digits.test, 2))
    assert found.on(found.grid).displacement.abs().max() == 0


def test_only_separate_weights_are_more_of_them(settings):
    sizes = {name: parameters(model.untrained(settings, 0)) for name, model in MODELS.items()}
    assert sizes["separate"] == settings.steps * sizes[TIED]
    assert sizes["one step"] == sizes["sevens"] == sizes[TIED]


def test_the_convolutions_are_the_same_everywhere(digits):
    torch.manual_seed(0)
    net = Equivariant()
    torch.nn.init.normal_(net.last.weight)
    small = torch.zeros(2, 1, 76, 76)
    small[..., 24:52, 24:52] = digits.train.images[:2]
    found = net(small[:1], small[1:])
    shifted = net(*(small.roll((3, -4), (2, 3)).split(1)))
    inside = (..., slice(24, 52), slice(24, 52))
    assert torch.allclose(found.roll((3, -4), (2, 3))[inside], shifted[inside], atol=1e-5)


def test_weights_come_back_with_what_is_known_of_them(tmp_path, settings):
    step = MODELS[TIED].untrained(settings, 0)
    models.save(tmp_path / "a.safetensors", step, {"seconds": 2.5})
    other = MODELS[TIED].untrained(settings, 1)
    assert models.load(tmp_path / "a.safetensors", other) == {"seconds": 2.5}
    assert all(torch.equal(a, b) for a, b in zip(step.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(InputError, match="holds no weights of this network"):
        models.load(tmp_path / "a.safetensors", MODELS["separate"].untrained(settings, 0))
    (tmp_path / "b.safetensors").write_text("nothing")
    with pytest.raises(InputError, match=r"b\.safetensors: holds no weights"):
        models.load(tmp_path / "b.safetensors", other)
