"""Recipes: what is in `configs/`, and what happens to a mistake in one."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from stepwarp import config
from stepwarp.config import PRESETS, AffineSettings, DeformableSettings, Level, Preset, preset
from stepwarp.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"
LEVELS = [{"mm": 4, "iterations": 10}]


def refused(settings):
    with pytest.raises(ValidationError) as caught:
        Preset.model_validate(settings)
    return str(caught.value)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A folder of recipes to use in place of the project's; text -> its `fast.yaml`."""
    monkeypatch.setattr(config, "configs_folder", lambda: tmp_path)
    preset.cache_clear()
    yield (tmp_path / "fast.yaml").write_text
    preset.cache_clear()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads(name):
    recipe = preset(name)
    assert recipe.deformable.levels
    sizes = [level.mm for level in recipe.deformable.levels]
    assert sizes == sorted(sizes, reverse=True)
    refinements = list(recipe.affine.refine_mm)
    assert refinements == sorted(refinements, reverse=True)


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_comes_back_from_the_record_as_it_was(name):
    assert Preset.model_validate(preset(name).model_dump(mode="json")) == preset(name)


def test_the_names_are_those_of_the_files():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= set(PRESETS)
    for path in CONFIGS.glob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"deformabel": {"levels": LEVELS}}, "unknown key 'deformabel'; did you mean 'deformable'?"),
        ({"deformable": {"levels": LEVELS, "radios": 3}}, "unknown key 'radios'; did you mean 'radius'?"),
        (
            {"deformable": {"levels": [{"mm": 4, "iteration": 3}]}},
            "unknown key 'iteration'; did you mean 'iterations'?",
        ),
        ({"deformable": {"levels": LEVELS}, "affine": {"xyz": 1}}, "known keys: coarse_mm, refine_mm, candidates"),
    ],
)
def test_an_unknown_key_names_the_nearest(settings, hint):
    assert hint in refused(settings)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "deformable"),
        ({"deformable": {}}, "deformable.levels"),
        ({"deformable": {"levels": LEVELS, "similarity": "cc"}}, "deformable.similarity"),
        ({"deformable": {"levels": LEVELS, "radius": 0}}, "deformable.radius"),
        ({"deformable": {"levels": LEVELS, "epsilon": 0}}, "deformable.epsilon"),
        ({"deformable": {"levels": LEVELS, "patience": 1}}, "deformable.patience"),
        ({"deformable": {"levels": LEVELS, "smallest_jacobian": 1}}, "deformable.smallest_jacobian"),
        ({"deformable": {"levels": LEVELS, "regularity": "tv"}}, "deformable.regularity"),
        ({"deformable": {"levels": [{"mm": 0, "iterations": 1}]}}, "deformable.levels.0.mm"),
        ({"deformable": {"levels": [*LEVELS, {"mm": 2, "iterations": "many"}]}}, "deformable.levels.1.iterations"),
        ({"deformable": {"levels": LEVELS}, "affine": {"candidates": 0}}, "affine.candidates"),
    ],
)
def test_a_wrong_value_names_its_field(settings, field):
    assert f"\n{field}\n" in refused(settings)


def test_a_recipe_without_levels_is_refused():
    assert "deformable.levels" in refused({"deformable": {"levels": []}})


@pytest.mark.parametrize("mm", [0, -2])
def test_a_refinement_at_no_distance_is_refused(mm):
    assert "affine.refine_mm" in refused({"deformable": {"levels": LEVELS}, "affine": {"refine_mm": [mm]}})


@pytest.mark.parametrize(
    "settings", [AffineSettings(), Level(mm=4, iterations=1), DeformableSettings(levels=(Level(mm=4, iterations=1),))]
)
def test_settings_cannot_be_changed_behind_one_s_back(settings):
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, next(iter(type(settings).model_fields)), 1)


@pytest.mark.parametrize(
    ("name", "hint"), [("fats", "did you mean 'fast'?"), ("quick-and-dirty", "there are fast, default, best")]
)
def test_a_preset_that_does_not_exist_is_refused_with_a_hint(name, hint):
    with pytest.raises(InputError) as caught:
        preset(name)
    assert str(caught.value) == f"preset '{name}' does not exist; {hint}"


@pytest.mark.parametrize("text", ["deformable: {levels: [{mm: -1, iterations: 3}]}", "a: [", "", "- 3"])
def test_a_broken_recipe_names_its_file(written, text):
    written(text)
    with pytest.raises(InputError, match=r"^fast\.yaml: "):
        preset("fast")
