"""Recipes: what is in `configs/`, and what happens to a mistake in one."""

import math
import pickle
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from stepwarp.config import PRESETS, AffineSettings, DeformableSettings, Level, Preset, preset
from stepwarp.errors import InputError
from stepwarp.options import RegisterOptions

CONFIGS = Path(__file__).parents[1] / "configs"
LEVELS = [{"across": 40, "iterations": 10}]


def refused(settings):
    with pytest.raises(ValidationError) as caught:
        Preset.model_validate(settings)
    return str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads(name):
    recipe = preset(name)
    assert recipe.deformable.levels
    sizes = [level.across for level in recipe.deformable.levels]
    assert sizes == sorted(sizes)
    refinements = list(recipe.affine.refine_across)
    assert refinements == sorted(refinements)


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_comes_back_from_the_record_as_it_was(name):
    assert Preset.model_validate(preset(name).model_dump(mode="json")) == preset(name)


def test_the_names_are_those_of_the_files():
    assert {path.stem for path in CONFIGS.glob("presets/*.yaml")} == set(PRESETS)
    for path in CONFIGS.glob("**/*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"deformabel": {"levels": LEVELS}}, "unknown key 'deformabel'; did you mean 'deformable'?"),
        ({"deformable": {"levels": LEVELS, "radios": 3}}, "unknown key 'radios'; did you mean 'radius'?"),
        (
            {"deformable": {"levels": [{"across": 40, "iteration": 3}]}},
            "unknown key 'iteration'; did you mean 'iterations'?",
        ),
        ({"deformable": {"levels": LEVELS}, "affine": {"xyz": 1}}, "known keys: across, refine_across, candidates"),
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
        (
            {"deformable": {"levels": [{"across": 9, "iterations": 1, "keep_volume": 1}]}},
            "deformable.levels.0.keep_volume",
        ),
        ({"deformable": {"levels": [{"across": 0, "iterations": 1}]}}, "deformable.levels.0.across"),
        ({"deformable": {"levels": [{"across": math.inf, "iterations": 1}]}}, "deformable.levels.0.across"),
        (
            {"deformable": {"levels": [{"across": 9, "iterations": 1, "smooth_field": 1e9}]}},
            "deformable.levels.0.smooth_field",
        ),
        ({"deformable": {"levels": LEVELS, "tolerance": math.inf}}, "deformable.tolerance"),
        ({"deformable": {"levels": [*LEVELS, {"across": 2, "iterations": "many"}]}}, "deformable.levels.1.iterations"),
        ({"deformable": {"levels": LEVELS}, "affine": {"candidates": 0}}, "affine.candidates"),
    ],
)
def test_a_wrong_value_names_its_field(settings, field):
    assert f"\n{field}\n" in refused(settings)


def test_a_recipe_without_levels_is_refused():
    assert "deformable.levels" in refused({"deformable": {"levels": []}})


def test_levels_that_do_not_go_from_coarse_to_fine_are_refused_with_their_sizes():
    levels = [{"across": across, "iterations": 1} for across in (22, 88, 44)]
    assert "level 2 is coarser (across 44) than level 1 (88); put them in order" in refused(
        {"deformable": {"levels": levels}}
    )


@pytest.mark.parametrize("across", [0, -2, 0.01])
def test_a_refinement_on_no_voxels_is_refused(across):
    assert "affine.refine_across" in refused({"deformable": {"levels": LEVELS}, "affine": {"refine_across": [across]}})


@pytest.mark.parametrize(
    "settings",
    [AffineSettings(), Level(across=4, iterations=1), DeformableSettings(levels=(Level(across=4, iterations=1),))],
)
def test_settings_cannot_be_changed_behind_one_s_back(settings):
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, next(iter(type(settings).model_fields)), 1)


@pytest.mark.parametrize(
    ("name", "hint"), [("fats", "did you mean 'fast'?"), ("quick-and-dirty", "there are best, ct, default, fast")]
)
def test_a_preset_that_does_not_exist_is_refused_with_a_hint(name, hint):
    with pytest.raises(InputError) as caught:
        preset(name)
    assert str(caught.value) == f"preset '{name}' does not exist; {hint}"


@pytest.mark.parametrize("text", ["deformable: {levels: [{across: -1, iterations: 3}]}", "a: [", "", "- 3"])
def test_a_broken_preset_names_its_file(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError, match=r"own\.yaml: "):
        preset(tmp_path / "own.yaml")


def test_a_preset_of_ones_own_is_a_file_that_is_read_each_time(tmp_path):
    path = tmp_path / "own.yaml"
    for radius in (1, 3):
        path.write_text(f"deformable: {{radius: {radius}, epsilon: 1e-5, levels: [{{across: 40, iterations: 10}}]}}")
        assert preset(str(path)).deformable.radius == radius
        assert preset(path, ["epsilon=2e-5"]).deformable.epsilon == 2e-5


@pytest.mark.parametrize("place", ["deformable.levels.0.iterations", "levels.0.iterations"])
def test_one_value_is_changed_and_no_other(place):
    whole, found = preset("fast"), preset("fast", [f"{place}=50"])
    first, *others = whole.deformable.levels
    levels = (first.model_copy(update={"iterations": 50}), *others)
    assert found == whole.model_copy(update={"deformable": whole.deformable.model_copy(update={"levels": levels})})


def test_options_that_were_made_know_their_preset_whatever_becomes_of_the_file(tmp_path):
    """A batch hands them to workers elsewhere, where there is no such file."""
    path = tmp_path / "own.yaml"
    path.write_text("deformable: {levels: [{across: 40, iterations: 10}]}")
    options = RegisterOptions.of(preset=path, set="radius=3", similarity="ssd")
    path.unlink()
    recipe = pickle.loads(pickle.dumps(options)).recipe
    assert (recipe.deformable.radius, recipe.deformable.similarity) == (3, "ssd")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"transform": "syn"}, "transform 'syn' does not exist; there are rigid, similarity, affine"),
        ({"similarity": "lnc"}, "similarity 'lnc' does not exist; did you mean 'lncc'?"),
        ({"threads": 0}, "threads: Input should be greater than or equal to 1"),
        ({"time_budget": -1}, "a time budget of -1 s is no time at all"),
        ({"refine": False}, "without a network and without refinement nothing is left"),
        ({"weigths": "x"}, "unknown key 'weigths'; did you mean 'weights'?"),
    ],
)
def test_options_that_cannot_be_are_refused(given, text):
    with pytest.raises(InputError) as caught:
        RegisterOptions.of(**given)
    assert text in str(caught.value)
