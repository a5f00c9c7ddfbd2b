import json

import pytest
import torch


@pytest.fixture
def strokes(monkeypatch):
    """Digits without files: two classes of noise, each about a picture of its own."""
    from stepwarp.mnist import data

    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([1, 5, 7]).repeat(20)
    pictures = torch.rand(10, 1, 28, 28, generator=generator)
    images = (pictures[labels] + 0.3 * torch.rand(60, 1, 28, 28, generator=generator)).clamp(0, 1)
    digits = data.Digits(images, labels, "noise")
    monkeypatch.setattr(data, "load_digits", lambda folder: data.Mnist(digits, digits))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "{steps: 2, hidden: [4], later: 2, training: {batch: 4, iterations: 2, optimiser: {lr: 1.0e-3}},"
        " quick: {seeds: 1, pairs: 4, evaluations: 3, examples: 64, variations: false}}"
    )
    return path


def test_train_and_probe_share_a_folder(run, strokes, config, tmp_path, one_thread):
    out = tmp_path / "mnist"
    given = ("--out", out, "--quick", "--config", config, "--threads", torch.get_num_threads())
    result = run("mnist", "train", *given)
    assert result.code == 0, result.err
    assert "digits   noise" in result.out
    assert "fives        SSD reduced on held-out pairs by" in result.out
    weights = (out / "models" / "fives_seed0.safetensors").stat().st_mtime_ns
    result = run("mnist", "probe", "--only", "ah", *given)
    assert result.code == 0, result.err
    assert list(json.loads((out / "summary.json").read_text())["answers"]) == ["a", "h"]
    assert (out / "models" / "fives_seed0.safetensors").stat().st_mtime_ns == weights
    assert f"look at  {out / 'mnist.html'}" in result.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["probe", "--only", "axz"], 3, "there is no probe x, z"),
        (["all", "--config", "none.yaml"], 3, "none.yaml: does not exist"),
        (["train", "--data", "nowhere"], 3, "nowhere: is no folder"),
        (["train", "--threads", "0"], 2, "--threads"),
    ],
)
def test_mistakes_end_with_one_line(run, arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("mnist", *arguments)
    assert result.code == code
    assert message in " ".join(result.err.split())
    assert not any(tmp_path.iterdir())


def test_a_study_of_other_settings_is_not_overwritten(run, strokes, config, tmp_path, one_thread):
    out = tmp_path / "mnist"
    given = ("--out", out, "--quick", "--threads", torch.get_num_threads())
    assert run("mnist", "train", *given, "--config", config).code == 0
    config.write_text(config.read_text().replace("steps: 2", "steps: 3"))
    result = run("mnist", "train", *given, "--config", config)
    assert result.code == 4
    assert "--force" in result.err
    assert run("mnist", "train", *given, "--config", config, "--force").code == 0


def test_help_is_there_for_every_part(run):
    for part in ("train", "evaluate", "probe", "all"):
        text = run("mnist", part, "--help").out
        assert all(f" {option}" in text for option in ("--data", "--out", "--quick", "--force"))
