import pickle

import pytest
import yaml

from stepwarp.catalogue import names
from stepwarp.config import SIMILARITIES
from stepwarp.errors import InputError
from stepwarp.losses.similarity import find_similarity
from stepwarp.training.config import check_config, pooling, read_config

SMALL = {
    "name": "small",
    "data": {"manifest": "oasis"},
    "steps": {"step": "two_step", "steps": [{"step": "vector_field"}, {"step": "vector_field"}]},
    "loss": {"grids": [{"mm": 4}]},
    "curriculum": [{"iterations": 10, "steps": 1}, {"iterations": 30}],
    "validation": {"keep_best_by": "loss"},
}


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def refused(source, *overrides):
    with pytest.raises(InputError) as caught:
        read_config(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("optimiser.lr=5e-5", ("optimiser", "lr"), 5e-5),
        ("optimiser.lr=1E-3", ("optimiser", "lr"), 1e-3),
        ("optimiser.lr=.5e-4", ("optimiser", "lr"), 5e-5),
        ("curriculum.1.iterations=1e3", ("curriculum", 1, "iterations"), 1000),
        ("loss.grids=[{mm: 2}, {mm: 8}]", ("loss", "grids", 1, "mm"), 8),
        ("loss.similarity.kind=mind", ("loss", "similarity", "kind"), "mind"),
        ("data.augment=null", ("data", "augment"), None),
        ("data.augment.flip=0", ("data", "augment", "flip"), 0),
        ("data.held_out=['1000']", ("data", "held_out", 0), "1000"),
        ("precision=bf16", ("precision",), "bf16"),
    ],
)
def test_one_setting_can_be_changed(small, override, place, value):
    found = read_config(small, [override]).model_dump()
    for key in place:
        found = found[key]
    assert found == value


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("optimiser.lrr=1", "optimiser: unknown key 'lrr'; did you mean 'lr'?"),
        ("optimizer.lr=1", "unknown key 'optimizer'; did you mean 'optimiser'?"),
        ("curriculum.0.iteration=3", "curriculum.0: unknown key 'iteration'; did you mean 'iterations'?"),
        ("curriculum.2.iterations=3", "--set curriculum.2.iterations=3: '2' is no place in a list of 2"),
        ("curriculum.x=3", "'x' is no place in a list of 2, counted from 0"),
        ("name.x=3", "'name' is 'small' and has nothing in it"),
        ("optimiser.lr", "write the place, '=' and the value"),
        ("=3", "write the place, '=' and the value"),
        ("optimiser.lr=[", "the value is no YAML"),
        ("optimiser.lr=fast", "optimiser.lr: Input should be a valid number"),
        ("optimiser.lr=-1", "optimiser.lr: Input should be greater than 0"),
        ("loss.similarity_weight=0", "nothing brings the images together"),
        ("loss.dice=1", "loss.dice needs label maps: set data.labels"),
        ("loss.supervision=1", "loss.supervision needs data.teacher"),
        ("validation.keep_best_by=mean_dice", "mean_dice needs data.labels"),
        ("loss.grids.0.mm=3", "loss.grids.0.mm: 3 mm is no whole multiple of the data's 2 mm"),
        ("curriculum.0.spacing_mm=5", "curriculum.0.spacing_mm: 5 mm is no whole multiple"),
        ("curriculum.1.spacing_mm=4", "the last stage must train it on them"),
        ("curriculum.0.steps=3", "curriculum.0: 3 steps take part, and the registrar has 2"),
        ("curriculum.0.segmenter=true", "curriculum.0.segmenter: is for segmented steps"),
        ("validation.keep_best_by=segmentation_dice", "segmentation_dice needs data.labels"),
        ("curriculum.0.frozen=1", "curriculum.0: all 1 steps are frozen"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(small, override, hint):
    assert hint in refused(small, override)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a: [", "is no YAML"),
        ("a: 1\na: 2", "'a' stands twice"),
        ("- 1", "holds no settings"),
        ("", "holds no settings"),
        ("name: x", "is missing (and 3 other problems)"),
        ("!!python/object/apply:os.system [ls]", "is no YAML"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, hint):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert hint in message


def test_a_file_that_is_not_there(tmp_path):
    assert "neither a file nor one of the recipes" in refused(tmp_path / "none.yaml")
    assert "is a folder" in refused(tmp_path)


def test_a_recipe_comes_back_from_its_record(small):
    config = read_config(small)
    assert check_config(config.model_dump(mode="json"), "record") == config


def test_a_recipe_travels_to_another_process(small):
    config = read_config(small, ["loss.similarity={kind: mind, dilation: 3}"])
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("name", names(SIMILARITIES))
def test_every_similarity_can_be_trained_by_with_the_limits_of_its_own_file(small, name):
    config = read_config(small, [f"loss.similarity.kind={name}"])
    assert type(config.loss.similarity.build()) is find_similarity(name)
    assert "unknown key 'nonsense'" in refused(small, f"loss.similarity={{kind: {name}, nonsense: 1}}")


def test_a_similarity_keeps_its_limits_and_the_defaults_of_a_training(small):
    found = read_config(small).loss.similarity
    assert (found.kind, found.radius, found.epsilon) == ("lncc", 2, 1e-5)
    assert "radius: Input should be less than or equal to 8" in refused(
        small, "loss.similarity={kind: lncc, radius: 9}"
    )


def test_the_learning_rate_warms_up_in_each_stage_and_falls_along_a_cosine(small):
    config = read_config(small, ["optimiser.lr=1", "optimiser.warm_up=4", "optimiser.final=0.1", "curriculum.1.lr=0.5"])
    rates = [config.learning_rate(n) for n in range(config.iterations)]
    assert rates[0] == pytest.approx(1 / 5)
    assert rates[4] == max(rates)
    assert rates[10] < rates[9] / 5
    assert rates[20] == pytest.approx(0.5 * (0.1 + 0.9 / 2))
    assert rates[-1] == pytest.approx(0.5 * 0.1, rel=0.05)


def test_iterations_belong_to_stages(small):
    config = read_config(small)
    assert [config.stage_at(n) for n in (0, 9, 10, 39)] == [(0, 0), (0, 9), (1, 0), (1, 29)]
    with pytest.raises(IndexError):
        config.stage_at(40)


@pytest.mark.parametrize(("spacing", "mm", "factor"), [(2, 8, 4), (1.5, 3, 2), (2, 2, 1), (2, 3, None), (2, 1, None)])
def test_pooling(spacing, mm, factor):
    assert pooling(spacing, mm) == factor
