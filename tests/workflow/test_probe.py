"""The probes of a small registrar that was not trained, and is a descent by construction, from files to files."""

import json
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stepwarp.cli.probe import probe
from stepwarp.errors import InputError, OutputError
from stepwarp.files import sha256, write_volume
from stepwarp.geometry import Image, LabelMap
from stepwarp.kernels.smoothing import gaussian
from stepwarp.probes.findings import QUESTIONS
from stepwarp.registrar.steps.config import build
from stepwarp.registrar.weights import Card, save_native_weights
from stepwarp.training.config import check_config
from stepwarp.training.dataset import network_recipe
from stepwarp.workflow.probe import JSON, PAGE, probe_weights

MM, SIDE, HEADS = 6.0, 22, 3
GUIDED = {"step": "guided", "net": {"kind": "unet", "channels": [2, 4]}}


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """Every test here runs on one thread."""


def head(seed, grid):
    """Shells, bent at random, with texture: an image and its labels."""
    rng = np.random.default_rng(seed)
    bend = gaussian(torch.from_numpy(rng.standard_normal((1, 3, *grid.shape), dtype=np.float32)), 2.5)
    centre = torch.tensor([(n - 1) / 2 for n in grid.shape]).view(1, 3, 1, 1, 1)
    radius = (grid.indices() + 1.2 * bend / bend.std() - centre).norm(dim=1)[0]
    labels = (radius < 9).int() + (radius < 6).int() + (radius < 3).int()
    texture = torch.from_numpy(rng.standard_normal(grid.shape, dtype=np.float32))
    values = torch.tensor([0.0, 700.0, 1000.0, 300.0])[labels.long()] + 20 * texture
    image = gaussian(values[None, None], 0.7)[0, 0] * (labels > 0)
    return Image(image.clamp_min(0), grid), LabelMap(labels.to(torch.uint8), grid)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A manifest of three heads that are known to be aligned, and the weights of a guided pyramid for them."""
    folder = tmp_path_factory.mktemp("heads")
    steps = {
        "step": "two_step",
        "steps": [
            {"step": "downsampled", "inner": {"step": "repeat", "n": 2, "inner": GUIDED}},
            {"step": "repeat", "n": 3, "inner": GUIDED},
        ],
    }
    data = {
        "manifest": "heads",
        "box_mm": [SIDE * MM] * 3,
        "spacing_mm": MM,
        "labels": True,
        "held_out": [f"h{n}" for n in range(HEADS)],
    }
    config = check_config(
        {
            "name": "heads-net",
            "data": data,
            "steps": steps,
            "loss": {"grids": [{"mm": MM}], "regularity_weight": 0.05},
            "curriculum": [{"iterations": 1}],
        },
        "the recipe",
    )
    grid = config.data.grid()
    alignments = folder / "cache" / "alignments"
    alignments.mkdir(parents=True)
    images = {}
    for number in range(HEADS):
        image, labels = head(number, grid)
        paths = {"image": f"h{number}.nii.gz", "labels": f"l{number}.nii.gz"}
        write_volume(folder / paths["image"], image)
        write_volume(folder / paths["labels"], labels)
        content = {"version": 1, "reference": "MNI152", "loss": 0.0, "matrix": np.eye(4).tolist()}
        (alignments / f"{sha256(folder / paths['image'])}.json").write_text(json.dumps(content))
        images[f"h{number}"] = {**paths, "split": "training"}
    # A scan that the probes do not need, and that is not there.
    images["absent"] = {"image": "absent.nii.gz", "split": "training"}
    (folder / "manifest.json").write_text(json.dumps({"name": "heads", "licence": "none", "images": images}))
    torch.manual_seed(0)
    card = Card(
        name="<b>heads</b>-net", data="heads", licence="none", training={"settings": config.model_dump(mode="json")}
    )
    state = build(config.steps, 3).state_dict()
    save_native_weights(folder / "weights.safetensors", config.steps, state, network_recipe(config), card)
    return folder


@pytest.fixture(scope="module")
def probed(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "probes"
    seen = []
    record = probe_weights(
        place / "weights.safetensors",
        place / "manifest.json",
        out,
        pairs=HEADS,
        cache=place / "cache",
        device="cpu",
        threads=1,
        progress=seen.append,
    )
    return record, out, seen


def test_every_probe_has_its_numbers_and_sentences(probed):
    record, out, seen = probed
    assert json.loads((out / JSON).read_text()) == record
    assert record["pairs"] == ["h0_h1", "h1_h2", "h2_h0"]
    assert set(record["probes"]) == set(QUESTIONS)
    for found in record["probes"].values():
        assert found["findings"]
        assert found["numbers"]
    assert [step.done for step in seen if step.stage == "probe"][-1] == len(QUESTIONS)
    assert record["steps"] == 5


def test_numbers_have_a_value_per_pair_and_an_interval(probed):
    numbers = probed[0]["probes"]["a"]["numbers"]
    assert np.array(numbers["loss, 1 x"]["values"]).shape == (6, HEADS)
    assert np.array(numbers["loss, 4 x"]["values"]).shape == (21, HEADS)
    last = numbers["loss, 1 x"]["rows"][-1]
    low, high = last["ci95"]
    assert low <= last["mean"] <= high
    assert last["mean"] == pytest.approx(np.mean(numbers["loss, 1 x"]["values"][-1]), abs=1e-6)


def test_a_descent_is_found_to_be_one(probed):
    probes = probed[0]["probes"]
    numbers = probes["b"]["numbers"]
    best = max(numbers[f"smooth {width:g}, all steps"]["value"]["mean"] for width in (1, 1.5, 2))
    assert best > 0.5
    assert numbers["smooth 1.5 of another pair, all steps"]["value"]["mean"] < best - 0.2
    assert "are a descent of this objective" in probes["b"]["findings"][1]
    assert "it follows its target" in probes["h"]["findings"][0]
    loss = probes["a"]["numbers"]["loss, 1 x"]["rows"]
    assert loss[-1]["mean"] < loss[0]["mean"]
    # Where an image meets itself there is no force.
    assert probes["f"]["numbers"]["drift, same image"]["rows"][-1]["mean"] < 0.05
    contrast = probes["contrast"]["numbers"]
    assert contrast["share, as they were"]["value"]["mean"] == pytest.approx(1)
    # The correlation does not know a contrast's direction.
    assert contrast["share, moving image with gamma 0.5"]["value"]["mean"] > 0.5
    assert contrast["share, map of another pair"]["value"]["mean"] < 0.5


def test_the_page_is_whole_escaped_and_loads_nothing(probed):
    page = (probed[1] / PAGE).read_text()
    assert page.count("<svg") == page.count("</svg>") == 11
    assert "&lt;b&gt;heads" in page
    assert "<b>heads" not in page
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:|//)", page)
    for found in probed[0]["probes"].values():
        for sentence in found["findings"]:
            assert sentence.replace("'", "&#x27;") in page


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (JSON, '{"precious": 1}', "is no result of stepwarp probe"),
        (PAGE, "<p>precious</p>", "no probes.json beside it"),
    ],
)
def test_force_replaces_no_file_that_no_probe_wrote(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(OutputError, match=reason):
        probe_weights("absent", "absent", tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == content


def test_results_are_not_replaced_unless_asked(probed, place):
    result = CliRunner().invoke(_app(), _arguments(place, probed[1]))
    assert isinstance(result.exception, OutputError)
    assert "--force" in str(result.exception)
    with pytest.raises(OutputError, match="exists already"):
        probe_weights(place / "weights.safetensors", place / "manifest.json", probed[1])


def test_what_cannot_be_probed_is_said(place, tmp_path):
    def run(weights="weights.safetensors", manifest="manifest.json", **more):
        more = {"pairs": 2, "device": "cpu", "threads": 1, **more}
        probe_weights(place / weights, place / manifest, tmp_path / "out", cache=place / "cache", **more)

    with pytest.raises(InputError, match="Probe 2 or more"):
        run(pairs=1)
    with pytest.raises(InputError, match="is no file"):
        run(weights="none.safetensors")
    listed = json.loads((place / "manifest.json").read_text())
    listed |= {"name": "other", "images": {"h0": listed["images"]["h0"]}}
    (place / "one.json").write_text(json.dumps(listed))
    with pytest.raises(InputError, match="fewer than two pairs"):
        run(manifest="one.json")
    (place / "two.json").write_text(
        json.dumps(listed | {"images": {n: {"image": f"{n}.nii.gz", "split": n} for n in ("h0", "h1")}})
    )
    with pytest.raises(InputError, match="no split 'validation', but h0, h1"):
        run(manifest="two.json")


def _app():
    import typer

    app = typer.Typer()
    app.command()(probe)
    return app


def _arguments(place, out):
    return ["-w", str(place / "weights.safetensors"), "-m", str(place / "manifest.json"), "-o", str(out)]
