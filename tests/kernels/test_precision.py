"""Float32 that keeps its bits, and the caller's settings that stay."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.backends import cuda, cudnn, mkldnn

from stepwarp.kernels.precision import in_full_precision, without_tf32

pytestmark = pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="reads what torch has since 2.9")


def settings() -> list[Any]:
    """All there is, old and new; None where torch does not tell, because the new ones contradict the old one."""

    def told(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except RuntimeError:
            return None

    old = [told(torch.get_float32_matmul_precision), told(lambda: cudnn.allow_tf32)]
    return [*old, *[each.fp32_precision for each in (cudnn.conv, cudnn.rnn, cuda.matmul, mkldnn.conv, mkldnn.matmul)]]


@pytest.fixture(
    params=["as they are", "old: medium", "old: none", "new: matmul", "new: everything", "new: one kind alone"]
)
def callers(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """What a caller may have set, and how it reads."""
    match request.param:
        case "old: medium":
            torch.set_float32_matmul_precision("medium")
        case "old: none":
            cudnn.allow_tf32 = False
        case "new: matmul":
            cuda.matmul.fp32_precision = "tf32"
        case "new: everything":
            torch.backends.fp32_precision = "tf32"
        case "new: one kind alone":
            cudnn.rnn.fp32_precision = "ieee"
    yield settings()
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = True


def exact() -> bool:
    """Whether nothing that is computed from float32 leaves bits out."""
    return all(said in ("ieee", "none") for said in settings()[2:])


def test_everything_is_exact_inside_and_as_before_afterwards(callers):
    with without_tf32():
        assert exact()
        with without_tf32():
            assert exact()
        assert exact(), "the inner block's end is not the outer one's"
    assert settings() == callers


def test_an_error_restores_as_well(callers):
    with pytest.raises(KeyError), without_tf32():
        raise KeyError
    assert settings() == callers


def test_of_several_threads_the_last_to_leave_restores(callers):
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with without_tf32():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with without_tf32():
        thread.start()
        entered.wait()
    assert exact(), "the other one is still inside"
    leave.set()
    thread.join()
    assert settings() == callers


def test_mixed_precision_is_left_too():
    x = torch.rand(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with in_full_precision(x):
            assert (x @ x).dtype == torch.float32


@pytest.mark.gpu
def test_convolutions_and_products_of_a_gpu_are_those_of_double_precision():
    """TF32 is off by some 1e-3 of the largest value; sums of some thousand products of float32 by 1e-6."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)
    image, weights = torch.randn(1, 32, 24, 24, 24, device="cuda"), torch.randn(32, 32, 3, 3, 3, device="cuda")
    a, b = torch.randn(2, 512, 512, device="cuda")
    torch.set_float32_matmul_precision("high")
    try:
        with without_tf32():
            found = F.conv3d(image, weights), a @ b
    finally:
        torch.set_float32_matmul_precision("highest")
    for value, true in zip(found, (F.conv3d(image.double(), weights.double()), a.double() @ b.double()), strict=True):
        assert (value - true).abs().max() < 1e-5 * true.abs().max()
