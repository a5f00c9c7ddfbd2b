"""Samples are made where the scans lie: without a GPU, of which torch's device "meta" stands for one (tensors without
values, so that whatever waits for one is an error there), and the reference kernels for those of a GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stepwarp.data.augment import Augmentation
from stepwarp.data.pairs import PairLoader, PairTable, VariedPairs
from stepwarp.data.settings import AugmentSettings, SynthesisSettings
from stepwarp.data.synthesis import Synthesis
from stepwarp.kernels import backend

EVERYTHING = AugmentSettings(elastic=1, bias=1, gamma=1, blur=1, noise=1, slices=1, cut=1, flip=1)
PAINTED = SynthesisSettings(keep=(2, 41), keep_share=0.5, rough=0.5, t1_like=0.3, t2_like=0.3, bright_background=0.5)
PARTNERS = {2: 41, 41: 2}


def varied(scans, synthesis=None, detail=2, seed=0):
    device = scans["s0"].image.device
    table = PairTable(("s0", "s1"), np.array([0]), np.array([1]))
    augmentation = Augmentation(EVERYTHING, scans.grid, PARTNERS, device)
    painter = None if synthesis is None else Synthesis(synthesis, PARTNERS, detail)
    made = {"augmentation": augmentation, "synthesis": painter, "detail": detail}
    return VariedPairs(scans, table, seed=seed, labels=True, **made)


def tensors(sample):
    return {name: value for name, value in sample.items() if name != "pair"}


@pytest.mark.parametrize("synthesis", [None, PAINTED])
def test_nothing_waits_for_the_device_or_comes_from_elsewhere(held, synthesis):
    batch = next(iter(PairLoader(varied(held(2).to("meta"), synthesis))))
    assert {value.device.type for value in tensors(batch).values()} == {"meta"}
    assert {tuple(value.shape) for value in tensors(batch).values()} == {(1, 1, 10, 12, 9)}


def assert_same(one, other):
    """But for rounding, which may take a voxel on the edge between two labels for one or the other."""
    for name, value in tensors(one).items():
        apart = (value.float() - tensors(other)[name].cpu().float()).abs()
        assert (apart > 1e-3).float().mean() < 2e-3, name
        assert apart.median() < 1e-5, name


@pytest.mark.parametrize("synthesis", [None, PAINTED])
def test_every_back_end_makes_the_same(held, synthesis):
    for seed in range(4):
        with backend.use("reference"):
            plain = varied(held(2), synthesis, seed=seed)[3]
        assert_same(plain, varied(held(2), synthesis, seed=seed)[3])


@pytest.mark.gpu
@pytest.mark.parametrize("synthesis", [None, PAINTED])
def test_a_gpu_makes_the_same(held, synthesis):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    for seed in range(4):
        there = varied(held(2).to("cuda"), synthesis, seed=seed)[3]
        assert all(value.is_cuda for value in tensors(there).values())
        assert_same(varied(held(2), synthesis, seed=seed)[3], there)


@pytest.mark.parametrize("flip", [0, 1])
def test_labels_stay_where_the_image_shows_them(held, flip):
    """An image that shows one structure of its label map alone, moved as an image, is the share of the structure in
    each voxel; there the moved label map says so, under its name of the other side where it was mirrored."""
    motion = AugmentSettings(bias=0, gamma=0, blur=0, noise=0, slices=0, elastic=1, flip=flip)
    scans = held(2)
    drawn = {
        name: replace(scan, image=255 * (scan.index == 1).to(torch.uint8), unit=1 / 255)
        for name, scan in scans.scans.items()
    }
    pairs = varied(replace(scans, scans=drawn))
    pairs.augmentation = Augmentation(motion, scans.grid, PARTNERS)
    expected, apart = 2 if flip else 41, []
    for number in range(6):
        sample = pairs[number]
        for side in ("fixed", "moving"):
            share, found = sample[side][0], (sample[f"{side}_labels"] == expected)[0]
            assert found[share > 0.9].all()
            assert not found[share < 0.1].any()
            one, other = (
                (each.nonzero() * each[each > 0][:, None]).sum(0) / each.sum() for each in (share, found.float())
            )
            apart.append(one - other)
    assert torch.stack(apart).mean(0).abs().max() < 0.06, "in voxels of the network: no half of one of the scans'"
