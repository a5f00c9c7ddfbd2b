"""One registration in two processes: the same bits in every file, and no word to the network."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stepwarp.config import Preset
from stepwarp.files import read_image, write_volume
from stepwarp.networks.config import UNetConfig
from stepwarp.registrar.steps.config import build
from stepwarp.registrar.steps.types.velocity import VelocityConfig
from stepwarp.registrar.weights import Card, Recipe, load_weights, save_native_weights
from stepwarp.registrar.weights.recipe import Spacing, Tissue
from stepwarp.workflow.device import same_bits

#: Prints what `outcome` says in a process that can speak to nobody, and to whom it tried to.
_SCRIPT = """
import json, sys
from pathlib import Path

tried = []
def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.gethostname", "socket.__new__"):
        tried.append(f"{event} {arguments}")
        raise PermissionError("no network")
sys.addaudithook(watch)

sys.path.insert(0, sys.argv[1])
from test_same_bits import outcome
said = outcome(*map(Path, sys.argv[2:]))
print(json.dumps(said | {"tried": tried}))
"""


def outcome(folder: Path, out: Path) -> dict[str, Any]:
    """The pair in a folder, registered by the preset and by the network there, and judged."""
    from stepwarp.workflow.evaluate import evaluate_files
    from stepwarp.workflow.register import register

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
    said = {"hashes": hashes, "measures": found.record["measures"], "folds": evaluated["folds"]}
    return said | {"unsure": unsure, "deterministic": found.record["deterministic"]}


@pytest.fixture
def twice(tmp_path, brains, recipe):
    """What this process and a new one say of the same registration."""
    write_volume(tmp_path / "fixed.nii.gz", brains.fixed)
    write_volume(tmp_path / "moving.nii.gz", brains.moving)
    (tmp_path / "preset.json").write_text(recipe.model_dump_json())
    config = VelocityConfig(net=UNetConfig(channels=(4, 8)))
    torch.manual_seed(0)
    state = {name: tensor + 0.05 * torch.randn(tensor.shape) for name, tensor in build(config, 3).state_dict().items()}
    card = Card(name="at random", data="none", licence="none")
    wants = Recipe(intensities=Tissue(), grid=Spacing(mm=6, multiple=4))
    save_native_weights(tmp_path / "w.safetensors", config, state, wants, card)
    command = [sys.executable, "-c", _SCRIPT, str(Path(__file__).parent), str(tmp_path), str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
    here = json.loads(json.dumps(outcome(tmp_path, tmp_path / "here")))
    return here, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
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
    assert second["tried"] == [], "nothing speaks to the network"
