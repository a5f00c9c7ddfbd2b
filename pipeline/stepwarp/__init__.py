"""stepwarp aligns pairs of 3D medical volumes.

import stepwarp
result = stepwarp.register("fixed.nii.gz", "moving.nii.gz")
result.transform(points)      # world RAS+ mm of the fixed image -> of the moving image
result.save("out")
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

# Two pools of OpenMP threads are at work, torch's and numba's. By default the idle one spins and takes the cores from
# the busy one, which makes everything several times slower; it must be told before either library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# numba refuses to be imported with less than one thread.
_threads = os.environ.get("NUMBA_NUM_THREADS", "").strip()
if _threads.lstrip("-").isdigit() and int(_threads) < 1:
    warnings.warn(f"NUMBA_NUM_THREADS={_threads} is no number of threads and is left out. Unset it.", stacklevel=2)
    del os.environ["NUMBA_NUM_THREADS"]

__version__ = "0.1.0"
__all__ = ["Registration", "register"]

if TYPE_CHECKING:
    from stepwarp.workflow.register import Registration, register


def __getattr__(name: str) -> object:
    # torch takes seconds to import: `stepwarp --help` and `stepwarp.__version__` do not wait for it.
    if name in __all__:
        from stepwarp.workflow import register as module

        return getattr(module, name)
    raise AttributeError(f"module 'stepwarp' has no attribute '{name}'")
