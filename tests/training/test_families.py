"""Every recipe that comes with stepwarp trains: a few iterations make the loss of a fixed pair fall.

What is theirs alone is asked of all of them by test_papers.py; these trainings are slow but for three."""

import pytest
import torch

from stepwarp.errors import InputError
from stepwarp.training.config import read_config, training_recipes
from stepwarp.training.dataset import open_dataset
from stepwarp.training.loop import train
from stepwarp.training.start import read_start
from stepwarp.training.trainees import trainee_of

FAMILIES = [
    "avsm",
    "brain_any",
    "brain_synth",
    "brain_t1",
    "brain_t1_labels",
    "gradicon",
    "lapirn",
    "quicksilver",
    "tiny",
    "voxelmorph",
]
QUICK = ("quicksilver", "tiny", "voxelmorph")


def test_the_recipes_of_trainings_are_told_apart_from_those_of_register():
    assert training_recipes() == FAMILIES
    with pytest.raises(InputError, match="neither a file nor one of the recipes avsm, "):
        read_config("fast")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_family_learns(family, name, tmp_path):
    config = family(name)
    ended = train(config, tmp_path)
    assert ended.weights is not None
    data = open_dataset(config, None, tmp_path)
    sample = data.training[0]
    batch = {key: value[None] for key, value in sample.items() if key != "pair"}
    last = len(config.curriculum) - 1
    torch.manual_seed(config.seed)
    trained = read_start(config.model_copy(update={"start": str(ended.weights)}), 3)
    with torch.no_grad():
        before, after = (
            float(trainee_of(config, start, structures=data.structures).objective.eval()(batch, last, 0)["loss"])
            for start in (None, trained)
        )
    assert after < before
