import pytest
import torch

from stepwarp.data.noise import hashed, white_noise

SHAPE = (1, 1, 40, 41, 39)


def test_it_is_white_and_normal():
    noise = white_noise(SHAPE, 7)
    assert noise.shape == SHAPE
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float((noise.abs() > 2).float().mean()) == pytest.approx(0.0455, abs=0.004)
    for axis in (2, 3, 4):
        near = noise.narrow(axis, 1, noise.shape[axis] - 1) * noise.narrow(axis, 0, noise.shape[axis] - 1)
        assert float(near.mean()) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("other", [6, 8, 7 + 2**32, 7 + 2**62])
def test_seeds_have_nothing_in_common_and_one_seed_everything(other):
    noise, another = white_noise(SHAPE, 7), white_noise(SHAPE, other)
    assert torch.equal(noise, white_noise(SHAPE, 7))
    assert float((noise * another).mean()) == pytest.approx(0, abs=0.02)
    assert float((noise.flatten()[1:] * another.flatten()[:-1]).mean()) == pytest.approx(0, abs=0.02)


def test_the_hash_is_the_published_one_and_one_to_one():
    """lowbias32 as it stands in C; of unsigned integers of 32 bits, which torch cannot multiply."""

    def lowbias32(x):
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    numbers = [0, 1, 2, 77, 2**31, 2**32 - 1]
    assert hashed(torch.tensor(numbers)).tolist() == [lowbias32(n) for n in numbers]
    assert len(hashed(torch.arange(100_000), 2**32 - 1, 12345).unique()) == 100_000
