"""What can go wrong for a user's reason, each kind with the exit code that the commands return for it."""

from __future__ import annotations

import errno

from stepwarp.printable import shown

_LONGEST = 1500


class StepwarpError(Exception):
    """An error to show to the user as one line: what is wrong, with what, and what to do about it.

    Parameters
    ----------
    message : str
        Is made one line, in which nothing commands a terminal.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


class InputError(StepwarpError):
    """A file or an argument cannot be used as it is."""

    exit_code = 3


class OutputError(StepwarpError):
    """A result cannot be written: no space, no permission, or it is there already."""

    exit_code = 4


class ForeignError(OutputError):
    """Something is in a result's place that stepwarp did not make. Trying again changes nothing."""


class VerificationError(StepwarpError):
    """What was written does not say what was computed: the files must not be used."""

    exit_code = 5


class RegistrationError(StepwarpError):
    """The optimisation itself broke down (a singular affine, a loss that is not a number)."""

    exit_code = 6


class MemoryShortageError(StepwarpError, MemoryError):
    """There is not enough memory for a file."""

    exit_code = 8


class ForkedError(StepwarpError):
    """A process was forked from one that computes with threads, and cannot do so itself."""

    exit_code = 6


#: Of torch, C++, the loader of shared libraries, LLVM and the starter of threads, for want of memory.
_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "failed to map segment",
    "unable to allocate",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Python, numpy, CUDA, the system and libraries each say it in their own way; some only in words, and some in the
    error that was met while another was answered."""
    if error is None:
        return False
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(words in str(error).lower() for words in _NO_MEMORY)
        or is_out_of_memory(error.__cause__ or error.__context__)
    )


#: Of torch and the libraries of CUDA, lower case.
_GPU_FAILED = (
    *("cuda error", "cuda driver error", "cuda unknown error", "cuda out of memory", "cuda-capable device"),
    *("driver initialization failed", "cudnn error", "cudnn_status", "cublas_status"),
)


def is_gpu_failure(error: BaseException | None) -> bool:
    """Whether a GPU is lost, broken or full, which says nothing about the same work on a processor."""
    if error is None:
        return False
    return (
        type(error).__name__ in ("AcceleratorError", "OutOfMemoryError")
        or (isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _GPU_FAILED))
        or is_gpu_failure(error.__cause__ or error.__context__)
    )


def first_line(error: BaseException) -> str:
    """What an error says before it explains itself, as CUDA's do at length."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _one_line(message: str) -> str:
    """Without what would break the line or command a terminal, and cut in its middle where a file's content got into
    it: names and cells of a stranger's file are in these messages."""
    line = shown(message)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
