"""ConvexAdam, when it is installed, through its public function: MIND features, coupled convex optimisation, Adam.

Tested with convexAdam 0.2.0 on the CPU. It knows neither grids nor affines, and its authors give it images that are
aligned already; here SimpleITK's affine does that, and its seconds count."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from stepwarp.baselines._exchange import stdout_to_stderr
from stepwarp.baselines._method import Outcome, missing_package, require
from stepwarp.baselines.simpleitk import SIMPLEITK_AFFINE
from stepwarp.geometry import Composition, DisplacementField, Image

#: The arguments of `convex_adam_pt`, its defaults written out.
SETTINGS: dict[str, Any] = {
    "mind_r": 1,
    "mind_d": 2,
    "lambda_weight": 1.25,
    "grid_sp": 6,
    "disp_hw": 4,
    "selected_niter": 80,
    "selected_smooth": 0,
    "grid_sp_adam": 2,
    "ic": True,
}


@dataclass(frozen=True)
class ConvexAdam:
    """SimpleITK's affine, then ConvexAdam on the fixed grid, on the GPU if torch sees one. It delivers no inverse."""

    name: str = "convexadam"
    title: str = "ConvexAdam"
    imports: ClassVar[tuple[str, ...]] = ("convexAdam",)

    def missing(self) -> str | None:
        return missing_package("convexAdam", "pip install convexAdam")

    def __call__(self, fixed: Image, moving: Image, *, threads: int, seed: int) -> Outcome:
        require(self)
        from convexAdam.convex_adam_MIND import convex_adam_pt

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        start = SIMPLEITK_AFFINE(fixed, moving, threads=threads, seed=seed)
        moved = moving.warp(start.transform, fixed.grid)
        # Only now: the compiled kernels that warped the image share the OpenMP setting and change it.
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        with stdout_to_stderr():
            voxels = convex_adam_pt(fixed.data, moved.data, dtype=torch.float32, device=device, **SETTINGS)
        displacement = torch.from_numpy(voxels).float().movedim(-1, 0)[None]
        record = {
            "command": "convex_adam_pt(fixed, moving after SimpleITK's affine)",
            "versions": start.record["versions"]
            | {"convexAdam": importlib.metadata.version("convexAdam"), "torch": torch.__version__},
            "threads": torch.get_num_threads(),
            "seed": seed,
            "device": str(device),
            "settings": start.record["settings"] | {"convexadam": SETTINGS},
        }
        field = DisplacementField(displacement.contiguous(), fixed.grid)
        return Outcome(Composition.of(start.transform, field), None, record)


METHODS = (ConvexAdam(),)
