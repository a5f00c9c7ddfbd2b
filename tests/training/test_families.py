"""Every recipe that comes with stepwarp trains: a few iterations make the loss of a fixed pair fall."""

import pytest
import torch

from stepwarp.errors import InputError
from stepwarp.registrar.steps.config import build
from stepwarp.registrar.weights import load_weights
from stepwarp.training.config import read_config, training_recipes
from stepwarp.training.dataset import open_dataset
from stepwarp.training.loop import train
from stepwarp.training.objective import TrainingObjective

FAMILIES = [
    "avsm",
    "brain_synth",
    "brain_t1",
    "brain_t1_labels",
    "gradicon",
    "lapirn",
    "quicksilver",
    "tiny",
    "voxelmorph",
]


def test_the_recipes_of_trainings_are_told_apart_from_those_of_register():
    assert training_recipes() == FAMILIES
    with pytest.raises(InputError, match="neither a file nor one of the recipes avsm, "):
        read_config("fast")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_learns(family, name, tmp_path):
    config = family(name)
    ended = train(config, tmp_path)
    assert ended.weights is not None
    trained = load_weights(ended.weights).step
    data = open_dataset(config, None, tmp_path)
    sample = data.training[0]
    batch = {key: value[None] for key, value in sample.items() if key != "pair"}
    last = len(config.curriculum) - 1
    torch.manual_seed(config.seed)
    with torch.no_grad():
        before, after = (
            float(TrainingObjective(step, config, structures=data.structures).eval()(batch, last)["loss"])
            for step in (build(config.steps, 3), trained)
        )
    assert after < before
