"""Values by their rank, on a GPU as on the processor."""

import math

import pytest
import torch

from stepwarp.kernels.order import by_sorting, nth_smallest


@pytest.mark.parametrize("n", [1, 2, 500, 999, 1000])
@pytest.mark.parametrize("kind", ["different", "ties", "not a number"])
def test_a_gpu_finds_the_very_value_that_the_processor_finds(n, kind):
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    if kind == "ties":
        values = (values * 7).floor()
    elif kind == "not a number":
        values[::50] = math.nan
    expected = values.kthvalue(n).values
    torch.testing.assert_close(by_sorting(values, n), expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(nth_smallest(values, n), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
def test_a_gpu_finds_it_where_it_is():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    values = torch.rand(200_001)
    found = nth_smallest(values.cuda(), 188_000)
    assert found.device.type == "cuda"
    assert float(found) == float(values.kthvalue(188_000).values)
