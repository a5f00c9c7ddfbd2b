"""What is said of errors."""

import errno

import pytest

from stepwarp.errors import is_out_of_memory


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
