import json
from types import SimpleNamespace

import pytest
import torch
import yaml

from stepwarp.registrar.steps.config import build, read_step
from stepwarp.registrar.weights import Card, Recipe, save_native_weights
from stepwarp.registrar.weights.recipe import Spacing, Tissue

RECIPE = {
    "name": "small",
    "data": {"manifest": "", "spacing_mm": 8},
    "steps": {"step": "vector_field", "net": {"kind": "unet", "channels": [2, 2]}},
    "loss": {"grids": [{"mm": 8}]},
    "curriculum": [{"iterations": 3}],
    "validation": {"keep_best_by": "loss"},
}


@pytest.fixture
def manifest(tmp_path):
    """A manifest of three scans whose files exist, and hold nothing."""
    images = {}
    for name, split in (("a", "training"), ("b", "training"), ("c", "validation")):
        (tmp_path / f"{name}.nii.gz").touch()
        images[name] = {"image": f"{name}.nii.gz", "split": split}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"name": "three", "images": images}))
    return path


@pytest.fixture
def recipe(tmp_path, manifest):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "data": {**RECIPE["data"], "manifest": str(manifest)}}))
    return path


@pytest.fixture
def weights(tmp_path, recipe):
    """Weights whose card holds the recipe, as a training leaves them."""
    config = read_step(RECIPE["steps"])
    from stepwarp.training.config import read_config

    settings = read_config(recipe).model_dump(mode="json")
    card = Card(name="small", data="none", licence="none", training={"settings": settings})
    wants = Recipe(intensities=Tissue(), grid=Spacing(mm=8))
    save_native_weights(tmp_path / "small.safetensors", config, build(config, 3).state_dict(), wants, card)
    return tmp_path / "small.safetensors"


@pytest.fixture
def fake_train(monkeypatch):
    """Stands in for the loop: `.calls` tells what it was called with."""
    from stepwarp.training.loop import TrainingResult
    from stepwarp.workflow import train as module

    fake = SimpleNamespace(calls=[])

    def train(config, out, **options):
        fake.calls.append({"config": config, "out": out, **options})
        return TrainingResult(True, 3, 1.5, out / "weights.safetensors", None)

    monkeypatch.setattr(module, "train", train)
    return fake


def test_a_dry_run_shows_the_plan_and_writes_nothing(run, recipe, tmp_path):
    before = sorted(tmp_path.iterdir())
    result = run("train", recipe, "--dry-run", "--set", "curriculum.0.iterations=5", "--device", "cpu")
    assert result.code == 0, result.err
    assert "small: 5 iterations" in result.out
    assert "2 scans, 2 ordered pairs to train on, 0 to validate on" in result.out
    assert "VectorField of UNet, on Grid(20 x 24 x 20 voxels of 8 x 8 x 8 mm, RAS)" in result.out
    assert "seconds/iteration" in result.out
    assert sorted(tmp_path.iterdir()) == before


def test_train_hands_everything_on(run, recipe, fake_train, tmp_path):
    out = tmp_path / "run"
    result = run(
        *("train", recipe, "--out", out, "--set", "optimiser.lr=5e-5", "--set", "seed=3", "--data", tmp_path),
        *("--max-minutes", "2", "--resume", "--device", "cpu", "--threads", torch.get_num_threads()),
    )
    assert result.code == 0, result.err
    (call,) = fake_train.calls
    assert (call["config"].optimiser.lr, call["config"].seed) == (5e-5, 3)
    assert (call["out"], call["root"], call["resume"], call["max_minutes"]) == (out, tmp_path, True, 2)
    assert call["device"] == torch.device("cpu")
    assert f"weights      {out / 'weights.safetensors'}" in result.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.yaml", "--out", "run"], 3, "neither a file nor one of the recipes"),
        (["RECIPE", "--out", "run", "--set", "optimiser.rate=1"], 3, "unknown key 'rate'"),
        (["RECIPE"], 3, "a folder for the training"),
        (["RECIPE", "--out", "run", "--max-minutes", "0"], 2, "0"),
    ],
)
def test_mistakes_end_with_one_line(run, recipe, arguments, code, message):
    result = run("train", *(recipe if each == "RECIPE" else each for each in arguments))
    assert result.code == code
    assert message in " ".join(result.err.split())
    assert "Traceback" not in result.err


def test_finetune_goes_on_with_the_recipe_of_the_weights(run, weights, manifest, fake_train, tmp_path):
    result = run(
        *("finetune", manifest, "--weights", weights, "--out", tmp_path / "run", "--set", "curriculum.0.iterations=7"),
        *("--threads", torch.get_num_threads()),
    )
    assert result.code == 0, result.err
    (call,) = fake_train.calls
    config = call["config"]
    assert config.name == "small-finetuned"
    assert (config.data.manifest, config.data.validation_split, config.iterations) == (str(manifest), "validation", 7)
    assert config.optimiser.lr == pytest.approx(0.2 * 5e-4)
    assert config.validation.keep_best_by == "loss"
    assert config.start == str(weights)


def test_weights_that_do_not_say_how_they_were_trained_cannot_be_finetuned(run, weights, manifest, tmp_path):
    config = read_step(RECIPE["steps"])
    bare = tmp_path / "bare.safetensors"
    wants = Recipe(intensities=Tissue(), grid=Spacing(mm=8))
    card = Card(name="bare", data="none", licence="none")
    save_native_weights(bare, config, build(config, 3).state_dict(), wants, card)
    result = run("finetune", manifest, "--weights", bare, "--out", tmp_path / "run")
    assert result.code == 3
    assert "does not say how it was trained" in result.err
    assert run("finetune", manifest, "--weights", tmp_path / "none", "--out", tmp_path / "run").code == 3


def test_help_lists_the_options(run):
    text = run("train", "--help").out
    options = "--out --set --data --resume --max-minutes --dry-run --device --threads --verbose"
    assert all(f" {option} " in text.replace("\n", " \n") for option in options.split())
