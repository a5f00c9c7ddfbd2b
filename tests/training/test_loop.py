import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from stepwarp.data import pairs as pairs_module
from stepwarp.errors import InputError, OutputError, RegistrationError
from stepwarp.files.lock import locked
from stepwarp.registrar.weights import load_weights
from stepwarp.training import loop, registrar
from stepwarp.training.config import read_config
from stepwarp.training.dataset import open_dataset
from stepwarp.training.loop import CHECKPOINT, CONFIG, WEIGHTS, train
from stepwarp.training.validation import validate


def log_of(folder, kind):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def content(folder):
    return torch.load(folder / CHECKPOINT, weights_only=True)


def assert_equal_states(a, b):
    """Of two checkpoints: weights, their means, the optimiser's moments, the sequence and generators, by the bit."""
    for part in ("module", "mean"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    for number, moments in a["optimiser"]["state"].items():
        assert all(torch.equal(value, b["optimiser"]["state"][number][name]) for name, value in moments.items())
    assert torch.equal(a["random"]["torch"], b["random"]["torch"])
    for part in ("iteration", "pairs", "best", "mean_count"):
        assert a[part] == b[part]


def test_a_training_ends_with_weights_that_can_be_used(recipe, tmp_path):
    reports = []
    ended = train(recipe(), tmp_path / "run", progress=reports.append)
    assert (ended.finished, ended.iteration, ended.weights) == (True, 12, tmp_path / "run" / WEIGHTS)
    card = load_weights(ended.weights).card
    assert (card.name, card.licence, card.labels_used, card.seed) == ("test", "none", False, 0)
    assert card.data == "heads, split 'training'"
    assert card.metrics.keys() == {"mean_dice", "loss", "folds_percent", "std_log_jacobian"}
    assert card.metrics == pytest.approx(ended.best.measures)
    assert card.expects.keys() == {"lncc_after_affine", "lncc_gain", "displacement_mm"}
    assert "torch" in card.training["versions"]
    # No folder of this machine goes into a file for others.
    assert str(tmp_path.parent) not in card.model_dump_json()
    assert [line["iteration"] for line in log_of(tmp_path / "run", "validation")] == [6, 12]
    assert [line["iteration"] for line in log_of(tmp_path / "run", "train")] == [10]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    stages = [(report.done, report.total) for report in reports if report.stage == "stage 2 of 2"]
    assert stages == [(n, 6) for n in range(1, 7)]
    assert read_config(tmp_path / "run" / CONFIG) == recipe()


def test_the_best_weights_are_kept_not_the_last(recipe, tmp_path):
    # A rate so high that what was learned is soon destroyed.
    config = recipe(
        optimiser={"lr": 0.5, "ema": 0, "final": 1},
        validation={"every": 1, "keep_best_by": "loss"},
        curriculum=[{"iterations": 4}],
    )
    ended = train(config, tmp_path / "run")
    losses = {line["iteration"]: line["loss"] for line in log_of(tmp_path / "run", "validation")}
    assert ended.best.iteration == min(losses, key=losses.get)
    assert ended.best.measures["loss"] == pytest.approx(min(losses.values()), abs=1e-6)
    assert load_weights(ended.weights).card.training["iteration"] == ended.best.iteration


def test_only_what_a_stage_trains_changes(recipe, tmp_path):
    def first_and_second(folder):
        state = content(folder)["module"]
        return [{k: v for k, v in state.items() if k.startswith(head)} for head in ("first.", "second.")]

    def same(a, b):
        return all(torch.equal(a[name], b[name]) for name in a)

    train(recipe(curriculum=[{"iterations": 2, "steps": 1}]), tmp_path / "one")
    train(recipe(curriculum=[{"iterations": 2, "steps": 1}, {"iterations": 2, "frozen": 1}]), tmp_path / "two")
    begun = tmp_path / "begun"
    train(recipe(curriculum=[{"iterations": 1, "steps": 1}]), begun)
    assert same(first_and_second(begun)[1], first_and_second(tmp_path / "one")[1])
    assert not same(first_and_second(begun)[0], first_and_second(tmp_path / "one")[0])
    assert not same(first_and_second(tmp_path / "one")[1], first_and_second(tmp_path / "two")[1])


KILLED = """
import os, signal, sys
import numba, torch
import yaml
from pathlib import Path
from stepwarp.training.config import check_config
from stepwarp.training.loop import train
torch.set_num_threads(1)
numba.set_num_threads(1)
seen = []
def kill(report):
    seen.append(report)
    if report.stage == "stage 2 of 2" and report.done == 4:
        os.kill(os.getpid(), signal.SIGKILL)
train(check_config(yaml.safe_load(Path(sys.argv[1]).read_text()), "it"), Path(sys.argv[2]), progress=kill)
"""


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_exactly(recipe, tmp_path):
    config = recipe(
        loss={"gradicon": 0.1, "similarity": {"kind": "lncc"}}, data={"augment": {"elastic": 1, "noise": 1}, "batch": 2}
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "recipe.yaml"), str(tmp_path / "killed")]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert content(tmp_path / "killed")["iteration"] == 8

    resumed = train(config, tmp_path / "killed", resume=True)
    whole = train(config, tmp_path / "whole")
    assert resumed.finished
    assert_equal_states(content(tmp_path / "whole"), content(tmp_path / "killed"))
    assert resumed.best == whole.best
    weights = [load_weights(ended.weights).step.state_dict() for ended in (resumed, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    iterations = [line["iteration"] for line in log_of(tmp_path / "killed", "validation")]
    assert iterations == [6, 12]


def test_time_ends_a_training_with_a_checkpoint_to_go_on_from(recipe, tmp_path):
    ended = train(recipe(), tmp_path / "run", max_minutes=1e-6)
    assert not ended.finished
    assert ended.iteration == content(tmp_path / "run")["iteration"] == 1
    ended = train(recipe(), tmp_path / "run", resume=True)
    assert ended.finished
    again = train(recipe(), tmp_path / "run", resume=True)
    assert (again.finished, again.iteration, again.best) == (True, 12, ended.best)


def test_the_time_that_a_training_may_take_is_in_minutes(recipe, tmp_path, monkeypatch):
    """By a clock on which every iteration takes 20 s."""
    now = [1000.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def pass_time(step):
        now[0] += 20 * step.stage.startswith("stage")

    ended = train(recipe(), tmp_path / "run", max_minutes=1, progress=pass_time)
    assert not ended.finished
    assert 3 <= ended.iteration <= 5


@pytest.mark.parametrize("clip", [1e-4, 1e4])
def test_gradients_are_as_long_as_the_recipe_lets_them_be(recipe, tmp_path, clip):
    """Read off Adam's mean of them after its first step."""
    train(recipe(curriculum=[{"iterations": 1}], optimiser={"clip": clip}), tmp_path / "run")
    moments = content(tmp_path / "run")["optimiser"]
    share = 1 - moments["param_groups"][0]["betas"][0]
    length = sum(float(each["exp_avg"].square().sum()) for each in moments["state"].values()) ** 0.5 / share
    assert length == pytest.approx(clip, rel=0.01) if clip < 1 else 1e-3 < length < clip


def test_the_running_mean_of_the_weights_is_what_is_validated_and_kept(recipe, tmp_path):
    config = recipe(curriculum=[{"iterations": 6}], optimiser={"lr": 0.02, "ema": 0.9, "final": 1})
    ended = train(config, tmp_path / "run")
    kept, state = load_weights(ended.weights).step, content(tmp_path / "run")
    assert all(torch.equal(value, state["mean"][name]) for name, value in kept.state_dict().items())
    assert not all(torch.equal(value, state["module"][name]) for name, value in kept.state_dict().items())
    data = open_dataset(config, None, tmp_path / "cache")
    again = validate(kept, data.validation, config.data.grid(), config.loss.similarity.build())
    assert ended.best.measures == pytest.approx(again.measures)


def test_labels_that_the_manifest_ignores_are_neither_trained_on_nor_judged(recipe, manifest, tmp_path, monkeypatch):
    listed = json.loads(manifest.read_text()) | {"ignore_labels": [1, 3]}
    ignoring = manifest.parent / "ignoring.json"
    ignoring.write_text(json.dumps(listed))
    trained_on = []

    class Watched(registrar.TrainingObjective):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            trained_on.append(self.ignore_labels)

    monkeypatch.setattr(registrar, "TrainingObjective", Watched)
    changes = {"curriculum": [{"iterations": 1}], "loss": {"dice": 1}}
    ended = train(recipe(**changes, data={"manifest": str(ignoring)}), tmp_path / "run")
    assert trained_on == [{0, 1, 3}]
    config = recipe(**changes)
    step, data = load_weights(ended.weights).step, open_dataset(config, None, tmp_path / "cache")
    alone, all_labels = (
        validate(step, data.validation, config.data.grid(), config.loss.similarity.build(), ignored).measures
        for ignored in ((1, 3), ())
    )
    assert ended.best.measures["mean_dice"] == pytest.approx(alone["mean_dice"])
    assert alone["mean_dice"] != pytest.approx(all_labels["mean_dice"])


def test_a_pair_that_is_no_number_is_named_and_left_out(recipe, tmp_path, monkeypatch):
    original = pairs_module.VariedPairs.__getitem__

    def spoilt(self, number):
        sample = original(self, number)
        if number == 5:
            sample["moving"] = sample["moving"] * float("nan")
        return sample

    monkeypatch.setattr(pairs_module.VariedPairs, "__getitem__", spoilt)
    net = {"kind": "icon_unet", "down": [2, 4, 8], "up": [4, 4]}
    config = recipe(
        steps={"step": "vector_field", "net": net},
        data={"batch": 2},
        curriculum=[{"iterations": 4}],
        checkpoint_every=100,
    )
    with pytest.raises(RegistrationError) as caught:
        train(config, tmp_path / "run")
    state = content(tmp_path / "run")
    assert state["iteration"] == 2
    # Also what batch normalisation has seen is that of the iterations before.
    assert all(value.isfinite().all() for value in state["module"].values())
    message = str(caught.value)
    assert message.startswith("iteration 3: the loss or its gradient is not a number, of the pair 'head")
    assert "(regularity)" in message
    assert message.count("head") == 2, "one pair of the two of the batch"
    assert train(config, tmp_path / "run", resume=True).finished


def test_a_folder_that_holds_a_training_is_not_overwritten(recipe, tmp_path):
    config = recipe(curriculum=[{"iterations": 1}])
    train(config, tmp_path / "run")
    with pytest.raises(OutputError, match=r"exists already. Go on with it by --resume"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("name", ["config.yaml", "log.jsonl", "tensorboard"])
def test_a_new_training_replaces_no_file_that_is_there(recipe, tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(OutputError, match=f"{name}: exists already"):
        train(recipe(), tmp_path)
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_trainings_in_one_folder_one_is_refused(recipe, tmp_path, resume):
    with locked(tmp_path, "training"), pytest.raises(OutputError, match="another training is writing into it"):
        train(recipe(), tmp_path, resume=resume)


def test_a_training_goes_on_through_no_link(recipe, tmp_path):
    config = recipe(curriculum=[{"iterations": 1}])
    train(config, tmp_path / "run")
    (tmp_path / "run" / WEIGHTS).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=f"{WEIGHTS}: is a link"):
        train(config, tmp_path / "run", resume=True)


def test_what_cannot_be_resumed_is_refused(recipe, tmp_path):
    with pytest.raises(InputError, match="nothing to go on with"):
        train(recipe(), tmp_path / "nothing", resume=True)
    config = recipe(curriculum=[{"iterations": 1}])
    train(config, tmp_path / "run")
    with pytest.raises(InputError, match=r"begun with other settings of 'loss\.regularity_weight'"):
        train(recipe(curriculum=[{"iterations": 1}], loss={"regularity_weight": 3}), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"begun with other settings of 'data\.batch'"):
        train(recipe(curriculum=[{"iterations": 1}], data={"batch": 4}), tmp_path / "run", resume=True)
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"PK" + bytes(200))
    with pytest.raises(InputError, match="is no checkpoint of a training, or damaged"):
        train(config, tmp_path / "run", resume=True)


def test_a_training_without_validation_keeps_its_last_weights(recipe, tmp_path):
    config = recipe(
        data={"validation_split": None, "labels": False},
        validation={"keep_best_by": "loss"},
        curriculum=[{"iterations": 2}],
    )
    ended = train(config, tmp_path / "run")
    assert ended.best is None
    assert load_weights(ended.weights).card.training["iteration"] == 2


def test_weights_to_begin_with(recipe, tmp_path):
    first = train(recipe(curriculum=[{"iterations": 3}]), tmp_path / "first")
    state = load_weights(first.weights).step.state_dict()
    config = recipe(curriculum=[{"iterations": 1}], optimiser={"lr": 1e-30}, start=str(first.weights))
    second = train(config, tmp_path / "second")
    after = load_weights(second.weights).step.state_dict()
    assert all(torch.allclose(after[name], state[name], atol=1e-12) for name in state)
