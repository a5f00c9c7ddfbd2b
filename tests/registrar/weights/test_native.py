"""stepwarp's own checkpoints."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from stepwarp.errors import InputError, OutputError
from stepwarp.geometry import Affine
from stepwarp.registrar.steps.config import build
from stepwarp.registrar.weights import Card, Recipe, Registrar, load_weights, save_native_weights
from stepwarp.registrar.weights.recipe import Spacing, Tissue

RECIPE = Recipe(intensities=Tissue(), grid=Spacing(mm=2, multiple=4))
CARD = Card(name="toy", data="none", licence="Apache-2.0", seed=3, metrics={"dice": 0.5}, training={"lr": 1e-3})


@pytest.fixture
def saved(tmp_path: Path, config, state) -> Path:
    path = tmp_path / "toy.safetensors"
    save_native_weights(path, config, state, RECIPE, CARD)
    return path


def test_what_was_saved_is_what_is_loaded(saved, config, state, pair, points, furthest):
    step = build(config, 3)
    step.load_state_dict(state)
    registrar = load_weights(saved)
    assert (registrar.recipe, registrar.card, registrar.config) == (RECIPE, CARD, config)
    assert not registrar.step.training
    expected = Registrar(step.eval(), RECIPE, CARD).register(*pair)
    assert furthest(registrar.register(*pair), expected, points(pair[0])) < 1e-5


def test_half_precision_in_the_file_single_in_use(tmp_path, saved, config, state, pair, points, furthest):
    half = tmp_path / "half.safetensors"
    save_native_weights(half, config, {name: tensor.half() for name, tensor in state.items()}, RECIPE, CARD)
    registrar = load_weights(half)
    assert {weights.dtype for weights in registrar.step.parameters()} == {torch.float32}
    whole = load_weights(saved).register(*pair)
    assert 0 < furthest(registrar.register(*pair), whole, points(pair[0])) < 0.05
    assert half.stat().st_size < 0.75 * saved.stat().st_size


def test_half_precision_in_use_changes_little_and_only_where_asked_for(saved, pair, points, furthest, monkeypatch):
    registrar = load_weights(saved)
    half = replace(registrar, recipe=RECIPE.model_copy(update={"precision": "bf16"}))
    whole = registrar.register(*pair)
    monkeypatch.setattr("stepwarp.registrar.weights.registrar._fast_in_half", lambda device: True)
    assert 0 < furthest(half.register(*pair), whole, points(pair[0])) < 0.1
    *_, last = half.trace(*pair)
    assert furthest(half.register(*pair), last, points(pair[0])) < 1e-4
    monkeypatch.setattr("stepwarp.registrar.weights.registrar._fast_in_half", lambda device: False)
    assert furthest(half.register(*pair), whole, points(pair[0])) == 0


def test_weights_can_be_trained_on(saved, pair):
    registrar = load_weights(saved)
    prepared = registrar.recipe.prepare(*pair)
    found = registrar.step(*registrar._images(prepared)).on(prepared.fixed.grid).displacement
    found.square().mean().backward()
    assert all(weights.grad is not None for weights in registrar.step.parameters())


def test_what_is_found_can_be_refined(saved, pair):
    """Not an inference tensor, which autograd would refuse."""
    field = load_weights(saved).register(*pair).parts[-1].displacement
    (field.clone().requires_grad_() * field).sum().backward()


def test_from_a_start_the_network_goes_on(saved, pair, points, furthest):
    """The moving image elsewhere in the world, and a start that brings it back, change nothing."""
    fixed, moving = pair
    shift = Affine([[1, 0, 0, 13], [0, 1, 0, -40], [0, 0, 1, 6], [0, 0, 0, 1]])
    towards = Affine([[0.98, -0.17, 0, 50], [0.17, 0.98, 0, 20], [0, 0, 1, 70], [0, 0, 0, 1]])
    registrar = load_weights(saved)
    here = registrar.register(fixed, moving, towards)
    elsewhere = type(moving)(moving.data, type(moving.grid)(moving.grid.shape, shift.matrix @ moving.grid.affine))
    there = registrar.register(fixed, elsewhere, shift @ towards)
    assert furthest(shift @ here, there, points(fixed)) < 1e-2
    assert furthest(here, towards, points(fixed)) > 0.05


def test_an_older_file_is_not_replaced_unless_asked(saved, config, state):
    before = saved.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        save_native_weights(saved, config, state, RECIPE, CARD)
    with pytest.raises(InputError, match="lacks"):
        save_native_weights(saved, config, {}, RECIPE, CARD, overwrite=True)
    assert saved.read_bytes() == before
    save_native_weights(saved, config, {k: 2 * v for k, v in state.items()}, RECIPE, CARD, overwrite=True)
    assert saved.read_bytes() != before


def header(path: Path) -> dict:
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["stepwarp"])


def changed(**changes):
    return lambda header, state: ({**header, **changes}, state)


TAMPERED = {
    "lacks 'first.net.first.0.bias'": lambda h, s: (h, {k: v for k, v in s.items() if k != "first.net.first.0.bias"}),
    "unknown 'extra'": lambda h, s: (h, s | {"extra": torch.zeros(1)}),
    "another network": lambda h, s: (h, s | {"first.net.first.0.bias": torch.zeros(5)}),
    "not numbers": lambda h, s: (h, s | {"first.net.first.0.bias": torch.full((4,), float("inf"))}),
    "later version": changed(version=2),
    "dims": changed(dims=4),
    "did you mean 'recipe'": lambda h, s: ({**{k: v for k, v in h.items() if k != "recipe"}, "recipes": 1}, s),
    "tissue": changed(recipe={"intensities": {"kind": "magic"}, "grid": {"kind": "spacing", "mm": 2}}),
    "mm": changed(recipe={"intensities": {"kind": "tissue"}, "grid": {"kind": "spacing", "mm": -2}}),
    "another network, or damaged": changed(dims=3, step={"step": "velocity", "net": {"kind": "unet"}}),
    "2 axes|3 dimensions|cannot work": changed(step={"step": "velocity", "net": {"kind": "fcnet", "shape": [4, 4]}}),
}


@pytest.mark.parametrize("message", TAMPERED)
def test_a_file_that_is_not_what_it_says(message, saved, tmp_path):
    told, state = TAMPERED[message](header(saved), safetensors.torch.load_file(saved))
    path = tmp_path / "tampered.safetensors"
    safetensors.torch.save_file(state, path, {"stepwarp": json.dumps(told)})
    with pytest.raises(InputError, match=message) as caught:
        load_weights(path)
    assert "tampered" in str(caught.value)


def test_files_that_are_damaged_or_of_something_else(saved, tmp_path):
    whole = saved.read_bytes()
    wrong = {
        "cut": whole[: len(whole) // 2],
        "header": whole[:8] + b"{" + bytes(200) + whole[209:],
        "long": (2**60).to_bytes(8, "little") + b"{" + whole[9:],
    }
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_weights(tmp_path / name)
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "bare")
    with pytest.raises(InputError, match="not written by stepwarp"):
        load_weights(tmp_path / "bare")
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "words", {"stepwarp": "not json"})
    with pytest.raises(InputError, match="words, header: is not JSON"):
        load_weights(tmp_path / "words")


def test_the_recipe_is_the_file_s_not_the_caller_s(saved):
    with pytest.raises(InputError, match="Leave out the recipe"):
        load_weights(saved, "unigradicon")


def test_a_header_that_asks_for_everything_gets_nothing(saved, tmp_path):
    told = header(saved)
    told["step"] = {"step": "velocity", "net": {"kind": "unet", "channels": [4096] * 12, "convolutions": 8}}
    path = tmp_path / "huge.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(saved), path, {"stepwarp": json.dumps(told)})
    with pytest.raises(InputError, match="lacks"):
        load_weights(path)


@pytest.mark.parametrize(
    "step",
    [
        {"step": "repeat", "n": 1000, "inner": {"step": "repeat", "n": 2, "inner": {"step": "vector_field"}}},
        {"step": "two_step", "steps": [{"step": "repeat", "n": 501, "inner": {"step": "vector_field"}}] * 2},
        {"step": "repeat", "n": 16, "inner": {"step": "two_step", "steps": [{"step": "velocity"}] * 64, "lazy": True}},
        {"step": "downsampled", "inner": {"step": "repeat", "n": 1, "used": 1000, "inner":
            {"step": "two_step", "steps": [{"step": "vector_field"}] * 2}}},
    ],
)  # fmt: skip
def test_steps_without_end_are_refused(saved, step):
    with safetensors.safe_open(saved, "pt") as file:
        header = json.loads(file.metadata()["stepwarp"])
    safetensors.torch.save_file({}, saved, {"stepwarp": json.dumps(header | {"step": step})})
    with pytest.raises(InputError, match="no network takes more than 1000"):
        load_weights(saved)
