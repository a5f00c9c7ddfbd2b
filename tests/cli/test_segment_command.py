import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from stepwarp.files import read_labels, sha256
from stepwarp.layout import SEGMENTED
from stepwarp.networks.segmenter import Segmenter
from stepwarp.registrar.weights import Card
from stepwarp.segment import KnownStructure, Segmentation, save_segmenter
from stepwarp.segment.head import Head

KNOWN = (
    KnownStructure(id=2, name="white", millilitres=(1, 50), centre=(0, 0, 5)),
    KnownStructure(id=24, name="fluid", brain=False, millilitres=(1, 50), centre=(0, 0, 0)),
)


@pytest.fixture
def head_file(tmp_path):
    path = tmp_path / "head.nii.gz"
    values = np.random.default_rng(0).random((12, 14, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([-2.0, 2, 2, 1])), path)
    return path


@pytest.fixture
def found(monkeypatch):
    """What a segmenter would find: a block of white matter. `.head` of it is what each test says."""
    import stepwarp.workflow.segment as module

    class Found(Segmentation):
        head = Head(0.9, 1.0, 2.0, 1200.0)

    def segment(image, segmenter):
        probabilities = torch.zeros(3, *image.grid.shape)
        probabilities[0] = 1
        probabilities[:2, 3:9, 3:9, 3:9] = torch.tensor([0.0, 1.0])[:, None, None, None]
        return Found(image, KNOWN, probabilities, image.grid)

    monkeypatch.setattr(module, "segment", segment)
    return Found


def test_structures_mask_volumes_and_record_are_written(run, head_file, found, tmp_path):
    done = run("segment", head_file, "--out", tmp_path / "out", "--threads", 1)
    assert done.code == 0, done.err
    assert "white                             1.7 ml" in done.out
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == set(SEGMENTED)
    structures, mask = (read_labels(out / f"{name}.nii.gz") for name in ("structures", "mask"))
    assert np.array_equal(structures.grid.affine, np.diag([-2.0, 2, 2, 1]))
    assert (int((structures.data == 2).sum()), int(mask.data.sum())) == (6**3, 6**3)
    rows = list(csv.DictReader((out / "volumes.csv").open()))
    assert [(row["id"], row["name"], row["ml"]) for row in rows] == [
        ("", "brain mask", "1.728"),
        ("2", "white", "1.728"),
        ("24", "fluid", "0.0"),
    ]
    record = json.loads((out / "segmentation.json").read_text())
    assert (record["segmenter"]["name"], record["head"]["is_head"]) == ("brain-any", True)
    assert record["input"]["path"] == str(head_file)


def test_json_prints_the_record_alone(run, head_file, found, tmp_path):
    done = run("segment", head_file, "--out", tmp_path / "out", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == json.loads((tmp_path / "out" / "segmentation.json").read_text())


def test_what_is_no_head_is_refused_and_leaves_nothing(run, head_file, found, tmp_path, monkeypatch):
    monkeypatch.setattr(found, "head", Head(0.4, 0.3, 40.0, 2199.0))
    done = run("segment", head_file, "--out", tmp_path / "out")
    assert done.code == 3
    assert done.err.splitlines()[-1].startswith(f"stepwarp: {head_file}: does not look like a head")
    assert "30% have a volume that can be" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["head.nii.gz"]


def test_a_label_map_is_refused_before_anybody_looks_at_it(run, head_file, found, tmp_path):
    labels = np.zeros((12, 14, 16), np.uint8)
    labels[3:9, 3:9, 3:9] = 7
    labels[5:7, 5:7, 5:7] = 9
    nib.save(nib.Nifti1Image(labels, np.eye(4)), head_file)
    done = run("segment", head_file, "--out", tmp_path / "out")
    assert done.code == 3
    assert "head.nii.gz: holds labels, whole numbers in patches" in done.err
    assert not (tmp_path / "out").exists()


def test_nothing_is_replaced_unasked_and_nothing_of_others_at_all(run, head_file, found, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mask.nii.gz").write_text("somebody's")
    assert run("segment", head_file, "--out", out).code == 4
    forced = run("segment", head_file, "--out", out, "--force")
    assert (forced.code, "says that stepwarp wrote it" in forced.err) == (4, True)
    assert (out / "mask.nii.gz").read_text() == "somebody's"
    (out / "mask.nii.gz").unlink()
    assert run("segment", head_file, "--out", out).code == 0
    assert run("segment", head_file, "--out", out).code == 4
    assert run("segment", head_file, "--out", out, "--force").code == 0


def test_other_weights_are_taken_by_their_file(run, head_file, found, tmp_path):
    known = [KnownStructure(id=1, name="all of it", millilitres=(1, 2), centre=(0, 0, 0))]
    card, shape = Card(name="mine", data="none", licence="none"), {"channels": (4,), "convolutions": 1, "mm": 2}
    state = Segmenter(3, 2, shape["channels"], shape["convolutions"]).state_dict()
    save_segmenter(tmp_path / "mine.safetensors", state, known, card, box=(8, 8, 8), **shape)
    done = run("segment", head_file, "--weights", tmp_path / "mine.safetensors", "--out", tmp_path / "out", "--json")
    assert json.loads(done.out)["segmenter"] == {
        "name": "mine",
        "licence": "none",
        "sha256": sha256(tmp_path / "mine.safetensors"),
    }
    missing = run("segment", head_file, "--weights", "brain-an", "--out", tmp_path / "other")
    assert (missing.code, "no weights of that name" in missing.err) == (3, True)
