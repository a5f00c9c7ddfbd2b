"""Several processes share a training and end with the weights that one would have found."""

import subprocess
import sys

import pytest
import torch
import yaml

from stepwarp.training.loop import CHECKPOINT, train

PART = """
import sys
import numba, torch
import yaml
from pathlib import Path
from stepwarp.training.config import check_config
from stepwarp.training.loop import train
torch.set_num_threads(1)
numba.set_num_threads(1)
train(check_config(yaml.safe_load(Path(sys.argv[1]).read_text()), "it"), Path(sys.argv[2]), resume=len(sys.argv) > 3)
"""


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_twice_the_batch(recipe, tmp_path):
    stages = [{"iterations": 3, "steps": 1}, {"iterations": 3, "frozen": 1}, {"iterations": 3}]
    both = recipe(curriculum=stages, loss={"symmetric": True})
    (tmp_path / "part.py").write_text(PART)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(both.model_dump(mode="json")))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(tmp_path / "part.py"), str(tmp_path / "recipe.yaml"), str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train(recipe(curriculum=stages, loss={"symmetric": True}, data={"batch": 2}), tmp_path / "one")
    states = [torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ("one", "two")]
    assert states[0]["pairs"] == states[1]["pairs"]
    for part in ("module", "mean"):
        for name, weights in states[0][part].items():
            assert torch.allclose(weights, states[1][part][name], atol=1e-5), name

    again = subprocess.run([*command, "resume"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
