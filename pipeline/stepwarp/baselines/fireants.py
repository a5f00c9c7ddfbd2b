"""FireANTs, when it is installed, through its public API: centres of mass, then affine, then greedy diffeomorphic.

Tested with FireANTs 1.5.0 on the CPU, without its fused CUDA operations. Its licence restricts redistribution: nothing
of it is copied here, and stepwarp does not depend on it."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from stepwarp.baselines._exchange import as_files, stdout_to_stderr
from stepwarp.baselines._method import Outcome, missing_package, require
from stepwarp.files import read_transform
from stepwarp.geometry import Image

#: The arguments of its three classes, from its own scripts for brains.
MOMENTS: dict[str, Any] = {"scale": 4, "moments": 1}
AFFINE: dict[str, Any] = {
    "scales": [4, 2, 1],
    "iterations": [200, 100, 50],
    "optimizer": "Adam",
    "optimizer_lr": 3e-3,
    "cc_kernel_size": 5,
}
GREEDY: dict[str, Any] = {
    "scales": [4, 2, 1],
    "iterations": [200, 100, 50],
    "optimizer": "Adam",
    "optimizer_lr": 0.5,
    "cc_kernel_size": 5,
    "smooth_grad_sigma": 1.0,
    "smooth_warp_sigma": 0.5,
}


@dataclass(frozen=True)
class FireAnts:
    """Its greedy registration, on the GPU if torch sees one.

    No inverse: FireANTs finds one by a second optimisation, which is no part of the registration."""

    name: str = "fireants"
    title: str = "FireANTs greedy"
    imports: ClassVar[tuple[str, ...]] = ("fireants",)

    def missing(self) -> str | None:
        return missing_package(
            "fireants", "pip install --no-deps fireants tqdm brings it (its own requirements pin an old SimpleITK)"
        )

    def __call__(self, fixed: Image, moving: Image, *, threads: int, seed: int) -> Outcome:
        require(self)
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with as_files(fixed, moving) as (folder, *paths), stdout_to_stderr():
            _register(paths[0], paths[1], folder / "warp.nii", device)
            transform = read_transform(folder / "warp.nii")
        record = {
            "command": "MomentsRegistration(...); AffineRegistration(...); GreedyRegistration(...)",
            "versions": {"fireants": importlib.metadata.version("fireants"), "torch": torch.__version__},
            "threads": torch.get_num_threads(),
            "seed": seed,
            "device": device,
            "settings": {"moments": MOMENTS, "affine": AFFINE, "greedy": GREEDY},
        }
        return Outcome(transform, None, record)


def _register(fixed: Path, moving: Path, warp: Path, device: str) -> None:
    """Register two files; the whole map, affine included, is written as one field of ITK on the fixed grid."""
    from fireants.io import BatchedImages
    from fireants.io import Image as FireImage
    from fireants.registration.affine import AffineRegistration
    from fireants.registration.greedy import GreedyRegistration
    from fireants.registration.moments import MomentsRegistration

    images = [BatchedImages([FireImage.load_file(str(path), device=device)]) for path in (fixed, moving)]
    moments = MomentsRegistration(fixed_images=images[0], moving_images=images[1], progress_bar=False, **MOMENTS)
    moments.optimize()
    start = moments.get_affine_init()
    affine = AffineRegistration(
        fixed_images=images[0], moving_images=images[1], init_rigid=start, progress_bar=False, **AFFINE
    )
    affine.optimize()
    greedy = GreedyRegistration(
        fixed_images=images[0],
        moving_images=images[1],
        init_affine=affine.get_affine_matrix().detach(),
        progress_bar=False,
        **GREEDY,
    )
    greedy.optimize()
    greedy.save_as_ants_transforms(str(warp))


METHODS = (FireAnts(),)
