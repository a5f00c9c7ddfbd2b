import json

import numpy as np
import pytest
import torch

from stepwarp.data.settings import box_grid
from stepwarp.files import sha256, write_affine, write_volume
from stepwarp.geometry import Affine, Image, LabelMap
from stepwarp.kernels.smoothing import gaussian
from stepwarp.training.config import check_config, read_config

#: The network's world of these tests: voxels of the recipes' size times SCALE.
MM, SCALE, SIDE = 5, 2.5, 36
GRID = box_grid((0, -18, 8), (SIDE * MM,) * 3, MM)
#: Of the heads.
STRUCTURES = [{"id": number, "name": name} for number, name in enumerate(("outer", "middle", "inner"), 1)]
#: What a teacher says of every pair: a shift, in mm.
TAUGHT_MM = (6.0, 0.0, -4.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test here runs on one thread."""


def head(seed):
    """A round head of shells, bent at random, on GRID: an image and its labels."""
    rng = np.random.default_rng(seed)
    smooth = gaussian(torch.from_numpy(rng.standard_normal((1, 3, *GRID.shape), dtype=np.float32)), 3)
    bend = 2.5 * smooth / smooth.std()
    centre = torch.tensor([(n - 1) / 2 for n in GRID.shape]).view(1, 3, 1, 1, 1)
    radius = ((GRID.indices() + bend - centre) * torch.tensor([1.0, 0.9, 1.1]).view(1, 3, 1, 1, 1)).norm(dim=1)[0]
    labels = (radius < 13).int() + (radius < 9).int() + (radius < 5).int()
    values = torch.tensor([0.0, 700.0, 1000.0, 300.0])[labels.long()]
    texture = torch.from_numpy(rng.standard_normal(GRID.shape, dtype=np.float32))
    image = gaussian((values + 30 * texture)[None, None], 0.7)[0, 0]
    return Image((image * (labels > 0)).clamp_min(0), GRID), LabelMap(labels.to(torch.uint8), GRID)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
    """A manifest of five heads, three to train on and two to validate on, that are known to be aligned already."""
    folder = tmp_path_factory.mktemp("heads")
    alignments = folder / "cache" / "alignments"
    alignments.mkdir(parents=True)
    images = {}
    for number in range(5):
        image, labels = head(number)
        paths = {"image": f"head{number}.nii.gz", "labels": f"labels{number}.nii.gz"}
        write_volume(folder / paths["image"], image)
        write_volume(folder / paths["labels"], labels)
        content = {"version": 1, "reference": "MNI152", "loss": 0.0, "matrix": np.eye(4).tolist()}
        (alignments / f"{sha256(folder / paths['image'])}.json").write_text(json.dumps(content))
        images[f"head{number}"] = {**paths, "split": "training" if number < 3 else "validation"}
    matrix = np.eye(4)
    matrix[:3, 3] = TAUGHT_MM
    write_affine(folder / "teacher.mat", Affine(matrix))
    listed = {
        "name": "heads",
        "licence": "none",
        "label_names": {"1": "outer", "2": "middle", "3": "inner"},
        "images": images,
        "pairs": [{"id": "taught", "fixed": "head0", "moving": "head1", "transforms": {"teacher": "teacher.mat"}}],
    }
    (folder / "manifest.json").write_text(json.dumps(listed))
    return folder / "manifest.json"


@pytest.fixture
def heads(manifest):
    """The settings of the data: all heads, as they are."""
    return {
        "manifest": str(manifest),
        "validation_split": "validation",
        "labels": True,
        "box_mm": [SIDE * MM] * 3,
        "spacing_mm": MM,
        "cache": str(manifest.parent / "cache"),
        "augment": None,
    }


@pytest.fixture
def recipe(heads):
    """A recipe that trains in a second or two; recipe(**changes) merges them into its sections."""

    def make(**changes):
        unet = {"kind": "unet", "channels": [4, 8]}
        values = {
            "name": "test",
            "data": heads,
            "steps": {
                "step": "two_step",
                "steps": [
                    {"step": "downsampled", "inner": {"step": "vector_field", "net": unet}},
                    {"step": "vector_field", "net": unet},
                ],
            },
            "loss": {"similarity": {"kind": "ssd"}, "grids": [{"mm": 2 * MM}], "regularity_weight": 0.01},
            "optimiser": {"lr": 0.003, "warm_up": 0},
            "curriculum": [{"iterations": 6, "steps": 1}, {"iterations": 6}],
            "validation": {"every": 6, "pairs": 1},
            "checkpoint_every": 4,
        }
        for key, value in changes.items():
            merges = isinstance(value, dict) and key != "steps"
            values[key] = {**values.get(key, {}), **value} if merges else value
        return check_config(values, "the recipe")

    return make


@pytest.fixture
def family(heads):
    """family(name): the recipe that comes with stepwarp, on two heads of the tests' size, for a few iterations."""

    def make(name):
        values = read_config(name).model_dump(mode="json")
        data = {**values["data"], **heads, "split": "training", "validation_split": None, "held_out": ["head2"]}
        data |= {"workers": 0, "detail": 1, "batch": 1}
        if data["synthesis"] is not None:
            data["synthesis"] = {"keep": [1, 2, 3]}
        data["teacher"] = values["data"]["teacher"]
        factor = MM / values["data"]["spacing_mm"]
        grids = [stage.get("grids") or () for stage in values["curriculum"]] + [values.get("loss", {}).get("grids", ())]
        for grid in (grid for each in grids for grid in each):
            grid["mm"] *= factor
        # Of images painted anew each time there is less to learn in one iteration.
        iterations = 3 if data["synthesis"] is None else 8
        curriculum = [{**stage, "iterations": iterations} for stage in values["curriculum"]]
        if "segmenter" in values:
            values["segmenter"] = {"channels": [8, 8], "structures": STRUCTURES}
        elif values["steps"]["step"] == "segmented":
            values["steps"]["segmenter"] |= {"classes": 4, "channels": [8, 8]}
            values["start"] = None
        optimiser = {"lr": 0.001, "warm_up": 0, "final": 1, "ema": 0}
        return check_config({**values, "data": data, "curriculum": curriculum, "optimiser": optimiser}, name)

    return make
