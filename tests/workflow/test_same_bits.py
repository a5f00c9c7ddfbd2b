"""One registration in two processes: the same bits in every file, and no word to the network."""

import json
import os
import subprocess
import sys

import pytest
import torch

from stepwarp.files import write_volume
from stepwarp.networks.config import UNetConfig
from stepwarp.registrar.steps.config import build
from stepwarp.registrar.steps.types.velocity import VelocityConfig
from stepwarp.registrar.weights import Card, Recipe, save_native_weights
from stepwarp.registrar.weights.recipe import Spacing, Tissue

_SCRIPT = """
import hashlib, json, sys
from pathlib import Path

tried = []
def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.gethostname", "socket.__new__"):
        tried.append(f"{event} {arguments}")
        raise PermissionError("no network")
sys.addaudithook(watch)

import stepwarp
from stepwarp.config import Preset
from stepwarp.files import read_image
from stepwarp.registrar.weights import load_weights
from stepwarp.workflow.device import same_bits
from stepwarp.workflow.evaluate import evaluate_files
from stepwarp.workflow.register import register

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
fixed, moving = folder / "fixed.nii.gz", folder / "moving.nii.gz"
preset = Preset.model_validate_json((folder / "preset.json").read_text())
with same_bits() as unsure:
    found = register(fixed, moving, preset=preset, threads=2, device="cpu")
    found.save(out)
    network = load_weights(folder / "w.safetensors").register(read_image(fixed), read_image(moving))
evaluated = evaluate_files(fixed, moving, [out])
written = [path for path in out.iterdir() if path.suffix not in (".json", ".html")]
hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
hashes["network"] = hashlib.sha256(network.on(read_image(fixed).grid).displacement.numpy().tobytes()).hexdigest()
said = {"hashes": hashes, "measures": found.record["measures"], "folds": evaluated["folds"], "tried": tried}
print(json.dumps(said | {"unsure": unsure, "deterministic": found.record["deterministic"]}))
"""


@pytest.fixture(scope="module")
def twice(tmp_path_factory, brains, recipe):
    """What two processes say of the same registration."""
    folder = tmp_path_factory.mktemp("pair")
    write_volume(folder / "fixed.nii.gz", brains.fixed)
    write_volume(folder / "moving.nii.gz", brains.moving)
    (folder / "preset.json").write_text(recipe.model_dump_json())
    config = VelocityConfig(net=UNetConfig(channels=(4, 8)))
    torch.manual_seed(0)
    state = {name: tensor + 0.05 * torch.randn(tensor.shape) for name, tensor in build(config, 3).state_dict().items()}
    card = Card(name="at random", data="none", licence="none")
    wants = Recipe(intensities=Tissue(), grid=Spacing(mm=6, multiple=4))
    save_native_weights(folder / "w.safetensors", config, state, wants, card)
    said = []
    for name in ("first", "second"):
        command = [sys.executable, "-c", _SCRIPT, str(folder), str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout.splitlines()[-1]))
    return said


def test_every_file_has_the_same_bits_in_both(twice):
    first, second = twice
    assert set(first["hashes"]) > {
        "0GenericAffine.mat",
        "1Warp.nii.gz",
        "1InverseWarp.nii.gz",
        "Warped.nii.gz",
        "network",
    }
    assert first["hashes"] == second["hashes"]
    assert first["measures"] == second["measures"]
    assert first["deterministic"] is True
    assert first["unsure"] == []


def test_nothing_speaks_to_the_network(twice):
    assert [said["tried"] for said in twice] == [[], []]
