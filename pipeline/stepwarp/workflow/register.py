"""Registering one pair: what `stepwarp.register` and the command of that name do between reading and writing."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import nibabel
import numpy as np
import torch
from nibabel.spatialimages import SpatialImage

import stepwarp
from stepwarp import files
from stepwarp.config import LinearKind, Preset, SimilarityName
from stepwarp.config import preset as load_preset
from stepwarp.errors import InputError
from stepwarp.geometry import Affine, Composition, DisplacementField, Image, LabelMap, Transform
from stepwarp.geometry.orientation import canonical
from stepwarp.losses.similarity import NCC, MutualInformation, Similarity
from stepwarp.registrar.affine import register_linear
from stepwarp.registrar.deformable import make_similarity, optimise
from stepwarp.registrar.progress import Progress, Step, silent
from stepwarp.workflow.verdict import judge, measure

Source = str | Path | SpatialImage | Image
MaskSource = str | Path | SpatialImage | LabelMap

#: Intensities are scaled so that these quantiles become 0 and 1 (of all voxels; of those above the first).
_LOW, _HIGH = 0.001, 0.995
#: Brighter than this, in those units, is cut off: a few bright vessels say nothing about the rest.
_BRIGHTEST = 1.2


@dataclass(frozen=True, eq=False)
class Registration:
    """A registered pair.

    fixed, moving: the images as read. affine: fixed world -> moving world. warp: fixed world -> fixed world on the
    fixed grid, before the affine; inverse_warp undoes it; both None for a linear registration. record: what
    registration.json holds."""

    fixed: Image
    moving: Image
    affine: Affine
    warp: DisplacementField | None
    inverse_warp: DisplacementField | None
    record: dict[str, Any]

    @property
    def transform(self) -> Transform:
        """Points of the fixed world (RAS+ mm) -> points of the moving world."""
        return self.affine if self.warp is None else Composition.of(self.affine, self.warp)

    @property
    def inverse(self) -> Transform:
        """Points of the moving world (RAS+ mm) -> points of the fixed world."""
        back = self.affine.inverse()
        return back if self.inverse_warp is None else Composition.of(self.inverse_warp, back)

    @cached_property
    def moved(self) -> Image:
        """The moving image on the fixed grid, its intensities as read, interpolated once."""
        return self.moving.warp(self.transform, self.fixed.grid)

    def save(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        progress: Progress = silent,
        truth: dict[str, tuple[Any, Any]] | None = None,
    ) -> Path:
        """Write everything into the folder `out`, read it back with SimpleITK, and compare: see `workflow.outputs`."""
        from stepwarp.workflow.outputs import save

        return save(self, Path(out), overwrite=overwrite, progress=progress, truth=truth)


def register(
    fixed: Source,
    moving: Source,
    *,
    preset: str | Preset = "default",
    affine_only: bool = False,
    transform: LinearKind = "affine",
    similarity: SimilarityName | None = None,
    fixed_mask: MaskSource | None = None,
    moving_mask: MaskSource | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    time_budget: float | None = None,
    trust: files.Trust | None = None,
    progress: Progress = silent,
) -> Registration:
    """Find the transform that maps points of the fixed image to their matches in the moving image.

    fixed, moving: paths, nibabel images or `Image`s; 3D, any spacing and orientation; their headers need not overlap.
    preset: fast, default or best, or settings of one's own. affine_only: stop after the linear stage. transform: what
    the linear stage may do: rigid, similarity or affine. similarity: instead of the preset's: lncc, ncc, ssd, or for
    different contrasts mi or mind. Masks: non-zero where an image may be trusted; the rest has no influence.
    device: auto, cpu or cuda. threads: all cores by default. time_budget: seconds after which no further iteration
    starts. trust: which statement of a self-contradicting header to believe.

    Raises InputError for inputs that cannot be used, RegistrationError where the optimisation breaks down."""
    started = time.monotonic()
    deadline = None if time_budget is None else started + time_budget
    recipe = _recipe(preset, similarity, transform, time_budget)
    place = _device(device)
    used_threads = _use_threads(threads)
    torch.manual_seed(seed)
    clock = _Clock(progress)

    with clock.stage("read"):
        images = tuple(files.as_image(source, trust=trust) for source in (fixed, moving))
        masks = tuple(
            _mask(source, image, trust) for source, image in zip((fixed_mask, moving_mask), images, strict=True)
        )
        scaled = tuple(
            scale_intensities(canonical(image), None if mask is None else canonical(mask))
            for image, mask in zip(images, masks, strict=True)
        )
        trusted = tuple(None if mask is None else canonical(mask) for mask in masks)

    with clock.stage("affine"):
        fit = register_linear(
            *scaled,
            transform,
            *_linear_similarities(recipe),
            recipe.affine,
            fixed_mask=trusted[0],
            moving_mask=trusted[1],
            device=place,
            progress=progress,
        )
    deformation = None
    if not affine_only:
        with clock.stage("deformable"):
            deformation = optimise(
                *scaled,
                fit.transform,
                recipe.deformable,
                fixed_mask=trusted[0],
                moving_mask=trusted[1],
                device=place,
                deadline=deadline,
                progress=progress,
            )
    with clock.stage("measure"):
        warps = (None, None) if deformation is None else (deformation.warp, deformation.inverse_warp)
        measures = measure(*scaled, fit.transform, *warps, trusted[0])

    record = {
        "version": stepwarp.__version__,
        "inputs": _described_inputs({"fixed": fixed, "moving": moving}, images)
        | _described_masks({"fixed_mask": fixed_mask, "moving_mask": moving_mask}),
        "settings": {
            "preset": preset if isinstance(preset, str) else "custom",
            "transform": transform,
            "affine_only": affine_only,
            "time_budget": time_budget,
            "trust": trust,
            **recipe.model_dump(),
        },
        "seed": seed,
        "device": _device_name(place),
        "threads": used_threads,
        "versions": _versions(),
        "stages": clock.stages,
        "affine": {"matrix": fit.transform.matrix.tolist(), "loss": fit.loss, "starts": [vars(s) for s in fit.starts]},
        "loss": [] if deformation is None else [{"stage": "deformable", **row} for row in deformation.trace],
        "stopped": None if deformation is None else deformation.stopped,
        "measures": measures,
        "verdict": judge(measures),
    }
    grid = images[0].grid
    return Registration(*images, fit.transform, *(None if w is None else w.on(grid) for w in warps), record)


def scale_intensities(image: Image, mask: Image | None = None) -> Image:
    """The image with its background at 0 and its bright tissue at 1, whatever its units were.

    With a mask the scale comes from the voxels inside. Raises InputError where nothing stands out."""
    values = image.data.flatten() if mask is None else image.data[mask.data > 0]
    low = _quantile(values, _LOW)
    above = values[values > low]
    high = _quantile(above, _HIGH) if above.numel() else low
    if not high > low:
        raise InputError(f"{image.name}: no voxel stands out from the background. Is it the right file or mask?")
    return Image(((image.data - low) / (high - low)).clamp(0, _BRIGHTEST), image.grid, image.name)


def _quantile(values: torch.Tensor, q: float) -> float:
    return float(values.kthvalue(max(1, round(q * values.numel()))).values)


def _recipe(name: str | Preset, similarity: str | None, transform: str, time_budget: float | None) -> Preset:
    """The preset with the caller's similarity; every choice checked before any work."""
    recipe = load_preset(name) if isinstance(name, str) else name
    for value, known, what in ((similarity, SimilarityName, "similarity"), (transform, LinearKind, "transform")):
        if value is not None and value not in get_args(known):
            raise InputError(f"{what} '{value}' does not exist; there are {', '.join(get_args(known))}")
    if time_budget is not None and not time_budget > 0:
        raise InputError(f"a time budget of {time_budget} s is no time at all; give the seconds there are")
    if similarity is None:
        return recipe
    return recipe.model_copy(update={"deformable": recipe.deformable.model_copy(update={"similarity": similarity})})


def _linear_similarities(recipe: Preset) -> tuple[Similarity, Similarity]:
    """For the linear stage, to search and to refine: the counterparts of the deformable stage's."""
    if recipe.deformable.similarity in ("mi", "mind"):
        return MutualInformation(), MutualInformation()
    return NCC(), make_similarity(recipe.deformable)


def _mask(source: MaskSource | None, image: Image, trust: files.Trust | None) -> Image | None:
    """The mask of an image as 0 and 1 on the image's grid."""
    if source is None:
        return None
    mask = files.as_labels(source, trust=trust)
    if mask.grid.shape != image.grid.shape:
        raise InputError(
            f"{mask.name}: {mask.grid} does not fit {image.name}: {image.grid}. Resample it onto the image."
        )
    if mask.grid != image.grid:
        away = mask.grid.distance_to(image.grid)
        raise InputError(f"{mask.name}: lies up to {away:.3g} mm away from {image.name}. Resample it onto the image.")
    if not (mask.data != 0).any():
        raise InputError(f"{mask.name}: the mask is empty. Non-zero voxels are the ones that count.")
    return Image((mask.data != 0).float(), image.grid, mask.name)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise InputError(f"device '{name}' does not exist; there are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu")
    return torch.device(name)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.processor() or platform.machine()})"


def _use_threads(threads: int | None) -> int:
    """Tell both thread pools; the number in use."""
    import numba

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = available if threads is None else threads
    if wanted < 1:
        raise InputError(f"{wanted} threads cannot do anything; give at least 1")
    torch.set_num_threads(wanted)
    numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS))
    return wanted


class _Clock:
    """Seconds and peak memory of each stage."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.stages: list[dict[str, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        self.progress(Step(name, 0, 1))
        yield
        self.progress(Step(name, 1, 1))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.stages.append({"name": name, "seconds": round(time.perf_counter() - started, 3), "peak_mib": round(peak)})


def _described_inputs(sources: dict[str, Source], images: tuple[Image, ...]) -> dict[str, Any]:
    return {
        role: _described_file(source)
        | {
            "shape": list(image.grid.shape),
            "spacing_mm": [round(float(s), 6) for s in image.grid.spacing],
            "orientation": "".join(nibabel.aff2axcodes(image.grid.affine)),
            "affine": image.grid.affine.tolist(),
        }
        for (role, source), image in zip(sources.items(), images, strict=True)
    }


def _described_masks(sources: dict[str, MaskSource | None]) -> dict[str, Any]:
    return {role: _described_file(source) for role, source in sources.items() if source is not None}


def _described_file(source: Any) -> dict[str, Any]:
    if isinstance(source, (str, Path)):
        return {"path": str(Path(source).resolve()), "sha256": files.sha256(source)}
    return {"path": None, "sha256": None}


def _versions() -> dict[str, str]:
    import numba
    import SimpleITK

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "nibabel": nibabel.__version__,
        "SimpleITK": SimpleITK.Version.VersionString(),
        "numpy": np.__version__,
    }
