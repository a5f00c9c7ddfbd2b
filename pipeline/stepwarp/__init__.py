"""stepwarp aligns pairs of 3D medical volumes.

import stepwarp
result = stepwarp.register(fixed, moving)  # paths, or images of nibabel, MONAI, SimpleITK, TorchIO, (array, affine)
moved_labels = result.apply(labels)        # from the moving image's space to the fixed one's, as what it was
result.transform(points)                   # world RAS+ mm of the fixed image -> of the moving image
result.save("out")
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

from stepwarp.version import __version__ as __version__

# Two pools of OpenMP threads are at work, torch's and numba's. By default the idle one spins and takes the cores from
# the busy one, which makes everything several times slower; it must be told before either library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# numba refuses to be imported with less than one thread.
_threads = os.environ.get("NUMBA_NUM_THREADS", "").strip()
if _threads.lstrip("-").isdigit() and int(_threads) < 1:
    warnings.warn(f"NUMBA_NUM_THREADS={_threads} is no number of threads and is left out. Unset it.", stacklevel=2)
    del os.environ["NUMBA_NUM_THREADS"]

__all__ = [
    "Grid",
    "Image",
    "LabelMap",
    "Registration",
    "StepwarpError",
    "apply",
    "evaluate",
    "read_image",
    "read_labels",
    "read_transform",
    "register",
]

if TYPE_CHECKING:
    from stepwarp.errors import StepwarpError
    from stepwarp.files import read_image, read_labels, read_transform
    from stepwarp.geometry import Grid, Image, LabelMap
    from stepwarp.workflow.apply import apply
    from stepwarp.workflow.evaluate import evaluate_files as evaluate
    from stepwarp.workflow.register import register
    from stepwarp.workflow.registration import Registration

_HOMES = {
    "errors": ("StepwarpError",),
    "files": ("read_image", "read_labels", "read_transform"),
    "geometry": ("Grid", "Image", "LabelMap"),
    "workflow.apply": ("apply",),
    "workflow.register": ("register",),
    "workflow.registration": ("Registration",),
}


def __getattr__(name: str) -> object:
    # torch takes seconds to import: `stepwarp --help` and `stepwarp.__version__` do not wait for it.
    if name == "evaluate":
        return import_module("stepwarp.workflow.evaluate").evaluate_files
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"stepwarp.{home}"), name)
    raise AttributeError(f"module 'stepwarp' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__"]
