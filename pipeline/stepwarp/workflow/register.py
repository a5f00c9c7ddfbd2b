"""Registering one pair: what `stepwarp.register` and the command of that name do between reading and writing."""

from __future__ import annotations

import platform
import time
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
from stepwarp.losses.intensities import scale_intensities
from stepwarp.losses.similarity import NCC, MutualInformation, Similarity
from stepwarp.registrar.affine import register_linear
from stepwarp.registrar.deformable import Deformation, make_similarity, optimise
from stepwarp.registrar.progress import Progress, silent
from stepwarp.workflow.clock import Clock
from stepwarp.workflow.device import chosen_device, device_name, use_threads
from stepwarp.workflow.verdict import judge, lowered, measure

Source = str | Path | SpatialImage | Image
MaskSource = str | Path | SpatialImage | LabelMap


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
    place = chosen_device(device)
    used_threads = use_threads(threads)
    torch.manual_seed(seed)
    clock = Clock(progress)

    with clock.stage("read"):
        a = _prepare(fixed, fixed_mask, trust)
        b = _prepare(moving, moving_mask, trust)
    with clock.stage("affine", reports_itself=True):
        fit = register_linear(
            a.scaled,
            b.scaled,
            transform,
            *_linear_similarities(recipe),
            recipe.affine,
            fixed_mask=a.mask,
            moving_mask=b.mask,
            device=place,
            progress=progress,
        )
    deformation = None
    if not affine_only:
        with clock.stage("deformable", reports_itself=True):
            deformation = optimise(
                a.scaled,
                b.scaled,
                fit.transform,
                recipe.deformable,
                fixed_mask=a.mask,
                moving_mask=b.mask,
                device=place,
                deadline=deadline,
                progress=progress,
            )
    with clock.stage("measure"):
        measures = measure(a.scaled, b.scaled, fit.transform, deformation, a.mask)
        if deformation is not None and lowered(measures, recipe.deformable.similarity):
            still = DisplacementField.identity(a.scaled.grid)
            deformation = Deformation(still, still, deformation.trace, "it lowered the similarity and was dropped")
            measures = measure(a.scaled, b.scaled, fit.transform, deformation, a.mask)

    record = {
        "version": stepwarp.__version__,
        "inputs": _described_inputs(a, b),
        "settings": {
            "preset": preset if isinstance(preset, str) else "custom",
            "transform": transform,
            "affine_only": affine_only,
            "time_budget": time_budget,
            "trust": trust,
            **recipe.model_dump(),
        },
        "seed": seed,
        "device": device_name(place),
        "threads": used_threads,
        "versions": _versions(),
        "stages": clock.stages,
        "affine": {"matrix": fit.transform.matrix.tolist(), "loss": fit.loss, "starts": [vars(s) for s in fit.starts]},
        "loss": [] if deformation is None else [{"stage": "deformable", **row} for row in deformation.trace],
        "stopped": None if deformation is None else deformation.stopped,
        "measures": measures,
        "verdict": judge(measures),
    }
    if deformation is None:
        return Registration(a.image, b.image, fit.transform, None, None, record)
    warp, inverse_warp = (field.on(a.image.grid) for field in (deformation.warp, deformation.inverse_warp))
    return Registration(a.image, b.image, fit.transform, warp, inverse_warp, record)


@dataclass(frozen=True, eq=False)
class _Subject:
    """One of the two images: as read, and as it is registered, with its mask: scaled, in RAS order."""

    source: Source
    mask_source: MaskSource | None
    image: Image
    scaled: Image
    mask: Image | None


def _prepare(source: Source, mask_source: MaskSource | None, trust: files.Trust | None) -> _Subject:
    image = files.as_image(source, trust=trust)
    mask = None if mask_source is None else canonical(_read_mask(mask_source, image, trust))
    return _Subject(source, mask_source, image, scale_intensities(canonical(image), mask), mask)


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


def _read_mask(source: MaskSource, image: Image, trust: files.Trust | None) -> Image:
    """The mask of an image as 0 and 1 on the image's grid."""
    mask = files.as_labels(source, trust=trust)
    files.require_grid_of(mask, image)
    if not (mask.data != 0).any():
        raise InputError(f"{mask.name}: the mask is empty. Non-zero voxels are the ones that count.")
    return Image((mask.data != 0).float(), image.grid, mask.name)


def _described_inputs(fixed: _Subject, moving: _Subject) -> dict[str, Any]:
    described = {role: _described_image(subject) for role, subject in (("fixed", fixed), ("moving", moving))}
    masks = {"fixed_mask": fixed.mask_source, "moving_mask": moving.mask_source}
    return described | {role: _described_file(source) for role, source in masks.items() if source is not None}


def _described_image(subject: _Subject) -> dict[str, Any]:
    grid = subject.image.grid
    return _described_file(subject.source) | {
        "shape": list(grid.shape),
        "spacing_mm": [round(float(s), 6) for s in grid.spacing],
        "orientation": "".join(nibabel.aff2axcodes(grid.affine)),
        "affine": grid.affine.tolist(),
    }


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
