"""A study of two small pairs, and stand-ins for methods that would take too long or would not fail when asked to."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stepwarp.files import Landmarks, sha256, write_landmarks, write_volume
from stepwarp.geometry import Grid, Image, LabelMap

STAND_INS = Path(__file__).parent / "stand_ins.py"


def write_study(folder: Path, pairs: int = 2) -> Path:
    """Blobs that are shifted against each other by 4 mm, with labels and landmarks, and their manifest."""
    grid = Grid((20, 18, 16), np.diag([-2.0, 2, 2, 1]))
    scans = {}
    for number in range(pairs + 1):
        name = f"s{number}"
        axes = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
        centre = np.array([8 + 2 * number, 9, 8])
        distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)))
        image = np.where(distance < 6, 100 - 10 * distance, 0).astype(np.float32)
        labels = (distance < 5).astype(np.uint8) + (distance < 2.5)
        write_volume(folder / f"{name}.nii.gz", Image(torch.from_numpy(image), grid))
        write_volume(folder / f"{name}_labels.nii.gz", LabelMap(torch.from_numpy(labels), grid))
        index = centre + np.array([[0, 0, 0], [2, 0, 0], [0, -2, 1]])
        points = index @ grid.linear.T + grid.affine[:3, 3]
        write_landmarks(folder / f"{name}.csv", Landmarks(("middle", "side", "back"), points))
        files = {"image": f"{name}.nii.gz", "labels": f"{name}_labels.nii.gz", "landmarks": f"{name}.csv"}
        scans[name] = files | {"sha256": {role: sha256(folder / file) for role, file in files.items()}}
    manifest = {
        "name": "blobs",
        "label_names": {"1": "shell", "2": "core"},
        "label_groups": {"shells": [1], "cores": [2]},
        "images": scans,
        "pairs": [{"id": f"s{n}_s{n + 1}", "fixed": f"s{n}", "moving": f"s{n + 1}"} for n in range(pairs)],
    }
    path = folder / "blobs.json"
    path.write_text(json.dumps(manifest))
    return path


@pytest.fixture
def manifest(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return write_study(tmp_path / "data")


@pytest.fixture
def one_pair(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return write_study(tmp_path / "data", pairs=1)


@pytest.fixture
def stand_ins(monkeypatch):
    """The methods of stand_ins.py are known here and in every case's process."""
    import importlib.util

    from stepwarp.benchmark import child, methods

    spec = importlib.util.spec_from_file_location("stand_ins", STAND_INS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, method in module.METHODS.items():
        monkeypatch.setitem(methods.METHODS, name, method)
    monkeypatch.setattr(child, "PYTHON", (sys.executable, str(STAND_INS)))
    return module
