"""How the kernels of this package become machine code: compiled once, by a process of its own, and ever after loaded
from files.

What numba compiles in a process and what it loads from its cache are not the same instructions: a process that
compiles also holds a kernel's inner loop as it was first translated, and links that, where one that loads links the
one that was optimised once more within the kernel. A last bit differs, and with it a registration. So no process runs
what it compiled itself."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numba import boolean, float32, float64, int64, njit
from numba.core.caching import IndexDataCacheFile
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps

from stepwarp.kernels.cpu import kernel_files, threading_layer

#: Arguments of kernels: scalars, and contiguous arrays of so many axes.
SINGLE, WHOLE, TRUTH = float32, int64, boolean
F1, F2, F3, F4, F5 = float32[::1], float32[:, ::1], float32[:, :, ::1], float32[:, :, :, ::1], float32[:, :, :, :, ::1]
SUMS1, SUMS3, PLACES2 = float64[::1], float64[:, :, ::1], int64[:, ::1]
#: With gaps, as one sample of a batch of two gradients.
STRIDED4 = float32[:, :, :, :]

#: Reassociation lets loops use vector instructions; NaN and infinity keep their meaning, so that guards still work.
FAST = {"contract", "arcp", "nsz", "reassoc", "afn"}
inlined = njit(fastmath=FAST, error_model="numpy", nogil=True, inline="always")

Signature = tuple[Any, ...]
#: Every kernel of this process with the arguments that it is compiled for.
_KERNELS: list[tuple[Any, tuple[Signature, ...]]] = []


def compiled(*signatures: Signature) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A kernel that runs on several threads, for arguments of these types.

    Others work too, and are compiled by each process that meets them."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        kernel: Any = njit(parallel=True, fastmath=FAST, error_model="numpy", nogil=True)(function)
        if isinstance(kernel, Dispatcher):  # a plain function where the user has set NUMBA_DISABLE_JIT
            kernel._cache = _Files(f"{function.__module__}.{function.__name__}", signatures)  # type: ignore[attr-defined]
            _KERNELS.append((kernel, signatures))
        return kernel

    return decorate


class _Files:
    """Where numba looks for the machine code of a kernel before it would compile it: its interface of a cache."""

    cache_path = None

    def __init__(self, name: str, signatures: tuple[Signature, ...]) -> None:
        self.name, self.signatures = name, signatures
        #: Of the process that compiles: where its results go.
        self.target: Path | None = None

    def load_overload(self, signature: Any, context: Any) -> CompileResult | None:
        context.refresh()
        if self.target is not None:
            return None
        threading_layer.start()
        if tuple(signature) not in self.signatures:
            return None
        read = kernel_files.read_from_whole(
            lambda folder: self._read(folder, signature), context.codegen().magic_tuple()
        )
        return None if read is None else CompileResult._rebuild(context, *read)

    def save_overload(self, signature: Any, result: CompileResult) -> None:
        if self.target is not None:
            content = dumps(result._reduce())
            self._file(self.target).save(str(signature), (hashlib.sha256(content).digest(), content))

    def _read(self, folder: Path, signature: Any) -> Any:
        """Raises for a file that is not what was written, whatever pickle or this makes of it."""
        digest, content = self._file(folder).load(str(signature))
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("its checksum is another")
        return pickle.loads(content)

    def _file(self, folder: Path) -> IndexDataCacheFile:
        return IndexDataCacheFile(str(folder), self.name, "")

    def enable(self) -> None:
        """Nothing can be switched."""

    disable = flush = enable


def compile_all(folder: Path, part: int, parts: int, progress: Callable[[int], None]) -> None:
    """Compile into a folder one part, of so many, of the kernels that this process has imported.

    progress: is told after each of them how many there are in all."""
    jobs = [(kernel, signature) for kernel, signatures in _KERNELS for signature in signatures]
    for kernel, signature in jobs[part::parts]:
        kernel._cache.target = folder
        kernel.compile(signature)
        progress(len(jobs))


def after_fork() -> None:
    """Have every kernel ask `threading_layer` again before it runs, and torch use one thread: the others are gone."""
    torch.set_num_threads(1)
    for kernel, _ in _KERNELS:
        kernel._reset_overloads()


threading_layer.on_fork(after_fork)
