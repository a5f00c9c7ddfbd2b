"""What is said of errors."""

import errno

import pytest
import torch

from stepwarp.errors import first_line, is_gpu_failure, is_out_of_memory


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (ImportError("libtorch_cuda.so: failed to map segment from shared object"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("std::bad_alloc"), True),
        (caused(RuntimeError("the import failed"), MemoryError()), True),
        (ImportError("No module named 'torch'"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
    ],
)
def test_out_of_memory_is_known_by_its_many_names(error, expected):
    assert is_out_of_memory(error) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nFor debugging consider"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (caused(ValueError("a part failed"), RuntimeError("CUDA error: the launch timed out")), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), False),
        (MemoryError(), False),
        (RuntimeError("No CUDA-capable device is detected"), True),
        (ValueError("CUDA error: is what a file is called"), False),
    ],
)
def test_a_gpu_that_failed_is_told_from_a_processor_that_did(error, expected):
    assert is_gpu_failure(error) == expected


def test_of_a_long_explanation_the_first_line_is_said():
    assert first_line(RuntimeError("CUDA error: lost\nFor debugging")) == "CUDA error: lost"
    assert first_line(RuntimeError()) == "RuntimeError"
