"""Registrars from settings."""

import pytest
import torch
from pydantic import ValidationError

from stepwarp.geometry import Grid
from stepwarp.registrar.steps import Images, Repeat, TwoStep, Velocity
from stepwarp.registrar.steps.config import build, read_step

UNET = {"kind": "unet", "channels": [4, 8]}
TREE = {
    "step": "two_step",
    "steps": [
        {"step": "repeat", "n": 2, "inner": {"step": "matrix", "net": {"channels": [4]}}},
        {"step": "downsampled", "inner": {"step": "vector_field", "net": UNET, "scale": 0.5}},
        {"step": "velocity", "net": UNET, "squarings": 3},
    ],
}


@pytest.mark.parametrize("shape", [(20,), (12, 15), (9, 8, 11)], ids=str)
def test_every_kind_of_step_can_be_built_and_runs(shape):
    step = build(read_step(TREE), len(shape))
    assert isinstance(step, TwoStep)
    assert isinstance(step.second, Velocity)
    assert isinstance(step.first.first, Repeat)
    images = Images(torch.rand(1, 1, *shape), Grid.isotropic(shape))
    assert step(images, images).on(images.grid).displacement.abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(20,), (12, 15), (12, 8, 10)], ids=str)
def test_segmented_steps_can_be_built_and_run(shape):
    guided = {"step": "guided", "net": UNET}
    inner = {"step": "two_step", "steps": [{"step": "downsampled", "inner": guided}, guided]}
    config = read_step({"step": "segmented", "segmenter": {"classes": 3, "channels": [8]}, "codes": 2, "inner": inner})
    images = Images(torch.rand(1, 1, *shape), Grid.isotropic(shape))
    assert build(config, len(shape))(images, images).on(images.grid).displacement.abs().max() < 0.1


def test_settings_survive_the_way_to_a_file_and_back():
    config = read_step(TREE)
    assert read_step(config.model_dump(mode="json")) == config
    torch.manual_seed(0)
    first = build(config, 2).state_dict()
    torch.manual_seed(0)
    second = build(read_step(config.model_dump(mode="json")), 2).state_dict()
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": "velocity", "sqarings": 3}, "did you mean 'squarings'"),
        ({"step": "volocity"}, "two_step"),
        ({"step": "two_step", "steps": [{"step": "matrix"}]}, "at least 2"),
        ({"step": "repeat", "n": 0, "inner": {"step": "matrix"}}, "greater than or equal to 1"),
        ({"step": "vector_field", "net": {"kind": "unet", "channels": []}}, "at least 1"),
        ({"step": "matrix", "net": {"kind": "unet"}}, "encoder"),
        ({"step": "vector_field", "scale": float("nan")}, "scale"),
        ({"step": "segmented", "segmenter": {"classes": 3}, "inner": {"step": "velocity"}}, "velocity is none"),
        ("velocity", "dictionary"),
    ],
)
def test_what_makes_no_sense_is_an_error_that_says_so(values, message):
    with pytest.raises(ValidationError, match=message):
        read_step(values)


def test_a_network_for_one_shape_refuses_another_number_of_axes():
    config = read_step({"step": "vector_field", "net": {"kind": "fcnet", "shape": [8, 8]}, "unit": "extent"})
    assert sum(weights.numel() for weights in build(config, 2).parameters()) > 0
    with pytest.raises(ValueError, match="3 dimensions"):
        build(config, 3)
